"""Response -> bytes: the one place that frames an answer (RFC 9112, section 6)."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from typing import Any, Final

from gateway.request import Request
from gateway.response import REASONS, Response

# Below this a copy into one piece is cheaper than a second buffer for the kernel.
ONE_PIECE_BYTES: Final = 32 << 10
MAX_STATUS_LINES: Final = 1024
NO_BODY: Final = frozenset({204, 304})

CLOSE: Final = b"Connection: close\r\n"
KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"

_status_lines: dict[tuple[int, str | None], bytes] = {}
_date: tuple[int, bytes] = (0, b"")


class ClientTooSlow(ConnectionError):
    """The client did not take what was sent to it within `server.send_timeout`."""


def status_line(status: int, reason: str | None) -> bytes:
    """`HTTP/1.1 200 OK` with its CRLF."""
    line = _status_lines.get((status, reason))
    if line is None:
        text = REASONS.get(status, "") if reason is None else reason
        line = f"HTTP/1.1 {status} {text}\r\n".encode("utf-8", "surrogateescape")
        if len(_status_lines) < MAX_STATUS_LINES:
            _status_lines[status, reason] = line
    return line


def date_line() -> bytes:
    """A `Date` field for now; made once a second."""
    global _date
    now = int(time.time())
    if now != _date[0]:
        _date = (now, b"Date: " + formatdate(now, usegmt=True).encode() + b"\r\n")
    return _date[1]


async def send(protocol: Any, request: Request, response: Response, *, keep_alive: bool, send_timeout: float) -> Sent:
    """Write an answer to a client's connection.

    Args:
        protocol: aiohttp's server protocol, connected.
        keep_alive: whether the connection may serve another request afterwards.
        send_timeout: seconds a client may refuse to take a piece.

    Raises:
        ConnectionError: the client has gone, or is too slow.
        Exception: what a streamed body raised; the connection cannot be used any more.
    """
    body: Any = response.body
    status = response.status
    old_client = request.version < (1, 1)
    framing = b""
    chunked = False
    if status == 101 or status in NO_BODY or request.method == "HEAD":
        if status not in (101, 204):
            length = response.length
            # A HEAD's answer that tells no length (the GET's is chunked) does not tell 0.
            if length is None and type(body) is bytes and body and status != 304:
                length = len(body)
            if length is not None:
                framing = b"Content-Length: %d\r\n" % length
        if type(body) is not bytes and status != 101:
            await body.aclose()
            body = b""
        elif type(body) is bytes:
            body = b""
    elif type(body) is bytes:
        framing = b"Content-Length: %d\r\n" % len(body)
    elif response.length is not None:
        framing = b"Content-Length: %d\r\n" % response.length
    elif old_client:
        keep_alive = False
    else:
        framing = CHUNKED
        chunked = True
    if status == 101:
        framing = b"Connection: Upgrade\r\n"
        keep_alive = False
    elif not keep_alive:
        framing += CLOSE
    elif old_client:
        framing += KEEP_ALIVE
    if not response.has(b"date"):
        framing += date_line()
    head = b"".join((status_line(status, response.reason), response.head(), framing, b"\r\n"))
    transport = protocol.transport
    if transport is None:
        if type(body) is not bytes:
            await body.aclose()
        raise ConnectionResetError("the client has gone")
    if type(body) is bytes:
        size = len(head) + len(body)
        if not body:
            transport.write(head)
        elif len(body) <= ONE_PIECE_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        if protocol._paused:
            await drained(protocol, send_timeout)
        return Sent(size, keep_alive)
    if status == 101:
        transport.write(head)
        await body.run(protocol)
        return Sent(len(head), False)
    return Sent(await _send_stream(protocol, head, body, chunked, send_timeout), keep_alive)


class Sent:
    """What went out, and whether the connection may serve another request."""

    __slots__ = ("keep_alive", "size")

    def __init__(self, size: int, keep_alive: bool) -> None:
        self.size = size
        self.keep_alive = keep_alive


async def _send_stream(protocol: Any, head: bytes, body: Any, chunked: bool, send_timeout: float) -> int:
    size = len(head)
    try:
        # The head does not wait for the first piece: an event stream's may take minutes to come.
        protocol.transport.write(head)
        async for piece in body:
            if not piece:
                continue
            transport = protocol.transport
            if transport is None:
                raise ConnectionResetError("the client has gone")
            if chunked:
                transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
            else:
                transport.write(piece)
            size += len(piece)
            if protocol._paused:
                await drained(protocol, send_timeout)
        if chunked and protocol.transport is not None:
            protocol.transport.write(b"0\r\n\r\n")
    finally:
        await body.aclose()
    return size


async def drained(protocol: Any, send_timeout: float) -> None:
    """Until the client has taken enough of what was written.

    Raises:
        ClientTooSlow: it did not within `send_timeout` seconds.
    """
    try:
        await asyncio.wait_for(protocol._drain_helper(), send_timeout)
    except TimeoutError:
        raise ClientTooSlow(f"the client took nothing for {send_timeout:g} s") from None
