"""Fetching a part of what is not stored whole, to store it as one (RFC 9111, sections 3.3 and 3.4).

A part has a place of its own (`Place.part`), and so has its lock: who wants the whole never comes upon it, and waits
for nobody who fetches one. Only the fetch of the whole looks there, whether its beginning is stored already.
"""

from __future__ import annotations

from typing import Any

from multidict import CIMultiDict

from gateway.plugin import Response
from plugins.cache.answers import ADDED
from plugins.cache.conditions import freshened, is_strong, names_in, without
from plugins.cache.entry import Entry, Part
from plugins.cache.fetch import Errand
from plugins.cache.policy import Plan
from plugins.cache.ranges import combine, consistent, content_range, is_whole
from plugins.cache.stampede import ALONE, Landing


class PartErrand(Errand):
    """The fetch of a part. What answers it whole is stored as the whole."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.place = self._visit.place.part
        self._known: Entry | None = None

    async def _ask(self, known: Entry | None) -> Response:
        self._known = known
        return await self._exchange.part()

    def _plan(self, status: int, fields: CIMultiDict[str], sent: float, received: float) -> Plan | str:
        # A part may be kept as long as the whole.
        return super()._plan(200 if status == 206 else status, fields, sent, received)

    async def _write(self, owner: str, response: Response, entry: Entry) -> Landing:
        if entry.status == 206:
            part = content_range(entry.fields().get("Content-Range", ""))
            if part is None or not consistent(part, len(entry.body)):
                self._store.release(self.place, owner)
                return self._landing(ALONE, self.place, response=response, detail="detail=part")
            self._keep(entry, part)
        return await super()._write(owner, response, entry)

    def _keep(self, entry: Entry, part: Part) -> None:
        """Make it the entry of a part, joined with the stored one if both are of the same. It may be the whole then."""
        known, etag = self._known, entry.fields().get("ETag", "")
        entry.part, entry.head = part, without(entry.head, b"content-range")
        if known is not None and known.part and is_strong(etag) and etag == known.fields().get("ETag"):
            joined = combine(known.part, known.body, part, entry.body, self._fetcher.max_body)
            if joined is not None:
                entry.part, entry.body = joined
                entry.head = freshened(known.head, entry.head)
        entry.names = names_in(entry.head) | {*ADDED}
        if is_whole(entry.part):
            entry.status, entry.reason, entry.part = 200, None, None
