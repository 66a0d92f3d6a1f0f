"""A HEAD that what is stored does not answer: what its answer tells is kept (RFC 9111, section 4.3.5)."""

from __future__ import annotations

from copy import copy

from gateway.plugin import RedisError, Response
from plugins.cache.compress import size_of
from plugins.cache.conditions import matches_head
from plugins.cache.entry import Entry, fields_of
from plugins.cache.exchange import renewed
from plugins.cache.fetch import Errand
from plugins.cache.policy import ended, is_common


class HeadErrand(Errand):
    """One such request. Nobody waits for it, and it needs no lock."""

    async def answer(self) -> Response:
        """Have a HEAD answered; what that tells of the stored answer to a GET is kept (RFC 9111, section 4.3.5)."""
        request, stale, clock = self._request, self._visit.stale, self._fetcher.clock
        self._changes = dict(request.changes)
        sent = clock()
        response = await self._call_next(request)
        received = clock()
        if stale is None or response.status != stale.status or not self._visit.whose(request):
            return response
        if self._visit.at_common and not is_common(fields_of(response.head()), self._fetcher.rules):
            return response  # what this client is told says nothing about what is there for all
        size = size_of(stale.body) if stale.coding else len(stale.body)
        if matches_head(fields_of(response.head()), response.length, stale.fields(), size):
            fresh = renewed(stale, response, stale.body)
            fields = fields_of(fresh.head())
            made = self._plan(fresh.status, fields, sent, received)
            if isinstance(made, str):
                return response
            entry = self._entry(
                fresh, fields, made, stale.body, (stale.generations, stale.hard), stale.tags, stale.cost
            )
            entry.coding = stale.coding
            # Its validator may be no more than a `Last-Modified`: what was not for all does not become so by it.
            entry.common = entry.common and stale.common
        else:
            entry = copy(stale)
            entry.plan = ended(stale.plan, received)
        try:
            place = self._place(entry.plan.vary)
            (there,) = await self._store.peek(self.place.entry)
            if not isinstance(there, Entry) or there.head != stale.head or there.body != stale.body:
                return response  # a GET was faster
            await self._store.put(place.entry, entry, entry.plan.ends - received)
        except (RedisError, ValueError) as error:
            self._fetcher.complain(error)
        return response
