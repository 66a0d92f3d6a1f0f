"""Baseline: the chain of `bench.toml` the usual way, `redis.asyncio` and one await per plugin.

python -m bench.servers.usual_chain PORT REDIS_PORT UPSTREAM_PORT

The same work as the gateway's chain: a request id, a blacklist, a session, a token bucket for each user, a body cached
for each user, and the fields that tell of them. It has no access log, no metrics and no mirror.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from typing import Any

import aiohttp
import redis.asyncio
import uvloop
from aiohttp import web

LIMIT = 1_000_000
PERIOD = 1_000_000
TTL = 3600

TAKE = """local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local rate, period = tonumber(ARGV[1]), tonumber(ARGV[2])
local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = math.min(rate, (tonumber(bucket[1]) or rate) + (now - (tonumber(bucket[2]) or now)) * rate / period)
local allowed = tokens >= 1
if allowed then tokens = tokens - 1 end
redis.call('HSET', KEYS[1], 'tokens', tokens, 'at', now)
redis.call('PEXPIRE', KEYS[1], math.ceil(period / 1000) + 1000)
return { allowed and 1 or 0, math.floor(tokens) }"""


async def main() -> None:
    # Its stubs know both kinds of replies, with and without decode_responses.
    client: Any = redis.asyncio.Redis(port=int(sys.argv[2]), max_connections=1024)
    take = client.register_script(TAKE)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar())
    upstream = f"http://127.0.0.1:{sys.argv[3]}"
    numbers = itertools.count()

    async def answer(request: web.BaseRequest) -> web.Response:
        headers = {"X-Request-Id": f"usual-{next(numbers):x}"}
        token = request.headers.get("Authorization", "")[7:]
        if not token or await client.exists(f"usual:blacklist:{token}"):
            return web.Response(status=401, headers=headers)
        found = await client.hgetall(f"usual:session:{token}")
        if not found or float(found[b"expiresAt"]) < time.time():
            return web.Response(status=401, headers=headers)
        user = found[b"userId"].decode()
        allowed, left = await take(keys=[f"usual:rate:{user}"], args=[LIMIT, PERIOD])
        headers |= {"X-RateLimit-Limit": str(LIMIT), "X-RateLimit-Remaining": str(left), "X-RateLimit-Reset": "1"}
        if not allowed:
            return web.Response(status=429, headers=headers)
        key = f"usual:cache:{user}:{request.path_qs}"
        body = await client.get(key)
        headers["X-Cache"] = "MISS" if body is None else "HIT"
        if body is None:
            async with session.get(upstream + request.path_qs) as fetched:
                body = await fetched.read()
            await client.set(key, body, ex=TTL)
        return web.Response(body=body, content_type="application/json", headers=headers)

    server = web.Server(answer, access_log=None)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", int(sys.argv[1]), backlog=2048)
    await listening.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
