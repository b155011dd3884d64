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

  local function open_calendar(counter, boundaries, start, current)
    local now, starts, own = counter.now, {}, nil
    for position = 1, #boundaries, 8 do
      local n = #starts + 1
      starts[n] = struct.unpack('>I8', boundaries, position)
      if n > 1 and starts[n - 1] <= now and now < starts[n] then
        own = n - 1
      end
    end
    assert(own, 'the clocks of this server and of its client disagree by more than a calendar window')
    if start and start > (starts[own - 1] or starts[1] - 1) then
      local known
      for n = own, #starts - 1 do
        if starts[n] == start then
          known = known or n
        end
      end
      counter.current, counter.dirty = current, not known
      own = known or own
    end
    counter.start, counter.ends = starts[own], starts[own + 1]
  end

  local function open_aligned(counter, window, start, current)
    local now = counter.now
    counter.start = now - math.fmod(now, window)
    if start and start > now + window then
      counter.current, counter.dirty = current, true
    elseif start and start >= counter.start then
      counter.start, counter.current = start, current
    end
    counter.ends = counter.start + window
  end

  function algorithm.read(raw, now, window, _, _, boundaries)
    local counter = {now = now, start = 0, ends = 0, current = 0, asked = 0, dirty = false}
    local start, current
    if raw then
      assert(#raw >= 12, FOREIGN)
      start, current = struct.unpack('>I8I4', raw)
    end
    if boundaries then
      open_calendar(counter, boundaries, start, current)
    else
      open_aligned(counter, window, start, current)
    end
    return counter, 12
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
