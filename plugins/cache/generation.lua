-- A generation as it is, or a new one.
-- KEYS[1] the generation
-- ARGV[1] a new value that was never used; ARGV[2] milliseconds it is kept
-- Result: its value
-- What no generation looks like is none: it is overwritten.
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'string' and #value > 0 and #value <= 64 then
  if redis.call('PTTL', KEYS[1]) < ARGV[2] / 2 then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
  return value
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
