-- Concurrency: an algorithm that counts nothing by itself; all that is taken is held (see holds.lua).

local function concurrency()
  local function nothing()
    return 0
  end
  return {
    read = function() return {asked = 0, dirty = false}, 0 end,
    used = nothing, add = nothing, take_back = nothing, wait = nothing, reset_after = nothing,
    pack = function() return '' end,
    is_held = true,
  }
end
