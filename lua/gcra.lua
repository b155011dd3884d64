-- Generic cell rate algorithm: a bucket that holds what was taken, leaks `requests` per window, and has room for `capacity`.
--
--   content = level + fraction / window          used = ceil(content)          leaked = requests * elapsed / window
--
-- State, 20 bytes, big-endian: time in microseconds (8), and what the bucket held then: level (4), fraction (8).
-- It is the Lua twin of Gcra in sidecar/core/algorithms/gcra.py, which says why each step is right.

local function gcra()
  local algorithm = {}

  function algorithm.size()
    return 20
  end

  local function saturate(counter)
    if counter.current >= counter.capacity then
      local level_max = math.min(multiply_divide(counter.requests, WINDOW_MAX, counter.window), COUNT_MAX)
      if counter.current >= level_max then
        counter.current, counter.fraction = level_max, 0
      end
    end
  end

  local function leak(counter, elapsed)
    if elapsed > WINDOW_MAX then
      counter.current, counter.fraction = 0, 0
      return
    end
    local leaked, leaked_fraction = multiply_divide(counter.requests, elapsed, counter.window)
    local level, fraction = counter.current - leaked, counter.fraction - leaked_fraction
    if fraction < 0 then
      level, fraction = level - 1, fraction + counter.window
    end
    if level < 0 then
      level, fraction = 0, 0
    end
    counter.current, counter.fraction = level, fraction
  end

  function algorithm.read(counter, raw)
    counter.fraction = 0
    if not raw or counter.requests == 0 then
      return
    end
    local now, at = counter.now, nil
    at, counter.current, counter.fraction = struct.unpack('>I8I4I8', raw)
    saturate(counter)
    if at > now + counter.window then
      counter.dirty = true
    elseif at > now then
      counter.at = at
    else
      leak(counter, now - at)
    end
  end

  function algorithm.used(counter)
    if counter.fraction > 0 then
      return counter.current + 1
    end
    return counter.current
  end

  function algorithm.add(counter, cost)
    counter.current = counter.current + cost
    saturate(counter)
  end

  function algorithm.take_back(counter, cost)
    if cost > counter.current then
      counter.current, counter.fraction = 0, 0
    else
      counter.current = counter.current - cost
    end
  end

  function algorithm.wait(counter, room)
    if algorithm.used(counter) <= room then
      return 0
    end
    local requests = counter.requests
    local wait, rest = multiply_divide(counter.current - room, counter.window, requests)
    rest = rest + counter.fraction
    local over = math.fmod(rest, requests)
    wait = counter.at - counter.now + wait + (rest - over) / requests
    if over > 0 then
      return wait + 1
    end
    return wait
  end

  function algorithm.reset_after(counter)
    return algorithm.wait(counter, 0)
  end

  function algorithm.pack(counter)
    return struct.pack('>I8I4I8', counter.at, counter.current, counter.fraction)
  end

  return algorithm
end
