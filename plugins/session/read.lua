-- Reads a session together with what is left of its key's TTL: one moment's answer to both.
--
-- KEYS[1]  the session's hash
-- returns  the TTL in milliseconds (-1: none, -2: no key), and fields and values in turn
return {redis.call('PTTL', KEYS[1]), redis.call('HGETALL', KEYS[1])}
