-- Change the soft part of a generation: what was made under it stays, but is no longer fresh.
-- KEYS[1] the generation
-- ARGV[1] milliseconds that a tag's is kept; ARGV[2] a hard part that was never used, for a tag without a generation;
-- nothing: what has none is left so, and keeps its time to live
-- Result: its value, or false
local value = redis.pcall('GET', KEYS[1])
if type(value) ~= 'string' or #value == 0 or #value > 64 then
  value = ARGV[2]
end
if value == '' then
  return false
end
-- The part tells when this was: a tag must be able to tell it to what was asked for before.
local now = redis.call('TIME')
local soft = now[1] * 1000000 + now[2]
local hard, last = string.match(value, '^([^~]*)~?(%d*)')
if (tonumber(last) or 0) >= soft then
  soft = last + 1
end
value = string.format('%s~%.0f', hard, soft)
local left = ARGV[2] == '' and redis.call('PTTL', KEYS[1]) or -1
if left < 0 then
  left = ARGV[1]
end
-- A Redis that is full refuses a script's first write if it takes memory, not what follows.
redis.call('UNLINK', KEYS[1])
if #value <= 64 then
  redis.call('SET', KEYS[1], value, 'PX', math.max(1, left))
end
return value
