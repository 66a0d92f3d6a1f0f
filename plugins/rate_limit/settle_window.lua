-- Requests that a worker has let pass while it could not ask Redis are counted, as if it had.
--
-- KEYS[i]  limit i's list, as in sliding_window.lua
-- ARGV     for each limit: its N, its period in microseconds, how many requests, and for each, oldest first, how many
--          microseconds ago it was
--
-- They belong between those that others have counted meanwhile. More than N need not be kept: the newest N decide.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local CHUNK = 1000 -- what one command takes, as Lua's stack is bounded

local at = 1
for _, key in ipairs(KEYS) do
  local limit, period, count = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local known = redis.pcall('LRANGE', key, 0, -1)
  local times = {}
  for _, text in ipairs(known.err and {} or known) do
    local one = tonumber(text)
    if one and one > now - period and one <= now + period then
      times[#times + 1] = one
    end
  end
  for number = 1, count do
    times[#times + 1] = now - tonumber(ARGV[at + 2 + number])
  end
  at = at + 3 + count
  if count > 0 then
    table.sort(times)
    redis.call('UNLINK', key)
    for first = math.max(1, #times - limit + 1), #times, CHUNK do
      local chunk = {}
      for index = first, math.min(first + CHUNK - 1, #times) do
        chunk[#chunk + 1] = string.format('%.0f', times[index])
      end
      redis.call('RPUSH', key, unpack(chunk))
    end
    redis.call('PEXPIRE', key, math.ceil(period / 1000) + 1000)
  end
end
return #KEYS
