-- Tokens that a worker has given away while it could not ask Redis are taken out, as far as there are any.
--
-- KEYS[i]  limit i's bucket: token_bucket.lua says what is in it, and must go on saying the same
-- ARGV     for each limit: its N, its period in microseconds, its capacity, and how many tokens

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

for i, key in ipairs(KEYS) do
  local rate, period = tonumber(ARGV[4 * i - 3]), tonumber(ARGV[4 * i - 2])
  local capacity, tokens = tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i])
  local level = capacity * period
  local state = redis.pcall('GET', key)
  local stored, since = string.match(type(state) == 'string' and state or '', '^(%d+) (%d+)$')
  since = tonumber(since)
  if since and since <= now + period then
    level = math.min(level, tonumber(stored) + math.max(0, now - since) * rate)
  end
  if tokens > 0 then
    level = math.max(0, level - tokens * period)
    local ttl = math.ceil((capacity * period - level) / rate / 1000) + 1000
    redis.call('SET', key, string.format('%.0f %.0f', level, now), 'PX', string.format('%.0f', ttl))
  end
end
return #KEYS
