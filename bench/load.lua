-- wrk's requests: `users` bearer tokens in turn, and for "cold" a path never asked before.
-- args: mode ("same", "users", "cold", "post"), path
local mode, path, number, head = "same", "/", 0, {}

function init(args)
  mode, path = args[1] or mode, args[2] or path
  local body = mode == "post" and string.rep("a", 10240) or nil
  if mode == "same" or mode == "post" then
    prepared = wrk.format(body and "POST" or "GET", path, {["Content-Type"] = "text/plain"}, body)
  elseif mode == "users" then
    ring = {}
    for user = 0, 99 do
      ring[user] = wrk.format("GET", path, {["Authorization"] = string.format("Bearer token%04d", user)})
    end
  end
  start = os.time()
end

function request()
  number = number + 1
  if mode == "users" then return ring[number % 100] end
  if mode == "cold" then
    return wrk.format("GET", path .. "?n=" .. start .. "." .. number, {["Authorization"] = "Bearer token0001"})
  end
  return prepared
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format('JSON {"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "bad": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    e.status + e.connect + e.read + e.write + e.timeout))
end
