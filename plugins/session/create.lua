-- Writes a session's hash together with its TTL.
--
-- KEYS[1]   the session's hash
-- ARGV[1]   its TTL in milliseconds
-- ARGV[2..] fields and values in turn
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
