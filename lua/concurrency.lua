-- Concurrency: an algorithm that counts nothing by itself; all that is taken is held (see holds.lua).

local function concurrency()
  local function nothing()
    return 0
  end
  local function no_state()
    return ''
  end
  return {
    size = nothing, read = nothing, used = nothing, add = nothing, take_back = nothing, wait = nothing,
    reset_after = nothing, pack = no_state, is_held = true,
  }
end
