"""A body on two ways at once: to the client that asked for it, and into memory, to be stored.

    upstream ──▶ reader ──▶ buffer ──▶ client      while it may still be stored: at the upstream's speed
    upstream ────────────────────────▶ client      once it will not be: at the client's

It will not be stored once it is longer than `max_body` or slower than `patience`. A tee holds `max_body` bytes and one
piece at most; twice that for the moment in which the body becomes one text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from gateway.plugin import Response, Stream
from plugins.cache.conditions import names_in

# Bytes of a body that is worth waiting for: bytes are cheaper to pass on than a stream, and an answer that breaks off
# can still become a proper error.
SMALL_BODY: Final = 64 << 10
# Never kept from the client until it ends: it does not.
ENDLESS: Final = "text/event-stream"
# Bytes the client is given at once: what the connection would hold of more is held here already.
PIECE: Final = 64 << 10


class Tee:
    """Reads a body as fast as it comes, and is the same body for one client (see `gateway.response.Stream`).

    Args:
        body: nobody else may read or close it from now on.
        max_body: bytes; a longer body is not kept.
        patience: seconds from the call of `whole`; nor is one that takes longer.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_ended",
        "_error",
        "_keeping",
        "_left",
        "_max_body",
        "_more",
        "_patience",
        "_reader",
        "_taken",
    )

    def __init__(self, body: Stream, *, max_body: int, patience: float) -> None:
        self._body = body
        self._max_body = max_body
        self._patience = patience
        self._buffer: bytearray | bytes = bytearray()
        self._taken = 0
        self._keeping = True
        self._ended = False
        self._left = False
        self._error: Exception | None = None
        self._more = asyncio.Event()
        self._reader = asyncio.get_running_loop().create_task(self._read())

    def __repr__(self) -> str:
        state = "whole" if self._ended else "broken off" if self._error else "coming" if self._keeping else "passed on"
        return f"<Tee {len(self._buffer)} bytes, {state}>"

    async def whole(self) -> bytes | None:
        """The body once it is complete; None as soon as it is clear that it is not to be stored. To be called once.

        Whoever is cancelled in it gives up the storing; the client still gets the body.

        Raises:
            Exception: what broke the body off.
        """
        try:
            await asyncio.wait((self._reader,), timeout=self._patience)
        finally:
            if not self._ended:
                self._keeping = False
                if self._left:
                    await self._close()
        if self._error is not None:
            raise self._error
        if not self._keeping:
            return None
        # What is stored and what the client still has to get are the same bytes.
        self._buffer = whole = bytes(self._buffer)
        return whole

    # -- the upstream's side -----------------------------------------------------------------------

    async def _read(self) -> None:
        assert isinstance(self._buffer, bytearray)
        try:
            while self._keeping:
                self._buffer += await self._body.__anext__()
                self._keeping = self._keeping and len(self._buffer) <= self._max_body
                self._more.set()
        except StopAsyncIteration:
            await self._body.aclose()
            self._ended = True
        except Exception as error:
            await self._body.aclose()
            self._error = error
        finally:
            self._more.set()

    async def _close(self) -> None:
        """Nobody wants the rest."""
        self._reader.cancel()
        await asyncio.wait((self._reader,))
        await self._body.aclose()

    # -- the client's side -------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next piece, from the beginning.

        Raises:
            Exception: what broke the body off, once all that came before it was given out.
        """
        while self._taken == len(self._buffer):
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            if self._reader.done():
                return await self._body.__anext__()
            self._more.clear()
            await self._more.wait()
        with memoryview(self._buffer) as view:
            piece = bytes(view[self._taken : self._taken + PIECE])
        self._taken += len(piece)
        if not self._keeping and isinstance(self._buffer, bytearray):
            del self._buffer[: self._taken]
            self._taken = 0
        return piece

    async def aclose(self) -> None:
        """The client has it all, or has left: what may still be stored goes on being read, anything else is closed."""
        self._left = True
        if not self._keeping:
            await self._close()


async def whole(
    response: Response, *, max_body: int, patience: float, hand: Callable[[Response], None] | None = None
) -> bytes | None:
    """The body of an answer that is to be stored; None if it is longer than `max_body` bytes or slower than `patience`
    seconds, then the answer has it as a stream.

    Args:
        hand: called before a body that may be large is waited for, with an answer for the client: what is done to that
            on its way does not show in what is stored. If it is called, the given one is not to be sent.

    Raises:
        Exception: the body broke off.
    """
    body: Any = response.body
    if isinstance(body, bytes):
        return body if len(body) <= max_body else None
    length = response.length
    if length is not None and length > max_body:
        return None
    tee = Tee(body, max_body=max_body, patience=patience)
    response.body = tee
    handed = hand is not None and (length is None or length > SMALL_BODY)
    if hand is not None and handed:
        head = response.head()
        names = names_in(head)
        outcome, reason = response.outcome, response.reason
        hand(Response.prebuilt(response.status, head, names, tee, length=length, outcome=outcome, reason=reason))
    try:
        data = await tee.whole()
    except BaseException:
        if not handed:
            await tee.aclose()
        raise
    if data is not None:
        response.body, response.length = data, None
    return data


async def close(response: Response) -> None:
    """An answer that nobody will send."""
    body: Any = response.body
    if not isinstance(body, bytes):
        await body.aclose()
