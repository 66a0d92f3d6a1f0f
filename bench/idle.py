"""Clients that are there and ask for nothing: opens connections, sends one request on each, and keeps them.

python -m bench.idle PORT PATH COUNT

Prints `ready` once each has its answer, and holds them until standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final, cast

import uvloop

AT_ONCE: Final = 100


class Client(asyncio.Protocol):
    def __init__(self, request: bytes, answered: asyncio.Future[None]) -> None:
        self._request = request
        self._answered = answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._answered.done():
            self._answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answered.done():
            self._answered.set_exception(exc or ConnectionResetError("closed without an answer"))


async def main() -> None:
    port, path, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    for begin in range(0, count, AT_ONCE):
        answers: list[asyncio.Future[None]] = [loop.create_future() for _ in range(min(AT_ONCE, count - begin))]
        for answered in answers:
            await loop.create_connection(lambda answered=answered: Client(request, answered), "127.0.0.1", port)  # type: ignore[misc]
        await asyncio.gather(*answers)
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main())
