-- Add one worker's counts to the ranking of the fleet.
-- KEYS[1] the ranking
-- ARGV[1] milliseconds that a ranking is counted for; ARGV[2] how many names it has at most;
-- ARGV[3] how many are wanted; then names and counts in turn
-- Result: milliseconds since the ranking began; the first names with their counts
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' and kind ~= 'none' then
  redis.call('DEL', KEYS[1])
end
for i = 4, #ARGV, 2 do
  redis.call('ZINCRBY', KEYS[1], ARGV[i + 1], ARGV[i])
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[1], 'NX')
local left = redis.call('PTTL', KEYS[1])
return {ARGV[1] - math.max(left, 0), redis.call('ZRANGE', KEYS[1], 0, ARGV[3] - 1, 'REV', 'WITHSCORES')}
