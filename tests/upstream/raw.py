"""An upstream and a client that speak bytes, to see exactly what passes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from tests.harness import listening_socket

Talk = Callable[["Conversation"], Awaitable[None]]

# Small, so that a side that does not read is felt by the other one soon.
KERNEL_BUFFER = 64 << 10

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Conversation:
    """One connection to a raw upstream."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    heads: list[bytes]

    async def head(self) -> bytes:
        """The next request's head; its body, if any, is still to be read."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        return head

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


@dataclass
class RawUpstream:
    port: int = 0
    scheme: str = "http"
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a connection has ended."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}"


@contextlib.asynccontextmanager
async def raw_upstream(talk: Talk, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawUpstream]:
    """Run `talk` for each connection; it is closed when `talk` returns."""
    upstream = RawUpstream(scheme="https" if tls else "http")
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.connections += 1
        tasks.add(asyncio.current_task())
        try:
            await talk(Conversation(reader, writer, upstream.connections, upstream.heads))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            upstream.lost.set()
            writer.close()

    listening = listening_socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER)
    server = await asyncio.start_server(connected, sock=listening, ssl=tls)
    upstream.port = listening.getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answering(answer: bytes) -> Talk:
    """Answer each request without a body the same, on kept connections."""

    async def talk(peer: Conversation) -> None:
        while True:
            await peer.head()
            await peer.send(answer)

    return talk


@contextlib.asynccontextmanager
async def raw_client(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    connected = socket.socket()
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER)
    connected.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connected)
    try:
        yield reader, writer
    finally:
        if writer.transport.get_write_buffer_size():
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def exchange(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Send one request and read its answer until the gateway closes: (head, body as framed)."""
    async with raw_client(port) as (reader, writer):
        writer.write(request)
        async with asyncio.timeout(5):
            received = await reader.read(-1)
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


def lines_of(head: bytes) -> list[bytes]:
    return [line for line in head.split(b"\r\n") if line]
