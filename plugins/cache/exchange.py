"""The conversation with the upstream: asked for the whole answer, whether what is stored is still so, or for its rest.

What only the one client wants (his conditions, his `Range`) is not passed on where the answer is to be for all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.plugin import Handler, Request, Response
from plugins.cache.compress import unpack
from plugins.cache.conditions import CONDITIONS, RANGES, confirms, freshened, is_strong, names_in, validators
from plugins.cache.entry import Entry, fields_of
from plugins.cache.ranges import combine, content_range, is_whole, missing
from plugins.cache.tee import close, whole

# To others a condition that fails is answered with 412 (RFC 9110, section 13.1.2; RFC 10008, section 2.6).
CONDITIONAL: Final = frozenset({"GET", "QUERY"})


class Exchange:
    """One request to the upstream and its answer.

    Args:
        limit: bytes that a body may have to be held whole.
        patience: seconds that it may take to come.
    """

    def __init__(self, request: Request, call_next: Handler, *, limit: int, patience: float) -> None:
        self._request = request
        self._call_next = call_next
        self._limit = limit
        self._patience = patience
        self.status = 0
        """What the upstream answered with; 0: nothing yet."""

    async def whole(self, known: Entry | None) -> Response:
        """The whole answer; where it confirms or completes what is stored, that with its header brought up to date.

        Args:
            known: what is stored, out of date or a part.

        Raises:
            Exception: what the upstream raised, or a body that broke off.
        """
        self._remove((*CONDITIONS, *RANGES))
        asked = self._questions(known) if known is not None and self._request.method in CONDITIONAL else {}
        for name, value in asked.items():
            self._request.set_header(name, value)
        response = await self._send()
        if known is None or not asked or response.status not in (206, 304, 416):
            return response
        if (made := await self._renewed(known, response)) is not None:
            return made
        # It is about yet another answer (RFC 9111, section 4.3.4), or nothing is left to be sent.
        await close(response)
        self._remove(asked)
        return await self._send()

    async def part(self) -> Response:
        """The answer to a request whose `Range` is passed on."""
        self._remove(CONDITIONS)
        return await self._send()

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._request.remove_header(name)

    async def _send(self) -> Response:
        response = await self._call_next(self._request)
        self.status = response.status
        return response

    def _questions(self, known: Entry) -> dict[str, str]:
        """The fields to ask with."""
        fields = known.fields()
        if known.part is None:
            # What an error was tagged with is nothing that the present answer can be.
            return validators(fields) if known.status == 200 else {}
        rest, etag, complete = missing(known.part), fields.get("ETag", ""), known.part[2]
        useful = rest is not None and is_strong(etag) and (complete or 0) <= self._limit
        return {"Range": rest, "If-Range": etag} if rest is not None and useful else {}

    async def _renewed(self, known: Entry, response: Response) -> Response | None:
        """What is stored after a 304 or 206; None if that does not fit it."""
        fields, stored = fields_of(response.head()), known.fields()
        if known.part is None:
            if response.status != 304 or not confirms(fields, stored):
                return None
            try:
                body = await unpack(known.body, self._limit) if known.coding else known.body
            except ValueError:
                return None
            return renewed(known, response, body)
        part = content_range(fields.get("Content-Range", ""))
        if response.status != 206 or part is None or fields.get("ETag") != stored["ETag"]:
            return None
        rest = await whole(response, max_body=self._limit, patience=self._patience)
        joined = None if rest is None else combine(known.part, known.body, part, rest, self._limit)
        return renewed(known, response, joined[1]) if joined is not None and is_whole(joined[0]) else None


def renewed(known: Entry, response: Response, body: bytes) -> Response:
    """What is stored, with its header brought up to date by an answer without its body.

    Args:
        body: the whole one.
    """
    head = freshened(known.head, response.head())
    status, reason = (200, None) if known.part else (known.status, known.reason)
    return Response.prebuilt(status, head, names_in(head), body, reason=reason)
