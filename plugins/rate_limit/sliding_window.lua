-- Exact sliding windows: at most N requests in any period, for all limits together or not at all.
--
-- KEYS[i]      limit i's list of the times at which its requests were counted, oldest first
-- ARGV[2i-1]   N of limit i
-- ARGV[2i]     its period in microseconds
-- returns      1 (allowed and counted) or 0 (refused, nothing counted);
--              the tightest limit: its i, how many more requests it allows, microseconds until it allows one more;
--              then, if refused, the i of each limit that refuses
--
-- Times are microseconds of Redis's own clock. An integer in a list takes about 11 bytes, and equal times may
-- stand side by side; a sorted set would take ten times as much and need a unique name for each.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- The time at an index. What is no time, or is further ahead than a period, is garbage and long gone.
local function time_at(key, index, period)
  local at = tonumber(redis.call('LINDEX', key, index))
  if at and at <= now + period then
    return at
  end
  return 0
end

-- How many requests have left the window, and the time of the first one that has not.
-- Mostly that is none or one; else the steps grow, then halve.
local function gone(key, length, period)
  local edge = now - period
  local low, high, step, oldest = -1, length, 1, now
  while high - low > 1 do
    local index = math.min(low + step, math.floor((low + high) / 2))
    local at = time_at(key, index, period)
    if at <= edge then
      low, step = index, index + 1
    else
      high, oldest = index, at
    end
  end
  return high, oldest
end

local lengths, frees, refusing = {}, {}, {}
for i, key in ipairs(KEYS) do
  local limit, period = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local length = redis.pcall('LLEN', key)
  if type(length) ~= 'number' then
    redis.call('UNLINK', key)
    length = 0
  end
  local count, oldest = gone(key, length, period)
  if count > 0 then
    redis.call('LTRIM', key, count, -1)
    length = length - count
  end
  if length > limit then
    oldest = time_at(key, length - limit, period) -- the limit was higher before
  end
  lengths[i], frees[i] = length, oldest + period - now
  if length >= limit then
    refusing[#refusing + 1] = i
  end
end

local allowed = #refusing == 0
local tightest, remaining, wait
for i, key in ipairs(KEYS) do
  if allowed then
    redis.call('RPUSH', key, string.format('%.0f', now))
    -- A second more than needed: Redis may reckon the end of a key from a slightly earlier time.
    redis.call('PEXPIRE', key, math.ceil(ARGV[2 * i] / 1000) + 1000)
    lengths[i] = lengths[i] + 1
  end
  local left = math.max(0, ARGV[2 * i - 1] - lengths[i])
  if not tightest or left < remaining or (left == remaining and frees[i] > wait) then
    tightest, remaining, wait = i, left, frees[i]
  end
end
return { allowed and 1 or 0, tightest, remaining, wait, unpack(refusing) }
