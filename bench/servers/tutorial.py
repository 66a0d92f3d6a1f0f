"""Baseline: the reverse proxy of every tutorial, `web.Server` and `ClientSession`, streaming both ways.

python -m bench.servers.tutorial PORT UPSTREAM_PORT
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "content-length"}
STREAM_OVER = 1 << 20


async def main() -> None:
    connector = aiohttp.TCPConnector(limit=0)
    session = aiohttp.ClientSession(connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
    upstream = f"http://127.0.0.1:{sys.argv[2]}"

    async def forward(request: web.BaseRequest) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        data = await request.read() if request.can_read_body else None
        async with session.request(request.method, upstream + request.path_qs, headers=headers, data=data) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            if (answer.content_length or 0) <= STREAM_OVER:
                return web.Response(status=answer.status, headers=kept, body=await answer.read())
            response = web.StreamResponse(status=answer.status, headers=kept)
            response.content_length = answer.content_length
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            return response

    server = web.Server(forward, access_log=None)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", int(sys.argv[1]), backlog=2048)
    await listening.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
