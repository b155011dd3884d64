-- Sliding window counter: two adjacent buckets, aligned to the epoch; what was counted in the last one fades linearly.
--
--   used = ceil(previous * left / window) + current          left = time until the current bucket ends, 0 < left <= window
--
-- State, one string of 16 bytes, big-endian: start of the current bucket in microseconds (8), previous (4), current (4).
-- It is the Lua twin of SlidingWindow in sidecar/core/windows.py, which says why each step is right.
-- Part of the one script that store loads: `counts` first, then the algorithms, then charge.lua.

local sliding_window = {}

function sliding_window.read(raw, now, window)
  local counter = {
    window = window, now = now, at = now, start = now - math.fmod(now, window), previous = 0, current = 0, asked = 0,
    dirty = false,
  }
  if not raw then
    return counter
  end
  assert(#raw == 16, 'the key holds something other than a sliding window')
  local start, previous, current = struct.unpack('>I8I4I4', raw)
  if start > now + window then
    counter.current, counter.dirty = math.min(previous + current, COUNT_MAX), true
  elseif start >= counter.start then
    counter.start, counter.previous, counter.current = start, previous, current
    counter.at = math.max(now, start)
  elseif start + window == counter.start then
    counter.previous = current
  end
  return counter
end

function sliding_window.used(counter)
  local faded, rest = multiply_divide(counter.previous, counter.start + counter.window - counter.at, counter.window)
  if rest > 0 then
    faded = faded + 1
  end
  return faded + counter.current
end

function sliding_window.retry_after(counter, requests, cost)
  local ends_after = counter.start + counter.window - counter.now
  local room = requests - cost - counter.current
  if room >= 0 then
    return ends_after - multiply_divide(room, counter.window, counter.previous)
  end
  return ends_after + counter.window - multiply_divide(requests - cost, counter.window, counter.current)
end

function sliding_window.reset_after(counter)
  local ends_after = counter.start + counter.window - counter.now
  if counter.current > 0 then
    return ends_after + counter.window
  elseif counter.previous > 0 then
    return ends_after
  end
  return 0
end

function sliding_window.pack(counter)
  return struct.pack('>I8I4I4', counter.start, counter.previous, counter.current)
end
