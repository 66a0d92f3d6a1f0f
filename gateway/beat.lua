-- A worker is alive, or goes: how many are left?
--
-- KEYS[1]  sorted set: the names of workers by when their word ends, in milliseconds of Redis's own clock
-- ARGV[1]  the worker's name
-- ARGV[2]  for how many milliseconds its word holds; 0: it goes
-- ARGV[3]  how many may be in the set
-- returns  how many are alive

local time = redis.call('TIME')
local now, life = time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[2])
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' and kind ~= 'none' then
  redis.call('UNLINK', KEYS[1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if life == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], now + life, ARGV[1])
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -ARGV[3] - 1)
  redis.call('PEXPIRE', KEYS[1], life)
end
return redis.call('ZCARD', KEYS[1])
