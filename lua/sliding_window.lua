-- Sliding window counter: two adjacent buckets, aligned to the epoch; what was counted in the last one fades linearly.
--
--   used = ceil(previous * left / window) + current          left = time until the current bucket ends, 0 < left <= window
--
-- State, 16 bytes, big-endian: start of the current bucket in microseconds (8), previous (4), current (4).
-- It is the Lua twin of SlidingWindow in sidecar/core/algorithms/windows.py, which says why each step is right.
-- Part of the one script that a store loads, whose parts sidecar/edges/scripts.py lists. An algorithm is a function that
-- makes its table of functions, so that a decision pays only for the algorithms that it uses.

local function sliding_window()
  local algorithm = {}

  function algorithm.read(raw, now, window)
    local aligned = now - math.fmod(now, window)
    local counter = {
      now = now, at = now, window = window, start = aligned, previous = 0, current = 0, asked = 0, dirty = false,
    }
    if not raw then
      return counter, 0
    end
    assert(#raw >= 16, FOREIGN)
    local start, previous, current = struct.unpack('>I8I4I4', raw)
    if start > now + window then
      counter.current, counter.dirty = math.min(previous + current, COUNT_MAX), true
    elseif start >= aligned then
      counter.start, counter.previous, counter.current = start, previous, current
      counter.at = math.max(now, start)
    elseif start + window == aligned then
      counter.previous = current
    end
    return counter, 16
  end

  function algorithm.used(counter)
    local previous = counter.previous
    if previous == 0 then
      return counter.current
    end
    local faded, rest = multiply_divide(previous, counter.start + counter.window - counter.at, counter.window)
    if rest > 0 then
      faded = faded + 1
    end
    return faded + counter.current
  end

  function algorithm.add(counter, cost)
    counter.current = math.min(counter.current + cost, COUNT_MAX)
  end

  function algorithm.take_back(counter, cost)
    local from_previous = math.max(cost - counter.current, 0)
    counter.current = math.max(counter.current - cost, 0)
    counter.previous = math.max(counter.previous - from_previous, 0)
  end

  function algorithm.wait(counter, room)
    if algorithm.used(counter) <= room then
      return 0
    end
    local ends_after = counter.start + counter.window - counter.now
    if room >= counter.current then
      return ends_after - multiply_divide(room - counter.current, counter.window, counter.previous)
    end
    return ends_after + counter.window - multiply_divide(room, counter.window, counter.current)
  end

  function algorithm.reset_after(counter)
    local ends_after = counter.start + counter.window - counter.now
    if counter.current > 0 then
      return ends_after + counter.window
    elseif counter.previous > 0 then
      return ends_after
    end
    return 0
  end

  function algorithm.pack(counter)
    return struct.pack('>I8I4I4', counter.start, counter.previous, counter.current)
  end

  return algorithm
end
