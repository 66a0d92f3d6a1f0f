-- Write what was fetched and let the others in, at once.
-- KEYS[1] the lock; KEYS[2] the entry
-- ARGV[1] the lock's owner; ARGV[2] what to write, or nothing; ARGV[3] milliseconds until it ends: until nothing ends,
-- those who wait for the lock find in its place that there is nothing for them, which is no lock for who comes later
-- Result: 1, or 0 if the lock is not ours any more: somebody else may have fetched it meanwhile, and later than us
local holder = redis.pcall('GET', KEYS[1])
local ours = holder == ARGV[1]
if ARGV[2] ~= '' and (ours or (not holder and redis.call('EXISTS', KEYS[2]) == 0)) then
  redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
  if not ours then
    return 1
  end
end
if not ours then
  return 0
end
if ARGV[2] == '' and tonumber(ARGV[3]) > 0 then
  redis.call('SET', KEYS[1], 'nothing', 'PX', ARGV[3])
  return 1
end
return redis.call('DEL', KEYS[1])
