-- wrk's requests. args: mode, path, count
--   same         one request, again and again
--   post         the same with a body of 10 KB
--   users        the bearer tokens of `count` users in turn
--   fresh        `same` with a traceparent of its own on each: no two requests are the same bytes
--   fresh users  `users`, likewise
--   urls         `count` different queries in turn
--   routes       1,000 different targets in turn, which lie below `count` different routes
--   cold         a query that was never asked before
local mode, path, count, number = "same", "/", 1, -1
local next_request = {}

local function user(i) return {["Authorization"] = string.format("Bearer token%04d", i)} end

-- A request's bytes before and after the place where `MARK` stands in it.
local function around(target, headers)
  local text = wrk.format("GET", target, headers)
  local at = text:find("MARK", 1, true)
  return text:sub(1, at - 1), text:sub(at + 4)
end

local function traced(headers)
  headers["traceparent"] = "00-4bf92f3577b34da6MARK-00f067aa0ba902b7-01"
  return headers
end

local function ring(size, make)
  local made = {}
  for i = 0, size - 1 do made[i] = make(i) end
  return function() return made[number % size] end
end

next_request["same"] = function() return ring(1, function() return wrk.format("GET", path) end) end

next_request["post"] = function()
  local body = string.rep("a", 10240)
  return ring(1, function() return wrk.format("POST", path, {["Content-Type"] = "text/plain"}, body) end)
end

next_request["users"] = function()
  return ring(count, function(i) return wrk.format("GET", path, user(i)) end)
end

next_request["fresh"] = function()
  local before, after = around(path, traced({}))
  return function() return before .. string.format("%016x", number) .. after end
end

next_request["fresh users"] = function()
  local before, after = {}, {}
  for i = 0, count - 1 do before[i], after[i] = around(path, traced(user(i))) end
  return function()
    local i = number % count
    return before[i] .. string.format("%016x", number) .. after[i]
  end
end

next_request["urls"] = function()
  local before, after = around(path .. "?n=MARK", {})
  return function() return before .. number % count .. after end
end

next_request["routes"] = function()
  return ring(1000, function(i) return wrk.format("GET", "/r" .. i % count .. path .. "?n=" .. i) end)
end

next_request["cold"] = function()
  local before, after = around(path .. "?n=" .. os.time() .. ".MARK", user(1))
  return function() return before .. number .. after end
end

function init(args)
  mode, path, count = args[1], args[2], tonumber(args[3])
  make_request = next_request[mode]()
end

function request()
  number = number + 1
  return make_request()
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format('JSON {"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "max": %f, "bad": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    latency.max / 1000, e.status + e.connect + e.read + e.write + e.timeout))
end
