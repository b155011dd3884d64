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
-- It is the Lua twin of sidecar/core/algorithms/decide.py, which says what is decided.
-- Why reading comes first: an error of a read (a key of another type) must leave nothing written. Why there is no
-- shebang: without one the server judges OOM, READONLY and the like at the first write only, and lets the rest of the script
-- pass once that write did; so the writes happen all or not at all, and denials need no write.
-- Time is never turned into text by Lua's tostring, which keeps 14 digits; redis.call keeps 17 of a number's.

local ALGORITHMS = {sliding_window, fixed_window, gcra, sliding_log, concurrency}
local INJECTED = ARGV[1] ~= ''

local now
if INJECTED then
  now = tonumber(ARGV[1])
else
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local made, operations = {}, nil
local charges, counters, allowed = {}, {}, true
for i = 1, #KEYS do
  local key, argument = KEYS[i], ARGV[i + 1]
  local algorithm, flags, requests, window, cost = struct.unpack('>BBI4I8I8', argument)
  made[algorithm] = made[algorithm] or ALGORITHMS[algorithm]()
  algorithm = made[algorithm]
  local more, boundaries, capacity, hold_time = nil, nil, requests, 0
  if #argument > 22 then
    operations = operations or make_operations()
    more = operations.read(argument, algorithm)
    boundaries, capacity, hold_time = more.boundaries, more.capacity, more.hold_time
  end

  local counter = counters[key]
  if not counter then
    local raw, size = redis.call('GET', key), nil
    counter, size = algorithm.read(raw, now, window, requests, capacity, boundaries)
    if raw and (#raw > size or algorithm.is_held) then
      operations = operations or make_operations()
      local shortened
      counter.reserved, shortened = operations.holds.read(raw, size + 1, now, hold_time)
      counter.dirty = counter.dirty or shortened
    end
    counters[key] = counter
  end
  if more and not counter.reserved then
    counter.reserved = operations.holds.none(now)
  end

  local charge = {
    algorithm = algorithm, counter = counter, capacity = capacity, cost = cost, flags = flags, more = more, fits = true,
    asked = 0, asked_holds = 0, used = 0,
  }
  charges[i] = charge
  if more and more.op ~= TAKE then
    operations.apply(charge)
  else
    local reserved, asked, used = counter.reserved, counter.asked + cost, algorithm.used(counter)
    local fits = used + asked <= capacity
    local shadow, count_denied = flags >= 2, flags % 2 == 1
    if reserved then
      local asked_holds = reserved.asked
      if more and more.is_held and cost > 0 then
        asked_holds = asked_holds + 1
      end
      fits = used + reserved.held + asked <= capacity and reserved.count + asked_holds <= HOLDS_MAX
      if fits or count_denied or not shadow then
        reserved.asked = asked_holds
      end
      charge.asked_holds = asked_holds
    end
    if fits or count_denied or not shadow then
      counter.asked = asked
    end
    charge.asked, charge.fits = asked, fits
    allowed = allowed and (fits or shadow)
  end
end

for i = 1, #charges do
  local charge = charges[i]
  local counter, more = charge.counter, charge.more
  if charge.cost > 0 and ((allowed and charge.fits) or charge.flags % 2 == 1) then
    if not more then
      charge.algorithm.add(counter, charge.cost)
      counter.dirty = true
    elseif more.op == TAKE then
      operations.take(charge)
    end
  end
  charge.used = charge.algorithm.used(counter)
  if counter.reserved then
    charge.used = charge.used + counter.reserved.held
  end
end

local reply = {}
for i = 1, #charges do
  local charge = charges[i]
  local algorithm, counter, capacity = charge.algorithm, charge.counter, charge.capacity
  local reserved, reset_after = counter.reserved, algorithm.reset_after(counter)
  if reserved then
    reset_after = math.max(reset_after, operations.holds.reset_after(reserved))
  end
  if charge.fits then
    reply[i] = {1, charge.used, math.max(capacity - charge.used, 0), 0, reset_after}
  else
    local retry_after = -1
    if capacity > 0 and charge.asked <= capacity then
      if not reserved then
        retry_after = algorithm.wait(counter, capacity - charge.asked)
      elseif charge.asked_holds <= HOLDS_MAX then
        local room, must_lapse = capacity - charge.asked - reserved.held, reserved.count + charge.asked_holds - HOLDS_MAX
        retry_after = operations.holds.wait(reserved, algorithm, counter, room, must_lapse)
      end
    end
    reply[i] = {0, charge.used, 0, retry_after, reset_after}
  end
  if counter.dirty then
    counter.dirty = false
    local state = algorithm.pack(counter)
    if reserved and (reserved.count > 0 or algorithm.is_held) then
      state = state .. operations.holds.pack(reserved)
    end
    if INJECTED then
      redis.call('SET', KEYS[i], state)
    else
      -- one millisecond more than needed: a counter may outlive its use, never the other way round
      redis.call('SET', KEYS[i], state, 'PX', math.ceil(reset_after / 1000) + 1)
    end
  end
end

return reply
