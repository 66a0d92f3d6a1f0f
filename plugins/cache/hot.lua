-- Add one worker's counts to the ranking of the fleet.
-- KEYS[1] the ranking; KEYS[2] what its names stand for
-- ARGV[1] milliseconds that a ranking is counted for; ARGV[2] how many names it has at most;
-- ARGV[3] how many are wanted; then in turn names, counts, and what the names stand for
-- Result: milliseconds since the ranking began; the first names with their counts
local kinds = {'zset', 'hash'}
for i = 1, 2 do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= kinds[i] and kind ~= 'none' then
    redis.call('DEL', KEYS[i])
  end
end
local room = ARGV[2] - redis.call('HLEN', KEYS[2])
for i = 4, #ARGV, 3 do
  redis.call('ZINCRBY', KEYS[1], ARGV[i + 1], ARGV[i])
  if room > 0 and ARGV[i + 2] ~= '' then
    room = room - redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 2])
  end
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[1], 'NX')
redis.call('PEXPIRE', KEYS[2], ARGV[1], 'NX')
local left = redis.call('PTTL', KEYS[1])
return {ARGV[1] - math.max(left, 0), redis.call('ZRANGE', KEYS[1], 0, ARGV[3] - 1, 'REV', 'WITHSCORES')}
