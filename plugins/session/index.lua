-- Notes a session in the index of its user's sessions, which holds a bounded number of live ones.
--
-- KEYS[1]  the index: a sorted set of stored session ids by the time they end
-- ARGV[1]  the stored session id
-- ARGV[2]  when it ends, in seconds since 1970
-- ARGV[3]  now, likewise
-- ARGV[4]  how many sessions a user may have
-- returns  the ids that had to make room; their sessions are to be ended
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' and kind ~= 'none' then
  redis.call('DEL', KEYS[1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
local ended = {}
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  local over = redis.call('ZCARD', KEYS[1]) + 1 - tonumber(ARGV[4])
  if over > 0 then
    ended = redis.call('ZPOPMIN', KEYS[1], over)
  end
end
redis.call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[1])
-- A minute longer than the last session, so that the index never ends before what it lists.
local last = tonumber(redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2])
redis.call('PEXPIRE', KEYS[1], math.max(1000, math.ceil((last - tonumber(ARGV[3]) + 60) * 1000)))
local ids = {}
for position = 1, #ended, 2 do
  ids[#ids + 1] = ended[position]
end
return ids
