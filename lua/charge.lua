-- Decides all charges of one decision together: reads all counters, decides, then writes all or nothing.
--
-- KEYS[i]      the counter of charge i. The same key may come several times: its costs are summed, in order.
-- ARGV[1]      the time in microseconds since the epoch; empty in production, where the server's TIME counts.
-- ARGV[1 + i]  charge i, 22 bytes, big-endian: algorithm (1), count_denied (1), requests (4), window in us (8), cost (8)
-- Reply[i]     of charge i, five integers: allowed (0 or 1), used, remaining, retry_after in us (-1: never), reset_after
--              in us. The decision is allowed if every charge is.
--
-- Why reading comes first: an error of a read (a key of another type) must leave nothing written. Why there is no
-- shebang: without one the server judges OOM, READONLY and the like at the first write only, and lets the rest of the script
-- pass once that write did; so the writes happen all or not at all, and denials need no write.
-- Time is never turned into text by Lua's tostring, which keeps 14 digits.

local ALGORITHMS = {sliding_window, fixed_window}

local now
if ARGV[1] == '' then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
else
  now = tonumber(ARGV[1])
end

local charges, counters, allowed = {}, {}, true
for i, key in ipairs(KEYS) do
  local algorithm, count_denied, requests, window, cost = struct.unpack('>BBI4I8I8', ARGV[i + 1])
  algorithm = ALGORITHMS[algorithm]
  local counter = counters[key]
  if not counter then
    counter = algorithm.read(redis.call('GET', key), now, window)
    counters[key] = counter
  end
  counter.asked = counter.asked + cost
  local fits = algorithm.used(counter) + counter.asked <= requests
  allowed = allowed and fits
  charges[i] = {
    algorithm = algorithm, counter = counter, requests = requests, cost = cost, asked = counter.asked,
    fits = fits, count_denied = count_denied == 1, used = 0,
  }
end

for _, charge in ipairs(charges) do
  local counter = charge.counter
  if charge.cost > 0 and (allowed or charge.count_denied) then
    counter.current = math.min(counter.current + charge.cost, COUNT_MAX)
    counter.dirty = true
  end
  charge.used = charge.algorithm.used(counter)
end

local reply = {}
for i, charge in ipairs(charges) do
  local algorithm, counter, requests = charge.algorithm, charge.counter, charge.requests
  local reset_after = algorithm.reset_after(counter)
  if charge.fits then
    reply[i] = {1, charge.used, math.max(requests - charge.used, 0), 0, reset_after}
  elseif charge.asked > requests or requests == 0 then
    reply[i] = {0, charge.used, 0, -1, reset_after}
  else
    reply[i] = {0, charge.used, 0, algorithm.retry_after(counter, requests, charge.asked), reset_after}
  end
  if counter.dirty then
    counter.dirty = false
    if ARGV[1] == '' then
      -- one millisecond more than needed: a counter may outlive its use, never the other way round
      redis.call('SET', KEYS[i], algorithm.pack(counter), 'PX', string.format('%.0f', math.ceil(reset_after / 1000) + 1))
    else
      redis.call('SET', KEYS[i], algorithm.pack(counter))
    end
  end
end

return reply
