"""The body of a request, as it comes in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from aiohttp import StreamReader

from gateway.request import BodyBroken, BodyTimeout, BodyTooLarge

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientBody:
    """Reads a client's body in pieces, within limits.

    A client that expects `100 Continue` gets it when the body is first asked for: a request that is refused by a
    plugin never has to send it (RFC 9110, section 10.1.1).

    Args:
        payload: aiohttp's reader of this body.
        length: what `Content-Length` says; None for a chunked body.
        protocol: the connection, to answer `Expect`; None where the client does not expect anything.
        limit: bytes; more is BodyTooLarge.
        timeout: seconds between two pieces.
    """

    def __init__(
        self, payload: StreamReader, length: int | None, protocol: Any | None, limit: int, timeout: float
    ) -> None:
        self.length = length
        self.stopped = False
        """The client stopped sending, or what it sent cannot be read on."""
        self._payload = payload
        self._protocol = protocol
        self._limit = limit
        self._timeout = timeout
        self._taken = 0
        self._held: list[bytes] = []
        self._whole: bytes | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The pieces as they come.

        Raises:
            BodyTooLarge, BodyTimeout, BodyBroken: see there.
        """
        if self._whole is not None:
            yield self._whole
            return
        held, self._held = self._held, []
        for piece in held:
            yield piece
        while piece := await self._next():
            yield piece

    async def _next(self) -> bytes:
        """The next piece; empty at the end."""
        payload = self._payload
        if self._protocol is not None and self._protocol.transport is not None:
            self._protocol.transport.write(CONTINUE)
            self._protocol = None
        while True:
            try:
                async with asyncio.timeout(self._timeout):
                    piece = await payload.readany()
            except TimeoutError:
                self.stopped = True
                raise BodyTimeout(f"the body stopped for {self._timeout:g} s") from None
            except Exception as error:
                self.stopped = True
                raise BodyBroken(str(error)) from error
            if not piece:
                if payload.is_eof():
                    return b""
                continue
            self._taken += len(piece)
            if self._taken > self._limit:
                raise BodyTooLarge(f"the body is longer than {self._limit} bytes")
            return piece

    async def peek(self, limit: int) -> bytes | None:
        """The whole body, if it has at most `limit` bytes; else None. It can be read all the same afterwards.

        A body that was read so is kept, and can be read again and again.

        Raises:
            BodyTooLarge, BodyTimeout, BodyBroken: see there.
        """
        if self._whole is None:
            if (self.length or 0) > limit or sum(map(len, self._held)) > limit:
                return None
            while piece := await self._next():
                self._held.append(piece)
                if self._taken > limit:
                    return None
            self._whole = b"".join(self._held)
            self._held.clear()
        return self._whole if len(self._whole) <= limit else None

    async def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge: it is longer than `limit` bytes.
            BodyTimeout, BodyBroken: see there.
        """
        pieces, size = [], 0
        async for piece in self:
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise BodyTooLarge(f"the body is longer than {limit} bytes")
        return b"".join(pieces)
