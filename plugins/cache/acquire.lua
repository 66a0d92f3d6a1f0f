-- Take the right to fetch an answer, unless another worker has it.
-- KEYS[1] the lock; KEYS[2] the entry
-- ARGV[1] the owner; ARGV[2] milliseconds until the lock ends by itself
-- Result: 1 if the lock is ours, else 0; the time in microseconds; what the entry holds now, if the lock is ours
local now = redis.call('TIME')
local time = string.format('%d%06d', now[1], now[2])
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  -- A lock without an end is none of ours; for 'nothing' see store.lua.
  if redis.call('PTTL', KEYS[1]) ~= -1 and redis.pcall('GET', KEYS[1]) ~= 'nothing' then
    return {0, time, false}
  end
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
local entry = redis.pcall('GET', KEYS[2])
if type(entry) == 'table' then
  entry = false
end
return {1, time, entry}
