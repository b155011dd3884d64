-- Fixed window: one count for each window, the windows aligned to the epoch.
--
-- State, one string of 12 bytes, big-endian: start of the window in microseconds (8), count (4).
-- It is the Lua twin of FixedWindow in sidecar/core/windows.py, which says why each step is right.

local fixed_window = {}

function fixed_window.read(raw, now, window)
  local counter = {
    window = window, now = now, start = now - math.fmod(now, window), current = 0, asked = 0, dirty = false,
  }
  if not raw then
    return counter
  end
  assert(#raw == 12, 'the key holds something other than a fixed window')
  local start, current = struct.unpack('>I8I4', raw)
  if start > now + window then
    counter.current, counter.dirty = current, true
  elseif start >= counter.start then
    counter.start, counter.current = start, current
  end
  return counter
end

function fixed_window.used(counter)
  return counter.current
end

function fixed_window.reset_after(counter)
  return counter.start + counter.window - counter.now
end

fixed_window.retry_after = fixed_window.reset_after

function fixed_window.pack(counter)
  return struct.pack('>I8I4', counter.start, counter.current)
end
