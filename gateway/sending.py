"""Answers that take their time: streamed bodies, tunnels, and clients that do not take what is sent to them."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.request import Request
from gateway.response import Response
from gateway.wire import CHUNKED, NO_BODY, UPGRADE, VERSION_11, Unsendable, head_of, send_whole


class ClientTooSlow(ConnectionError):
    """The client did not take what was sent to it within `server.send_timeout`."""


class Sent:
    """What went out, and whether the connection may serve another request."""

    __slots__ = ("keep_alive", "size")

    def __init__(self, size: int, keep_alive: bool) -> None:
        self.size = size
        self.keep_alive = keep_alive


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
        head = b"".join(head_of(request, response, framing, keep_alive or status == 101))
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
        # Closing would wait for the client to take what is buffered: for ever.
        if protocol.transport is not None:
            protocol.transport.abort()
        raise ClientTooSlow(f"the client took nothing for {send_timeout:g} s") from None
