-- Holds: what was reserved, and counts until it is settled or lapses. They follow the algorithm's state in the same string.
--
-- Format, 20 * n + 12 bytes, big-endian: for each hold, those that lapse first in front: name (8), expiry in microseconds
-- (8), amount (4); then the number of holds n (4) and the sum of the amounts (8). Absent where there are none, except where
-- they are all that there is (concurrency).
-- Names stay strings: as numbers they would lose digits.
-- The Lua twin of Holds in sidecar/core/algorithms/holds.py, which says why each step is right.

local HOLDS_MAX = 1000
local NO_NAME = string.rep('\0', 8)

local function make_holds()
  local holds = {}
  local HOLD, TAIL = 20, 12

  -- reserved.entries: the string of holds; .count: how many; .held: the sum of their amounts; .asked: how many more are asked

  local function expiry_of(reserved, n)
    return (struct.unpack('>I8', reserved.entries, HOLD * (n - 1) + 9))
  end

  local function amount_of(reserved, n)
    return (struct.unpack('>I4', reserved.entries, HOLD * (n - 1) + 17))
  end

  local function cut(reserved, first, last)
    local entries = reserved.entries
    reserved.entries = string.sub(entries, 1, HOLD * (first - 1)) .. string.sub(entries, HOLD * last + 1)
    reserved.count = reserved.count - (last - first + 1)
  end

  -- No hold lasts longer than one that is made now.
  local function shorten(reserved, latest)
    local parts = {}
    for n = 1, reserved.count do
      local name, expiry, amount = struct.unpack('>c8I8I4', reserved.entries, HOLD * (n - 1) + 1)
      parts[n] = struct.pack('>c8I8I4', name, math.min(expiry, latest), amount)
    end
    reserved.entries = table.concat(parts)
  end

  function holds.none(now)
    return {now = now, entries = '', count = 0, held = 0, asked = 0}
  end

  -- Reads what follows the algorithm's state, from a position on; and whether that was changed, since the clock stepped back.
  function holds.read(raw, from, now, hold_time)
    local reserved = holds.none(now)
    local length = #raw - from + 1 - TAIL
    assert(length >= 0 and length % HOLD == 0, FOREIGN)
    local count, held = struct.unpack('>I4I8', raw, from + length)
    assert(count * HOLD == length, FOREIGN)
    reserved.entries, reserved.count, reserved.held = string.sub(raw, from, from + length - 1), count, held
    local lapsed = 0
    while lapsed < count and expiry_of(reserved, lapsed + 1) <= now do
      lapsed = lapsed + 1
      reserved.held = reserved.held - amount_of(reserved, lapsed)
    end
    if lapsed > 0 then
      cut(reserved, 1, lapsed)
    end
    if hold_time > 0 and holds.reset_after(reserved) > 2 * hold_time then
      shorten(reserved, now + hold_time)
      return reserved, true
    end
    return reserved, false
  end

  function holds.put(reserved, name, amount, expiry)
    amount = math.min(amount, COUNT_MAX)
    local entries, after = reserved.entries, reserved.count
    while after > 0 and expiry_of(reserved, after) > expiry do
      after = after - 1
    end
    local hold = struct.pack('>c8I8I4', name, expiry, amount)
    reserved.entries = string.sub(entries, 1, HOLD * after) .. hold .. string.sub(entries, HOLD * after + 1)
    reserved.count, reserved.held = reserved.count + 1, reserved.held + amount
  end

  function holds.put_on_last(reserved, amount, expiry)
    local before = HOLD * (reserved.count - 1)
    local name, last, old = struct.unpack('>c8I8I4', reserved.entries, before + 1)
    local new = math.min(old + amount, COUNT_MAX)
    expiry = math.max(expiry, last)
    reserved.entries = string.sub(reserved.entries, 1, before) .. struct.pack('>c8I8I4', name, expiry, new)
    reserved.held = reserved.held + new - old
  end

  -- Ends the first hold of a name; whether there was one.
  function holds.end_named(reserved, name)
    local position = string.find(reserved.entries, name, 1, true)
    while position and position % HOLD ~= 1 do
      position = string.find(reserved.entries, name, position + 1, true)
    end
    if not position then
      return false
    end
    local n = (position - 1) / HOLD + 1
    reserved.held = reserved.held - amount_of(reserved, n)
    cut(reserved, n, n)
    return true
  end

  function holds.take_back(reserved, amount)
    local ended = 0
    while amount > 0 and ended < reserved.count do
      local first = amount_of(reserved, ended + 1)
      local taken = math.min(first, amount)
      amount, reserved.held = amount - taken, reserved.held - taken
      if taken == first then
        ended = ended + 1
      else
        local at, left = HOLD * ended + 16, struct.pack('>I4', first - taken)
        reserved.entries = string.sub(reserved.entries, 1, at) .. left .. string.sub(reserved.entries, at + 5)
      end
    end
    cut(reserved, 1, ended)
  end

  function holds.reset_after(reserved)
    if reserved.count == 0 then
      return 0
    end
    return expiry_of(reserved, reserved.count) - reserved.now
  end

  -- The time until a charge passes that does not now: it needs so much room, and the lapse of so many holds. Each lapse
  -- makes room; the more holds have lapsed, the sooner the algorithm leaves as much. So: the least number of lapses after
  -- which it would not have to wait for any other (found by doubling, then by bisection), or else the algorithm's own
  -- time between that lapse and the one before.
  function holds.wait(reserved, algorithm, counter, room, must_lapse)
    local count, freed = reserved.count, {[0] = 0}
    local function wait_after(lapses)
      for n = #freed + 1, lapses do
        freed[n] = freed[n - 1] + amount_of(reserved, n)
      end
      if lapses < must_lapse or room + freed[lapses] < 0 then
        return math.huge
      end
      return algorithm.wait(counter, room + freed[lapses])
    end
    local function lapse(n)
      return n > 0 and expiry_of(reserved, n) - reserved.now or 0
    end
    local low, high = -1, math.min(1, count) -- too few; perhaps enough
    while high < count and wait_after(high) > lapse(high) do
      low, high = high, math.min(2 * high, count)
    end
    while high - low > 1 do
      local middle = math.floor((low + high) / 2)
      if wait_after(middle) > lapse(middle) then
        low = middle
      else
        high = middle
      end
    end
    local wait = math.max(wait_after(high), lapse(high))
    if low >= 0 then
      wait = math.min(wait, math.max(wait_after(low), lapse(low)))
    end
    return wait
  end

  function holds.pack(reserved)
    return reserved.entries .. struct.pack('>I4I8', reserved.count, reserved.held)
  end

  return holds
end
