-- Moves the end of a session that is in use. A session that was revoked meanwhile stays away.
--
-- KEYS[1]  the session's hash
-- ARGV[1]  the field with its end
-- ARGV[2]  what the caller read there: of several who want to move it, the first does
-- ARGV[3]  the new end, in the same notation
-- ARGV[4]  the shortest time the key has to live from now, in milliseconds
-- returns  1 if the end was moved, else 0
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
-- Not PEXPIRE GT: that would leave a key without any TTL as it is.
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return 1
