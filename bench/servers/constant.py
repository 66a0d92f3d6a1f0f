"""Baseline: aiohttp's low-level server answering a constant. It has no router, no log and no upstream.

python -m bench.servers.constant PORT
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web

from bench.servers.upstream import SIZES

BODIES = {name: b'{"x":"' + b"a" * (size - 8) + b'"}' for name, size in SIZES.items()}


async def answer(request: web.BaseRequest) -> web.Response:
    return web.Response(body=BODIES["100k" if request.path.endswith("100k") else "1k"], content_type="application/json")


async def main() -> None:
    server = web.Server(answer, access_log=None)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", int(sys.argv[1]), backlog=2048)
    await listening.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
