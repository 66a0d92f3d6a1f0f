-- The fetch takes longer: keep the lock.
-- KEYS[1] the lock
-- ARGV[1] the owner; ARGV[2] milliseconds from now until the lock ends by itself
-- Result: 1, or 0 if the lock is not the owner's any more
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
