-- Generic cell rate algorithm: a bucket that holds what was taken, leaks `requests` per window, and has room for `capacity`.
--
--   content = level + fraction / window          used = ceil(content)          leaked = requests * elapsed / window
--
-- State, 20 bytes, big-endian: time in microseconds (8), and what the bucket held then: level (4), fraction (8).
-- It is the Lua twin of Gcra in sidecar/core/algorithms/gcra.py, which says why each step is right.

local function gcra()
  local algorithm = {}

  local function saturate(counter)
    if counter.level >= counter.capacity then
      local level_max = math.min(multiply_divide(counter.requests, WINDOW_MAX, counter.window), COUNT_MAX)
      if counter.level >= level_max then
        counter.level, counter.fraction = level_max, 0
      end
    end
  end

  local function leak(counter, elapsed)
    if elapsed > WINDOW_MAX then
      counter.level, counter.fraction = 0, 0
      return
    end
    local leaked, leaked_fraction = multiply_divide(counter.requests, elapsed, counter.window)
    local level, fraction = counter.level - leaked, counter.fraction - leaked_fraction
    if fraction < 0 then
      level, fraction = level - 1, fraction + counter.window
    end
    if level < 0 then
      level, fraction = 0, 0
    end
    counter.level, counter.fraction = level, fraction
  end

  function algorithm.read(raw, now, window, requests, capacity)
    local counter = {
      now = now, at = now, window = window, requests = requests, capacity = capacity, level = 0, fraction = 0, asked = 0,
      dirty = false,
    }
    if not raw then
      return counter, 0
    end
    assert(#raw >= 20, FOREIGN)
    if requests > 0 then
      local at
      at, counter.level, counter.fraction = struct.unpack('>I8I4I8', raw)
      saturate(counter)
      if at > now + window then
        counter.dirty = true
      elseif at > now then
        counter.at = at
      else
        leak(counter, now - at)
      end
    end
    return counter, 20
  end

  function algorithm.used(counter)
    if counter.fraction > 0 then
      return counter.level + 1
    end
    return counter.level
  end

  function algorithm.add(counter, cost)
    counter.level = counter.level + cost
    saturate(counter)
  end

  function algorithm.take_back(counter, cost)
    if cost > counter.level then
      counter.level, counter.fraction = 0, 0
    else
      counter.level = counter.level - cost
    end
  end

  function algorithm.wait(counter, room)
    if algorithm.used(counter) <= room then
      return 0
    end
    local requests = counter.requests
    local wait, rest = multiply_divide(counter.level - room, counter.window, requests)
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
    return struct.pack('>I8I4I8', counter.at, counter.level, counter.fraction)
  end

  return algorithm
end
