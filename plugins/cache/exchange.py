"""One answer of the upstream: asked for whole, or only whether what is stored is still so, or for the rest of it.

What only the one client wants (his conditions, his `Range`) is not passed on: what is stored is for all.
"""

from __future__ import annotations

from multidict import CIMultiDict

from gateway.plugin import Handler, Request, Response
from plugins.cache.bodies import close, whole
from plugins.cache.conditions import CONDITIONS, RANGES, confirms, freshened, is_strong, validators, without
from plugins.cache.entry import Entry, Part, fields_of
from plugins.cache.ranges import combine, consistent, content_range, is_whole, missing


class Exchange:
    """One request to the upstream and its answer.

    Args:
        stale: what is stored, not fresh or only a part.
        ranged: the client's `Range` is passed on after all; what comes may be kept as a part.
        limit: bytes that a body may have to be held whole.
        patience: seconds that it may take to come.
    """

    def __init__(
        self,
        request: Request,
        call_next: Handler,
        stale: Entry | None,
        *,
        ranged: bool,
        limit: int,
        patience: float,
    ) -> None:
        self._request = request
        self._call_next = call_next
        self._stale = stale
        self._stored = stale.fields() if stale is not None else CIMultiDict[str]()
        self._ranged = ranged
        self._limit = limit
        self._patience = patience
        self.status = 0
        """What the upstream answered with; 0: nothing yet."""
        self.part: tuple[Part, bytes] | None = None
        """Of a 206: what can be kept, together with the part that was stored already."""

    async def answer(self) -> Response:
        """The answer; where it confirms or completes what is stored, that with its header brought up to date.

        Raises:
            Exception: what the upstream raised, or a body that broke off.
        """
        for name in CONDITIONS if self._ranged else (*CONDITIONS, *RANGES):
            self._request.remove_header(name)
        asked = self._questions()
        for name, value in asked.items():
            self._request.set_header(name, value)
        response = await self._send()
        if self._ranged:
            if response.status == 206:
                self.part = await self._kept(response)
            return response
        if not asked or response.status not in (206, 304):
            return response
        if (made := await self._renewed(response)) is not None:
            return made
        # It is about yet another answer (RFC 9111, section 4.3.4).
        await close(response)
        for name in asked:
            self._request.remove_header(name)
        return await self._send()

    async def _send(self) -> Response:
        response = await self._call_next(self._request)
        self.status = response.status
        return response

    def _questions(self) -> dict[str, str]:
        """The fields to ask with."""
        stale = self._stale
        if stale is None or self._ranged:
            return {}
        if stale.part is None:
            return validators(self._stored)
        rest, etag = missing(stale.part), self._stored.get("ETag", "")
        return {"Range": rest, "If-Range": etag} if rest is not None and is_strong(etag) else {}

    async def _renewed(self, response: Response) -> Response | None:
        """What is stored after a 304 or 206; None if that does not fit it."""
        stale = self._stale
        assert stale is not None
        if response.status == 304:
            return renewed(stale, response) if confirms(fields_of(response.head()), self._stored) else None
        kept = await self._kept(response)
        return renewed(stale, response, kept[1]) if kept is not None and is_whole(kept[0]) else None

    async def _kept(self, response: Response) -> tuple[Part, bytes] | None:
        """What a 206 has, joined with what was stored if they are parts of the same (RFC 9111, section 3.4)."""
        fields, stale = fields_of(response.head()), self._stale
        part = content_range(fields.get("Content-Range", ""))
        body = await whole(response, fields, self._limit, self._patience) if part is not None else None
        if part is None or body is None or not consistent(part, len(body)):
            return None
        response.body, response.length = body, None
        etag = fields.get("ETag", "")
        if stale is not None and stale.part is not None and is_strong(etag) and etag == self._stored.get("ETag"):
            return combine(stale.part, stale.body, part, body, self._limit) or (part, body)
        return part, body


def renewed(stale: Entry, response: Response, body: bytes | None = None) -> Response:
    """What is stored, with its header brought up to date by an answer without its body.

    Args:
        body: the whole, where only a part was stored.
    """
    head = freshened(stale.head, response.head())
    if body is not None:
        head = without(head, b"content-range")
    names = frozenset(line.partition(b":")[0].lower() for line in head.split(b"\r\n") if line)
    if body is None:
        return Response.prebuilt(stale.status, head, names, stale.body, reason=stale.reason)
    return Response.prebuilt(200, head, names, body)
