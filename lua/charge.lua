-- Decides all charges of one decision together: reads all counters, decides, then writes all or nothing.
--
-- KEYS[i]      the counter of charge i. The same key may come several times: its costs are summed, in order.
-- ARGV[1]      the time in microseconds since the epoch; empty in production, where the server's TIME counts.
-- ARGV[1 + i]  charge i, big-endian. 22 bytes: algorithm (1), 1 if denials are counted + 2 if it is a shadow (1), requests
--              (4), window in us (8), cost (8). Where it takes more than that, 21 bytes more: how long a hold lasts in us
--              (8), capacity (4), operation (1), name of the hold (8); then a calendar's boundaries in us (8 each).
-- Reply[i]     of charge i, five integers: allowed (0 or 1), used, remaining, retry_after in us (-1: never), reset_after
--              in us. The decision is allowed if every charge is that is not a shadow.
--
-- It is the Lua twin of sidecar/core/algorithms/decide.py and account.py, which say what is decided.
-- Why reading comes first: an error of a read (a key of another type) must leave nothing written. Why there is no
-- shebang: without one the server judges OOM, READONLY and the like at the first write only, and lets the rest of the script
-- pass once that write did; so the writes happen all or not at all, and denials need no write.
-- Time is never turned into text by Lua's tostring, which keeps 14 digits.

local ALGORITHMS = {sliding_window, fixed_window, gcra, sliding_log, concurrency}
local TAKE, FORCE, REFUND, SETTLE = 0, 1, 2, 3
local INJECTED = ARGV[1] ~= ''

local now
if INJECTED then
  now = tonumber(ARGV[1])
else
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local made, holds = {}, nil

local function need_holds()
  holds = holds or make_holds()
end

local function read_charge(argument)
  local algorithm, flags, requests, window, cost = struct.unpack('>BBI4I8I8', argument)
  local charge = {
    counter = nil, algorithm = nil, requests = requests, window = window, cost = cost, count_denied = flags % 2 == 1,
    shadow = flags >= 2, capacity = requests, op = TAKE, name = NO_NAME, hold_time = 0, is_held = false,
    boundaries = '', fits = true, asked = 0, asked_holds = 0, used = 0,
  }
  made[algorithm] = made[algorithm] or ALGORITHMS[algorithm]()
  charge.algorithm = made[algorithm]
  if #argument > 22 then
    charge.hold_time, charge.capacity, charge.op, charge.name = struct.unpack('>I8I4Bc8', argument, 23)
    charge.boundaries = string.sub(argument, 44)
    charge.is_held = charge.algorithm.is_held or (charge.hold_time > 0 and charge.name ~= NO_NAME)
    need_holds()
  end
  return charge
end

local function open(key, charge)
  local algorithm = charge.algorithm
  local counter = {
    now = now, at = now, window = charge.window, requests = charge.requests, capacity = charge.capacity, start = 0,
    current = 0, previous = 0, hold_time = charge.hold_time, boundaries = charge.boundaries, holds = '', hold_count = 0,
    held = 0, asked = 0, asked_holds = 0, dirty = false,
  }
  local raw = redis.call('GET', key)
  if raw then
    local size = algorithm.size(raw)
    if #raw ~= size or algorithm.is_held then
      need_holds()
      assert(holds.read(counter, raw, size + 1), 'the key holds something other than a counter of this algorithm')
    end
  end
  algorithm.read(counter, raw)
  return counter
end

local function judge(charge)
  local counter = charge.counter
  local asked, asked_holds = counter.asked + charge.cost, counter.asked_holds
  local used = charge.algorithm.used(counter) + counter.held
  charge.fits = used + asked <= charge.capacity
  if charge.is_held and charge.cost > 0 then
    asked_holds = asked_holds + 1
  end
  if counter.hold_count + asked_holds > HOLDS_MAX then
    charge.fits = false
  end
  if charge.fits or charge.count_denied or not charge.shadow then
    counter.asked, counter.asked_holds = asked, asked_holds
  end
  charge.asked, charge.asked_holds = asked, asked_holds
end

local function take(charge)
  local counter, cost = charge.counter, charge.cost
  counter.dirty = true
  if not charge.is_held then
    charge.algorithm.add(counter, cost)
  elseif counter.hold_count < HOLDS_MAX then
    holds.put(counter, charge.name, cost)
  elseif charge.algorithm.is_held then
    holds.put_on_last(counter, cost)
  else
    charge.algorithm.add(counter, cost)
  end
end

local function apply(charge)
  local counter, cost, op = charge.counter, charge.cost, charge.op
  if op == FORCE then
    if cost > 0 then
      take(charge)
    end
    return
  end
  local ends_hold = charge.name ~= NO_NAME and (op == SETTLE or charge.hold_time > 0)
  if ends_hold then
    holds.end_named(counter, charge.name)
  end
  if cost == 0 then
    return
  end
  if charge.algorithm.is_held then
    if not ends_hold then
      holds.take_back(counter, cost)
      counter.dirty = true
    end
  elseif op == SETTLE then
    charge.algorithm.add(counter, cost)
    counter.dirty = true
  elseif not ends_hold then
    charge.algorithm.take_back(counter, cost)
    counter.dirty = true
  end
end

local function retry_after(charge)
  local counter = charge.counter
  if charge.requests == 0 or charge.asked > charge.capacity or charge.asked_holds > HOLDS_MAX then
    return -1
  end
  local room = charge.capacity - charge.asked - counter.held
  if counter.hold_count == 0 then
    return charge.algorithm.wait(counter, room)
  end
  return holds.wait(counter, charge.algorithm, room, counter.hold_count + charge.asked_holds - HOLDS_MAX)
end

local function write(key, charge, reset_after)
  local counter, state = charge.counter, charge.algorithm.pack(charge.counter)
  if counter.hold_count > 0 or charge.algorithm.is_held then
    state = state .. holds.pack(counter)
  end
  if INJECTED then
    redis.call('SET', key, state)
  else
    -- one millisecond more than needed: a counter may outlive its use, never the other way round
    redis.call('SET', key, state, 'PX', string.format('%.0f', math.ceil(reset_after / 1000) + 1))
  end
  counter.dirty = false
end

local charges, counters, allowed = {}, {}, true
for i, key in ipairs(KEYS) do
  local charge = read_charge(ARGV[i + 1])
  local counter = counters[key]
  if not counter then
    counter = open(key, charge)
    counters[key] = counter
  end
  charge.counter = counter
  charges[i] = charge
  if charge.op == TAKE then
    judge(charge)
    allowed = allowed and (charge.fits or charge.shadow)
  else
    apply(charge)
  end
end

for _, charge in ipairs(charges) do
  if charge.op == TAKE and charge.cost > 0 and ((allowed and charge.fits) or charge.count_denied) then
    take(charge)
  end
  charge.used = charge.algorithm.used(charge.counter) + charge.counter.held
end

local reply = {}
for i, charge in ipairs(charges) do
  local counter = charge.counter
  local reset_after = charge.algorithm.reset_after(counter)
  if counter.hold_count > 0 then
    reset_after = math.max(reset_after, holds.reset_after(counter))
  end
  if charge.fits then
    reply[i] = {1, charge.used, math.max(charge.capacity - charge.used, 0), 0, reset_after}
  else
    reply[i] = {0, charge.used, 0, retry_after(charge), reset_after}
  end
  if counter.dirty then
    write(KEYS[i], charge, reset_after)
  end
end

return reply
