-- What is more than taking a cost: the other operations, and holds. Made when a charge or a counter needs it.
-- The Lua twin of Account in sidecar/core/algorithms/account.py, which says what each operation does.

local TAKE, FORCE, REFUND, SETTLE = 0, 1, 2, 3

local function make_operations()
  local operations = {holds = make_holds()}
  local holds = operations.holds

  -- The part of a charge's argument that a plain TAKE does not have.
  function operations.read(argument, algorithm)
    local hold_time, capacity, op, name = struct.unpack('>I8I4Bc8', argument, 23)
    local named = name ~= NO_NAME
    return {
      op = op, name = name, hold_time = hold_time, capacity = capacity,
      is_held = algorithm.is_held or (hold_time > 0 and named),
      ends_hold = named and (op == SETTLE or (op == REFUND and hold_time > 0)),
      boundaries = #argument > 43 and string.sub(argument, 44) or nil, asked_holds = 0,
    }
  end

  function operations.take(charge)
    local counter, cost, algorithm = charge.counter, charge.cost, charge.algorithm
    local reserved, more = counter.reserved, charge.more
    local expiry = reserved.now + more.hold_time
    counter.dirty = true
    if not more.is_held then
      algorithm.add(counter, cost)
    elseif reserved.count < HOLDS_MAX then
      holds.put(reserved, more.name, cost, expiry)
    elseif algorithm.is_held then
      holds.put_on_last(reserved, cost, expiry)
    else
      algorithm.add(counter, cost)
    end
  end

  function operations.apply(charge)
    local counter, cost, algorithm, more = charge.counter, charge.cost, charge.algorithm, charge.more
    if more.op == FORCE then
      if cost > 0 then
        operations.take(charge)
      end
      return
    end
    if more.ends_hold and holds.end_named(counter.reserved, more.name) then
      counter.dirty = true
    end
    if cost == 0 then
      return
    elseif more.op == SETTLE and not algorithm.is_held then
      algorithm.add(counter, cost)
      counter.dirty = true
    elseif not more.ends_hold then
      operations.take_back(charge)
    end
  end

  -- Where there is nothing to give back nothing is written.
  function operations.take_back(charge)
    local counter, algorithm = charge.counter, charge.algorithm
    if algorithm.is_held and counter.reserved.held > 0 then
      holds.take_back(counter.reserved, charge.cost)
      counter.dirty = true
    elseif algorithm.used(counter) > 0 then
      algorithm.take_back(counter, charge.cost)
      counter.dirty = true
    end
  end

  return operations
end
