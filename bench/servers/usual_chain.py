"""Baseline: session, blacklist, limit and cached body the usual way, `redis.asyncio` and one await per plugin.

python -m bench.servers.usual_chain PORT REDIS_PORT
"""

from __future__ import annotations

import asyncio
import sys

import redis.asyncio
import uvloop
from aiohttp import web

from bench.servers.constant import BODIES

COUNT = """local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return count"""


async def main() -> None:
    client = redis.asyncio.Redis(port=int(sys.argv[2]), max_connections=256)
    count = client.register_script(COUNT)

    async def answer(request: web.BaseRequest) -> web.Response:
        token = request.headers.get("Authorization", "")[7:]
        session = await client.hgetall(f"usual:session:{token}")
        if not session:
            return web.Response(status=401)
        if await client.exists(f"usual:blacklist:{token}"):
            return web.Response(status=401)
        user = session[b"userId"].decode()
        used = await count(keys=[f"usual:rate:{user}"], args=[60_000])
        if used > 1_000_000_000:
            return web.Response(status=429)
        key = f"usual:cache:{user}:{request.path_qs}"
        body = await client.get(key)
        if body is None:
            body = BODIES["1k"]
            await client.set(key, body, ex=3600)
        headers = {"X-RateLimit-Limit": "1000000000", "X-RateLimit-Remaining": str(1_000_000_000 - used)}
        return web.Response(body=body, content_type="application/json", headers=headers)

    server = web.Server(answer, access_log=None)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", int(sys.argv[1]))
    await listening.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
