"""The way of a request whose answer was not simply there: from the store, another's fetch, or the upstream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.plugin import HIT, MISS, STALE, Handler, Request, Response
from plugins.cache import policy, stampede
from plugins.cache.answers import hit, mark, not_stored, served, tailored, told_of
from plugins.cache.compress import represented
from plugins.cache.config import CacheConfig
from plugins.cache.early import due
from plugins.cache.entry import Entry, Uncacheable
from plugins.cache.fetch import UNCACHEABLE_SECONDS, Errand
from plugins.cache.fetcher import Fetcher
from plugins.cache.fitting import has
from plugins.cache.head import HeadErrand
from plugins.cache.lookup import Visit
from plugins.cache.parts import PartErrand
from plugins.cache.stampede import Flights

# A flight may end with "look again"; after so many times the request goes to the upstream.
MAX_LOOKS: Final = 3
RETRY_SECONDS: Final = 1.0
OUTCOMES: Final = {policy.FRESH: HIT, policy.STALE: STALE}
FORWARDED: Final = {policy.RELOAD: "fwd=request", policy.EXPIRED: "fwd=stale"}


class Serving:
    """Serves the requests of one worker's cache.

    Args:
        name: the plugin's.
        clock: seconds since 1970.
        chance: a number between 0 and 1 at each call.
    """

    def __init__(
        self,
        name: str,
        config: CacheConfig,
        fetcher: Fetcher,
        flights: Flights,
        *,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._config = config
        self._fetcher = fetcher
        self._lookup = fetcher.lookup
        self._store = fetcher.store
        self._flights = flights
        self._clock = clock
        self._chance = chance
        self._drawn = f"{name}.drawn"

    async def serve(self, visit: Visit, request: Request, call_next: Handler) -> Response:
        """From the store if that will do, else from the upstream."""
        why = "fwd=uri-miss"
        for look in range(MAX_LOOKS):
            if look:
                visit.closely = self._store.may_lag
                self._lookup.turn(visit)
            found = await self._lookup.find(visit, request)
            if isinstance(found, Uncacheable):
                if "only-if-cached" in visit.facts.asked:
                    return not_stored()
                why = f"{why}; detail=not-cacheable"
                just_marked = self._clock() < found.until - UNCACHEABLE_SECONDS + RETRY_SECONDS
                if just_marked or request.method == "HEAD":
                    return await self._forward(request, call_next, why)
                # One client's answer may not have been everybody's: nobody waits, but it is tried again.
                response = await self._alone(visit, request, call_next, why)
                if response is not None:
                    return response
                continue
            if found is not None:
                now = self._clock()
                verdict = policy.judge(found.plan, visit.facts.asked, now)
                visit.stale = found
                if verdict in OUTCOMES:
                    if verdict == policy.FRESH and visit.target.plain and (visit.target.gzip or not found.coding):
                        answer = hit(found, now, visit.place)
                    else:
                        told = told_of(found, now)
                        answer = await self._served(found, visit, call_next, OUTCOMES[verdict], told)
                    if verdict == policy.STALE or self.due(request, found, now):
                        # Last: it takes the request over.
                        self._refresh(visit, request, call_next)
                    return answer
                why = FORWARDED[verdict]
            elif visit.index is not None:
                why = "fwd=vary-miss"
            if found is None and visit.facts.ranges:
                response = await self._part(visit, request, call_next, why)
            elif "only-if-cached" in visit.facts.asked:
                return not_stored()
            elif request.method == "HEAD":
                return await self._head(visit, request, call_next, why)
            elif visit.stale is not None and (why == "fwd=request" or visit.stale.plan.never_fresh):
                response = await self._alone(visit, request, call_next, why)
            elif "no-cache" in visit.facts.asked:
                response = await self._alone(visit, request, call_next, "fwd=request")
            else:
                response = await self._fetch(visit, request, call_next, why)
            if response is not None:
                return response
        return await self._forward(request, call_next, f"{why}; detail=moving")

    async def _fetch(self, visit: Visit, request: Request, call_next: Handler, why: str) -> Response | None:
        """From the upstream, together with all who want the same; None: look again."""
        flight = self._flights.under_way(visit.place)
        if flight is None:
            flight = self._flights.start(Errand(self._fetcher, visit, request, call_next))
            if flight is None:
                return await self._forward(request, call_next, f"{why}; detail=overload")
            landing = await flight.lead()
            if landing.response is not None:
                return self._first(landing, visit, why)
        else:
            waited = await flight.land(self._config.wait_timeout)
            if waited is None:
                return await self._late(visit, request, call_next, why)
            landing = waited
            if landing.failed and not visit.retried:
                # It may have been that one request's fault: those who wait try once more, together.
                visit.retried = True
                return None
            if landing.entry is not None and not await self._fits(landing, visit, request):
                return None
        if landing.how == stampede.AGAIN:
            return None
        if landing.how == stampede.LATE:
            return await self._late(visit, request, call_next, why)
        if landing.entry is None:
            return await self._forward(request, call_next, f"{why}; {landing.detail}" if landing.detail else why)
        if landing.how == stampede.STALE:
            return await self._served(landing.entry, visit, call_next, STALE, f"{why}; detail=stale-if-error")
        return await self._served(landing.entry, visit, call_next, MISS, f"{why}; collapsed")

    async def _fits(self, landing: stampede.Landing, visit: Visit, request: Request) -> bool:
        """Whether what another request has fetched is an answer to this one, and was not purged meanwhile."""
        entry = landing.entry
        if visit.at_common and entry is not None and not entry.common:
            return False
        place = visit.place
        if landing.place.digest != place.digest:
            place = self._lookup.place_of(visit, request, landing.names, request.changes)
        return landing.place.digest == place.digest and await self._lookup.usable(visit, entry) is entry

    async def _part(self, visit: Visit, request: Request, call_next: Handler, why: str) -> Response | None:
        """A part of what is not stored whole: from a stored part, else from the upstream, to be stored as one.

        None: look again.
        """
        found = await self._lookup.part(visit, await self._store.read(visit.place.part.entry))
        if isinstance(found, Entry):
            now = self._clock()
            if policy.judge(found.plan, visit.facts.asked, now) == policy.FRESH and has(visit.facts, found):
                return served(found, visit.facts, now, HIT, told_of(found, now))
            why = "fwd=partial"
        if "only-if-cached" in visit.facts.asked:
            return not_stored()
        if isinstance(found, Uncacheable):
            return await self._forward(request, call_next, f"{why}; detail=not-cacheable")
        return await self._alone(visit, request, call_next, why, PartErrand)

    async def _alone(
        self, visit: Visit, request: Request, call_next: Handler, why: str, kind: type[Errand] = Errand
    ) -> Response | None:
        """What others do not wait for: newer than what is stored, or a part. Unless somebody fetches it right now.

        None: look again.
        """
        landing = await self._flights.now(kind(self._fetcher, visit, request, call_next))
        if landing is None:
            return await self._forward(request, call_next, why)
        if landing.response is not None:
            return self._first(landing, visit, why)
        if landing.entry is None:
            return None
        return await self._served(landing.entry, visit, call_next, STALE, f"{why}; detail=stale-if-error")

    async def _head(self, visit: Visit, request: Request, call_next: Handler, why: str) -> Response:
        """A HEAD that what is stored does not answer; its answer may bring that up to date."""
        return mark(await HeadErrand(self._fetcher, visit, request, call_next).answer(), MISS, why)

    def _first(self, landing: stampede.Landing, visit: Visit, why: str) -> Response:
        """The answer of the one who has fetched it."""
        response, entry = landing.response, landing.entry
        assert response is not None
        status = landing.status or response.status
        detail = f"{why}; fwd-status={status}{'; ' if landing.detail else ''}{landing.detail}"
        if entry is not None and visit.facts.conditions and response.status == 200:
            response = served(entry, visit.facts, self._clock(), MISS, detail)
        else:
            response = mark(tailored(response, visit.facts), MISS, detail)
        if status == 304:
            response.set("X-Cache", "REVALIDATED")
        return response

    async def _served(self, entry: Entry, visit: Visit, call_next: Handler, outcome: str, detail: str) -> Response:
        """What is stored, in the representation for this client; ranges are of the one that is not packed."""
        gzip = visit.target.gzip and not visit.facts.ranges
        try:
            one = await represented(entry, self._config.max_body, gzip=gzip)
        except ValueError:
            # Such as one that is larger than this node's `max_body`.
            return await self._forward(visit.request, call_next, "fwd=miss; detail=damaged")
        return served(one, visit.facts, self._clock(), outcome, detail)

    async def _late(self, visit: Visit, request: Request, call_next: Handler, why: str) -> Response:
        """Another's fetch takes too long."""
        why = f"{why}; detail=wait-timeout"
        stale, now = visit.stale, self._clock()
        if (
            self._config.on_wait_timeout == "stale"
            and stale is not None
            and now < max(stale.plan.stale_until, stale.plan.error_until)
        ):
            return await self._served(stale, visit, call_next, STALE, why)
        return await self._forward(request, call_next, why)

    def due(self, request: Request, found: Entry, now: float) -> bool:
        """Whether what is fresh is to be refreshed all the same, by chance (see `early`); a request draws once."""
        if now < found.plan.refresh_from:
            return False
        drawn: bool | None = request.state.get(self._drawn)
        if drawn is None:
            drawn = due(now, found.plan.expires, found.cost, self._config.early_refresh, self._chance())
            request.state[self._drawn] = drawn
        return drawn

    def _refresh(self, visit: Visit, request: Request, call_next: Handler) -> None:
        """Fetch a fresh answer behind the client's back."""
        if request.method != "HEAD" and visit.stale is not None:
            self._flights.refresh(Errand(self._fetcher, visit, request, call_next), visit.stale)

    @staticmethod
    async def _forward(request: Request, call_next: Handler, detail: str) -> Response:
        return mark(await call_next(request), MISS, detail)
