-- A new generation of a tag.
-- KEYS[1] the tag's generation
-- ARGV[1] milliseconds it is kept
-- Result: its value, which tells when this was: what was asked for before is not stored with the tag
local now = redis.call('TIME')
local value = string.format('purged-%d%06d', now[1], now[2])
-- A Redis that is full refuses a script's first write if it takes memory, not what follows.
redis.call('UNLINK', KEYS[1])
redis.call('SET', KEYS[1], value, 'PX', ARGV[1])
return value
