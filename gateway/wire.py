"""Response -> bytes: the one place that frames an answer (RFC 9112, section 6)."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from typing import Any, Final

from mypy_extensions import mypyc_attr

from gateway.request import Head, Request
from gateway.response import REASONS, Response

# Below this a copy into one piece is cheaper than a second buffer for the kernel.
ONE_PIECE_BYTES: Final = 32 << 10
MAX_STATUS_LINES: Final = 1024
NO_BODY: Final = frozenset({204, 304})

CLOSE: Final = b"Connection: close\r\n"
KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
UPGRADE: Final = b"Connection: Upgrade\r\n"
CRLF: Final = b"\r\n"
OK: Final = b"HTTP/1.1 200 OK\r\n"
PLAIN_OK: Final = (None, "OK")
VERSION_11: Final = (1, 1)

_status_lines: dict[tuple[int, str | None], bytes] = {}
_date: tuple[int, bytes] = (0, b"")


@mypyc_attr(native_class=False)
class ClientTooSlow(ConnectionError):
    """The client did not take what was sent to it within `server.send_timeout`."""


class Unsendable(ValueError):
    """A header that would split the answer; nothing was written."""


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


def send_whole(protocol: Any, request: Request | Head, response: Response, body: bytes, keep_alive: bool) -> int:
    """Write an answer that is there in one piece, at once; `drained` tells when the client has taken it.

    Args:
        protocol: aiohttp's server protocol, connected.
        keep_alive: whether the connection may serve another request afterwards.

    Returns:
        How many bytes that were.

    Raises:
        ConnectionError: the client has gone.
        Unsendable: its header has a control character.
    """
    transport = protocol.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    if response.status in NO_BODY or request.method == "HEAD":
        framing, body = _bodiless(response, body), b""
    else:
        framing = b"Content-Length: %d\r\n" % len(body)
    head = _head(request, response, framing, keep_alive)
    if len(body) <= ONE_PIECE_BYTES:
        piece = b"".join((*head, body))
        transport.write(piece)
        return len(piece)
    whole_head = b"".join(head)
    transport.writelines((whole_head, body))
    return len(whole_head) + len(body)


def _head(request: Request | Head, response: Response, framing: bytes, keep_alive: bool) -> tuple[bytes, ...]:
    """An answer's head in pieces.

    Args:
        framing: its lines that say how long the body is.

    Raises:
        Unsendable: it has a control character.
    """
    status = response.status
    line = OK if status == 200 and response.reason in PLAIN_OK else status_line(status, response.reason)
    if not keep_alive:
        framing += CLOSE
    elif request.version < VERSION_11:
        framing += KEEP_ALIVE
    if not response.has(b"date"):
        framing += date_line()
    try:
        return (line, *response.lines(), framing, CRLF)
    except ValueError as error:
        raise Unsendable(str(error)) from error


def _bodiless(response: Response, body: bytes) -> bytes:
    """The framing of an answer that ends with its head: to HEAD, 204 and 304 (RFC 9110, section 8.6)."""
    if response.status == 204:
        return b""
    length = response.length
    # A HEAD's answer that tells no length (the GET's is chunked) does not tell 0.
    if length is None and body and response.status != 304:
        length = len(body)
    return b"" if length is None else b"Content-Length: %d\r\n" % length


async def send(protocol: Any, request: Request, response: Response, *, keep_alive: bool, send_timeout: float) -> Sent:
    """Write any answer to a client's connection.

    Args:
        protocol, keep_alive: see `send_whole`.
        send_timeout: seconds a client may refuse to take a piece.

    Raises:
        ConnectionError: the client has gone, or is too slow.
        Unsendable: its header has a control character.
        Exception: what a streamed body raised; the connection cannot be used any more.
    """
    body: Any = response.body
    status = response.status
    if type(body) is not bytes and (status in NO_BODY or request.method == "HEAD"):
        await body.aclose()
        body = b""
    if type(body) is bytes:
        size = send_whole(protocol, request, response, body, keep_alive)
        if protocol._paused:
            await drained(protocol, send_timeout)
        return Sent(size, keep_alive)
    chunked = False
    if status == 101:
        framing = UPGRADE
        keep_alive = False
    elif response.length is not None:
        framing = b"Content-Length: %d\r\n" % response.length
    elif request.version < VERSION_11:
        framing = b""
        keep_alive = False
    else:
        framing = CHUNKED
        chunked = True
    try:
        # What becomes of the connection after a 101 is not HTTP's business any more.
        head = b"".join(_head(request, response, framing, keep_alive or status == 101))
    except Unsendable:
        await body.aclose()
        raise
    transport = protocol.transport
    if transport is None:
        await body.aclose()
        raise ConnectionResetError("the client has gone")
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


def send_interim(request: Request, status: int, lines: bytes) -> None:
    """Tell the client something at once, while its answer is still to come (RFC 9110, section 15.2).

    It is left out where it would do harm or no good: once the answer has begun, for an HTTP/1.0 client, for one that
    has gone, and for one that does not take what was sent to it before.

    Args:
        status: 1xx, but neither 100 nor 101.
        lines: the head's whole lines, without a control character in any.
    """
    protocol = request.connection
    if protocol is None or request.version < VERSION_11 or protocol.transport is None or protocol._paused:
        return
    protocol.transport.write(b"".join((status_line(status, None), lines, CRLF)))


async def drained(protocol: Any, send_timeout: float) -> None:
    """Until the client has taken enough of what was written.

    Raises:
        ClientTooSlow: it did not within `send_timeout` seconds.
    """
    try:
        await asyncio.wait_for(protocol._drain_helper(), send_timeout)
    except TimeoutError:
        # Closing would wait for the client to take what is buffered: for ever.
        if protocol.transport is not None:
            protocol.transport.abort()
        raise ClientTooSlow(f"the client took nothing for {send_timeout:g} s") from None
