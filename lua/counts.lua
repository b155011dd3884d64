-- What the algorithms share: exact integer arithmetic on Lua's doubles, which hold integers up to 2^53.

local COUNT_MAX = 4294967295 -- counts saturate here: the largest limit (uint32), so more would change no decision
local FOREIGN = 'the key holds something other than a counter of this algorithm'
local WINDOW_MAX = 31622400000000 -- the longest window in microseconds: 366 days

-- floor(a * b / divisor) and the remainder, exactly, for a <= 2^35 and b, divisor <= 2^45 (366 days are 3.2e13 us).
-- Long multiplication by base-128 digits of `a`: each step stays below 128 * divisor + 127 * b <= 255 * 3.2e13 < 2^53.
local function multiply_divide(a, b, divisor)
  local product = a * b
  if product < 9007199254740992 then
    local rest = math.fmod(product, divisor)
    return (product - rest) / divisor, rest
  end
  local quotient, rest = 0, 0
  for exponent = 4, 0, -1 do
    local digit = math.floor(a / 128 ^ exponent) % 128
    local part = rest * 128 + digit * b
    rest = math.fmod(part, divisor)
    quotient = quotient * 128 + (part - rest) / divisor
  end
  return quotient, rest
end
