-- Token buckets: each holds at most `capacity`, gains N per period, and gives one per request, all or none of them.
--
-- KEYS[i]      limit i's bucket: "LEVEL TIME", the level at a time; absent, the bucket is full
-- ARGV[3i-2]   N of limit i
-- ARGV[3i-1]   its period in microseconds
-- ARGV[3i]     its capacity
-- returns      1 (allowed and counted) or 0 (refused, nothing counted);
--              the tightest limit: its i, how many more requests it allows, microseconds until it allows one more;
--              then, if refused, the i of each limit that refuses
--
-- Times are microseconds of Redis's own clock. A token is worth `period` units of level and a microsecond N of them,
-- so that everything is a whole number below 2^53 and no rounding gives anything away.

-- It runs for each request: what costs less is written so, such as numbers that Lua itself makes of ARGV.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local count, levels, refusing = #KEYS, {}, {}
for i = 1, count do
  local rate, period = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1])
  local level = ARGV[3 * i] * period
  local state = redis.pcall('GET', KEYS[i])
  local stored, since = string.match(type(state) == 'string' and state or '', '^(%d+) (%d+)$')
  since = tonumber(since)
  -- What cannot be read, or is further ahead than a period, is garbage: SET replaces it.
  if since and since <= now + period then
    level = math.min(level, stored + math.max(0, now - since) * rate)
  end
  levels[i] = level
  if level < period then
    refusing[#refusing + 1] = i
  end
end

local allowed = #refusing == 0
local tightest, remaining, wait
for i = 1, count do
  local rate, period, level = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), levels[i]
  if allowed then
    level = level - period
    -- Until it is full again, when it need not be there; a second more, as Redis may reckon from an earlier time.
    local ttl = math.ceil((ARGV[3 * i] * period - level) / rate / 1000) + 1000
    redis.call('SET', KEYS[i], string.format('%d %d', level, now), 'PX', ttl)
  end
  local part = level % period
  local left, grows = (level - part) / period, math.ceil((period - part) / rate)
  if not tightest or left < remaining or (left == remaining and grows > wait) then
    tightest, remaining, wait = i, left, grows
  end
end
return { allowed and 1 or 0, tightest, remaining, wait, unpack(refusing) }
