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

  -- counter.holds: the string of holds; counter.hold_count: how many; counter.held: the sum of their amounts

  local function expiry_of(counter, n)
    return (struct.unpack('>I8', counter.holds, HOLD * (n - 1) + 9))
  end

  local function amount_of(counter, n)
    return (struct.unpack('>I4', counter.holds, HOLD * (n - 1) + 17))
  end

  local function cut(counter, first, last)
    counter.holds = string.sub(counter.holds, 1, HOLD * (first - 1)) .. string.sub(counter.holds, HOLD * last + 1)
    counter.hold_count = counter.hold_count - (last - first + 1)
  end

  -- No hold lasts longer than one that is made now.
  local function shorten(counter)
    local latest, parts = counter.now + counter.hold_time, {}
    for n = 1, counter.hold_count do
      local name, expiry, amount = struct.unpack('>c8I8I4', counter.holds, HOLD * (n - 1) + 1)
      parts[n] = struct.pack('>c8I8I4', name, math.min(expiry, latest), amount)
    end
    counter.holds, counter.dirty = table.concat(parts), true
  end

  -- Reads what follows the algorithm's state; false if that is nothing of ours.
  function holds.read(counter, raw, from)
    local length = #raw - from + 1 - TAIL
    if length < 0 or length % HOLD ~= 0 then
      return false
    end
    local count, held = struct.unpack('>I4I8', raw, from + length)
    if count * HOLD ~= length then
      return false
    end
    counter.holds, counter.hold_count, counter.held = string.sub(raw, from, from + length - 1), count, held
    local lapsed = 0
    while lapsed < count and expiry_of(counter, lapsed + 1) <= counter.now do
      lapsed = lapsed + 1
      counter.held = counter.held - amount_of(counter, lapsed)
    end
    if lapsed > 0 then
      cut(counter, 1, lapsed)
    end
    if counter.hold_time > 0 and holds.reset_after(counter) > 2 * counter.hold_time then
      shorten(counter)
    end
    return true
  end

  function holds.put(counter, name, amount)
    amount = math.min(amount, COUNT_MAX)
    local expiry, after = counter.now + counter.hold_time, counter.hold_count
    while after > 0 and expiry_of(counter, after) > expiry do
      after = after - 1
    end
    local hold = struct.pack('>c8I8I4', name, expiry, amount)
    counter.holds = string.sub(counter.holds, 1, HOLD * after) .. hold .. string.sub(counter.holds, HOLD * after + 1)
    counter.hold_count, counter.held = counter.hold_count + 1, counter.held + amount
  end

  function holds.put_on_last(counter, amount)
    local last = counter.hold_count
    local name, expiry, old = struct.unpack('>c8I8I4', counter.holds, HOLD * (last - 1) + 1)
    local new = math.min(old + amount, COUNT_MAX)
    expiry = math.max(expiry, counter.now + counter.hold_time)
    counter.holds = string.sub(counter.holds, 1, HOLD * (last - 1)) .. struct.pack('>c8I8I4', name, expiry, new)
    counter.held = counter.held + new - old
  end

  -- Ends the first hold of a name, if there is one.
  function holds.end_named(counter, name)
    local from = 1
    while true do
      local position = string.find(counter.holds, name, from, true)
      if not position then
        return
      end
      if position % HOLD == 1 then
        local n = (position - 1) / HOLD + 1
        counter.held, counter.dirty = counter.held - amount_of(counter, n), true
        cut(counter, n, n)
        return
      end
      from = position + 1
    end
  end

  function holds.take_back(counter, amount)
    local ended = 0
    while amount > 0 and ended < counter.hold_count do
      local first = amount_of(counter, ended + 1)
      local taken = math.min(first, amount)
      amount, counter.held = amount - taken, counter.held - taken
      if taken == first then
        ended = ended + 1
      else
        local at = HOLD * ended + 16
        local left = struct.pack('>I4', first - taken)
        counter.holds = string.sub(counter.holds, 1, at) .. left .. string.sub(counter.holds, at + 5)
      end
    end
    cut(counter, 1, ended)
  end

  function holds.reset_after(counter)
    if counter.hold_count == 0 then
      return 0
    end
    return expiry_of(counter, counter.hold_count) - counter.now
  end

  -- The time until a charge passes that does not now. Each lapse makes room; the more holds have lapsed, the sooner the
  -- algorithm leaves as much. So: the least number of lapses after which it would not have to wait for any other (found by
  -- doubling, then by bisection), or else the algorithm's own time between that lapse and the one before.
  function holds.wait(counter, algorithm, room, must_lapse)
    local count, freed = counter.hold_count, {[0] = 0}
    local function wait_after(lapses)
      for n = #freed + 1, lapses do
        freed[n] = freed[n - 1] + amount_of(counter, n)
      end
      if lapses < must_lapse or room + freed[lapses] < 0 then
        return math.huge
      end
      return algorithm.wait(counter, room + freed[lapses])
    end
    local function lapse(n)
      return n > 0 and expiry_of(counter, n) - counter.now or 0
    end
    local low, high = -1, math.min(1, count) -- never enough; perhaps enough
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

  function holds.pack(counter)
    return counter.holds .. struct.pack('>I4I8', counter.hold_count, counter.held)
  end

  return holds
end
