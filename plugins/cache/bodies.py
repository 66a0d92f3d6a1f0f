"""Bodies that are to be held whole, up to a bound."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from multidict import CIMultiDict

from gateway.plugin import Response

# Never kept from the client until it ends: it does not.
ENDLESS: Final = "text/event-stream"


class Resumed:
    """A body whose first pieces were read already, and the next one perhaps is being read."""

    __slots__ = ("_next", "_pieces", "_rest")

    def __init__(self, pieces: list[bytes], rest: Any, coming: asyncio.Future[bytes] | None = None) -> None:
        self._pieces = pieces[::-1]
        self._rest = rest
        self._next = coming

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._pieces:
            return self._pieces.pop()
        coming, self._next = self._next, None
        piece: bytes = await (self._rest.__anext__() if coming is None else coming)
        return piece

    async def aclose(self) -> None:
        self._pieces.clear()
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self._rest.aclose()


async def whole(response: Response, fields: CIMultiDict[str], limit: int, patience: float) -> bytes | None:
    """An answer's body in one piece; None if it is longer than `limit` bytes or has no end, and stays a stream.

    Args:
        patience: seconds after which a body that still comes is passed on as it comes.

    Raises:
        Exception: the body broke off.
    """
    body: Any = response.body
    if isinstance(body, bytes):
        return body if len(body) <= limit else None
    if (response.length or 0) > limit or fields.get("Content-Type", "").lower().startswith(ENDLESS):
        return None
    pieces: list[bytes] = []
    size = 0
    deadline = time.monotonic() + patience
    coming: asyncio.Future[bytes] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(body.__anext__())
            await asyncio.wait((coming,), timeout=max(0.0, deadline - time.monotonic()))
            if not coming.done():
                response.body = Resumed(pieces, body, coming)
                return None
            pieces.append(coming.result())
            size += len(pieces[-1])
            if size > limit:
                response.body = Resumed(pieces, body)
                return None
    except StopAsyncIteration:
        await body.aclose()
    except BaseException:
        if coming is not None and coming.cancel():
            await asyncio.wait((coming,))
        await body.aclose()
        raise
    response.body, response.length = b"".join(pieces), None
    return response.body


async def close(response: Response) -> None:
    """An answer that nobody will send."""
    if not isinstance(response.body, bytes):
        await response.body.aclose()
