-- Write what was fetched and let the others in, at once.
-- KEYS[1] the lock; KEYS[2] the entry
-- ARGV[1] the lock's owner; ARGV[2] what to write, or nothing; ARGV[3] milliseconds until it ends
-- Result: 1 if the lock was ours, else 0
if ARGV[2] ~= '' then
  redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
end
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
