"""The API behind every proxy: constant answers from a bare protocol, so that it is never what is measured.

python -m bench.servers.upstream PORT
"""

from __future__ import annotations

import asyncio
import re
import sys
from email.utils import formatdate
from typing import Final, cast

import uvloop

SIZES: Final = {"1k": 1 << 10, "100k": 100 << 10, "1m": 1 << 20, "10m": 10 << 20}
LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
SIZE: Final = re.compile(rb"^\w+ /[^ ]*?(1k|100k|1m|10m)")


def answer(size: int) -> bytes:
    body = b'{"x":"' + b"a" * (size - 8) + b'"}'
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: {formatdate(usegmt=True)}\r\n".encode()
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


ANSWERS: Final = {name.encode(): answer(size) for name, size in SIZES.items()}


class Upstream(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end]
            length = LENGTH.search(head)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < total:
                return
            self.buffer = self.buffer[total:]
            size = SIZE.match(head)
            self.transport.write(ANSWERS[size[1] if size else b"1k"])


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", int(sys.argv[1]), backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
