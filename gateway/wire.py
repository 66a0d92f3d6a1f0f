"""Response -> bytes: the one place that frames an answer (RFC 9112, section 6)."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any, Final

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
    head = head_of(request, response, framing, keep_alive)
    if len(body) <= ONE_PIECE_BYTES:
        piece = b"".join((*head, body))
        transport.write(piece)
        return len(piece)
    whole_head = b"".join(head)
    transport.writelines((whole_head, body))
    return len(whole_head) + len(body)


def head_of(request: Request | Head, response: Response, framing: bytes, keep_alive: bool) -> tuple[bytes, ...]:
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
