-- Sliding log: what was taken counts for exactly one window.
--
-- State, 8 + 12 * n bytes, big-endian: number of entries n (4), running total before the first (4); then for each entry,
-- oldest first: time in microseconds (8), running total up to and including it (4). Totals are modulo 2^32; what is
-- counted at a time is less than that.
--
-- One string: a charge copies it (fast) and bisects it for the few entries that matter, instead of walking it in Lua
-- (slow). A sorted set would need several commands, 4 times the memory, and reading costs one by one.
-- It is the Lua twin of SlidingLog in sidecar/core/algorithms/sliding_log.py, which says why each step is right.

local function sliding_log()
  local algorithm = {}
  local HEAD, ENTRY, ENTRIES_MAX = 8, 12, 10000

  -- counter.log: the string; counter.first, counter.last: the entries of it that count; counter.base: as in the state

  local function time_of(counter, n)
    return (struct.unpack('>I8', counter.log, HEAD + ENTRY * (n - 1) + 1))
  end

  local function total_of(counter, n)
    local total = struct.unpack('>I4', counter.log, HEAD + ENTRY * (n - 1) + 9)
    return (total - counter.base) % 4294967296
  end

  -- The first entry that satisfies a condition which all later ones satisfy too; last + 1 if none does.
  local function first_entry(counter, satisfies)
    local low, high = counter.first, counter.last + 1
    while low < high do
      local middle = math.floor((low + high) / 2)
      if satisfies(middle) then
        high = middle
      else
        low = middle + 1
      end
    end
    return low
  end

  local function counted(counter, last)
    return string.sub(counter.log, HEAD + ENTRY * (counter.first - 1) + 1, HEAD + ENTRY * last)
  end

  -- Keeps the counted entries up to `last`, then adds one: in few copies, since the string may be long.
  local function replace_after(counter, last, time, total)
    local head = struct.pack('>I4I4', last - counter.first + 2, counter.base)
    counter.log = head .. counted(counter, last) .. struct.pack('>I8I4', time, (total + counter.base) % 4294967296)
    counter.last = last - counter.first + 2
    counter.first = 1
    counter.is_packed = true
  end

  local function clear(counter)
    counter.first, counter.last, counter.base, counter.log, counter.is_packed = 1, 0, 0, '', false
  end

  function algorithm.read(raw, now, window)
    local counter = {
      now = now, at = now, window = window, log = '', first = 1, last = 0, base = 0, is_packed = false,
      asked = 0, dirty = false,
    }
    if not raw then
      return counter, 0
    end
    assert(#raw >= HEAD, FOREIGN)
    counter.log = raw
    counter.last, counter.base = struct.unpack('>I4I4', raw)
    local size = HEAD + ENTRY * counter.last
    assert(#raw >= size, FOREIGN)
    if counter.last == 0 then
      return counter, size
    end
    local newest = time_of(counter, counter.last)
    if newest > now + window then
      local total = total_of(counter, counter.last)
      clear(counter)
      replace_after(counter, 0, now, total)
      counter.dirty = true
      return counter, size
    end
    counter.at = math.max(now, newest)
    local lapsed = counter.at - window
    if time_of(counter, 1) <= lapsed then
      local first = first_entry(counter, function(n) return time_of(counter, n) > lapsed end)
      counter.base = (counter.base + total_of(counter, first - 1)) % 4294967296
      counter.first = first
    end
    return counter, size
  end

  function algorithm.used(counter)
    if counter.last < counter.first then
      return 0
    end
    return total_of(counter, counter.last)
  end

  function algorithm.add(counter, cost)
    local total = math.min(algorithm.used(counter) + cost, COUNT_MAX)
    local last = counter.last
    local count = last - counter.first + 1
    if count > 0 and (count >= ENTRIES_MAX or time_of(counter, last) == counter.at) then
      last = last - 1
    end
    replace_after(counter, last, counter.at, total)
  end

  function algorithm.take_back(counter, cost)
    local left = algorithm.used(counter) - cost
    if left <= 0 then
      clear(counter)
      return
    end
    local last = first_entry(counter, function(n) return total_of(counter, n) >= left end)
    replace_after(counter, last - 1, time_of(counter, last), left)
  end

  function algorithm.wait(counter, room)
    local excess = algorithm.used(counter) - room
    if excess <= 0 then
      return 0
    end
    local last = first_entry(counter, function(n) return total_of(counter, n) >= excess end)
    return time_of(counter, last) + counter.window - counter.now
  end

  function algorithm.reset_after(counter)
    if counter.last < counter.first then
      return 0
    end
    return time_of(counter, counter.last) + counter.window - counter.now
  end

  function algorithm.pack(counter)
    if counter.is_packed then
      return counter.log
    end
    return struct.pack('>I4I4', counter.last - counter.first + 1, counter.base) .. counted(counter, counter.last)
  end

  return algorithm
end
