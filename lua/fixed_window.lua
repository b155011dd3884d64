-- Fixed window: one count for each window; the windows are aligned to the epoch, or begin at boundaries of a calendar.
--
-- Lua knows no time zones: with a calendar the charge brings where the windows around now begin (8 bytes each, ascending),
-- as its sender computed them. If the server's clock lies outside of them, the two clocks disagree by more than
-- a window, and the decision fails.
--
-- State, 12 bytes, big-endian: start of the window in microseconds (8), count (4).
-- It is the Lua twin of FixedWindow in sidecar/core/algorithms/windows.py, which says why each step is right.

local function fixed_window()
  local algorithm = {}

  function algorithm.size()
    return 12
  end

  local function read_calendar(counter, raw)
    local now, starts, own = counter.now, {}, nil
    for position = 1, #counter.boundaries, 8 do
      local n = #starts + 1
      starts[n] = struct.unpack('>I8', counter.boundaries, position)
      if n > 1 and starts[n - 1] <= now and now < starts[n] then
        own = n - 1
      end
    end
    assert(own, 'the clocks of this server and of its client disagree by more than a calendar window')
    if raw then
      local start, current = struct.unpack('>I8I4', raw)
      if start > (starts[own - 1] or starts[1] - 1) then
        counter.current = current
        local known
        for n = own, #starts - 1 do
          if starts[n] == start then
            known = known or n
          end
        end
        if not known then
          counter.dirty = true
        end
        own = known or own
      end
    end
    counter.start, counter.ends = starts[own], starts[own + 1]
  end

  function algorithm.read(counter, raw)
    if counter.boundaries ~= '' then
      return read_calendar(counter, raw)
    end
    local now, window = counter.now, counter.window
    counter.start = now - math.fmod(now, window)
    if raw then
      local start, current = struct.unpack('>I8I4', raw)
      if start > now + window then
        counter.current, counter.dirty = current, true
      elseif start >= counter.start then
        counter.start, counter.current = start, current
      end
    end
    counter.ends = counter.start + window
  end

  function algorithm.used(counter)
    return counter.current
  end

  function algorithm.add(counter, cost)
    counter.current = math.min(counter.current + cost, COUNT_MAX)
  end

  function algorithm.take_back(counter, cost)
    counter.current = math.max(counter.current - cost, 0)
  end

  function algorithm.wait(counter, room)
    if counter.current <= room then
      return 0
    end
    return counter.ends - counter.now
  end

  function algorithm.reset_after(counter)
    return counter.ends - counter.now
  end

  function algorithm.pack(counter)
    return struct.pack('>I8I4', counter.start, counter.current)
  end

  return algorithm
end
