"""What is served while Redis is away, with `on_redis_failure = "local"`: what this worker's mirror held at its loss.

An answer counts only if all generations it was made under were mirrored too: then nothing that Redis had said until
that moment speaks against it, and no purge that this worker has heard of since. A purge elsewhere is not heard of.

Nothing is stored, and requests for what is not there are not collapsed: that takes Redis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.plugin import HIT, MISS, STALE, Handler, Redis, Request, Response
from plugins.cache.answers import mark, not_stored, served, told_of
from plugins.cache.compress import represented
from plugins.cache.entry import Entry, Index
from plugins.cache.generations import fingerprint
from plugins.cache.hot import HotKeys
from plugins.cache.keys import Address, Keys, Place, of_tag
from plugins.cache.lookup import Visit
from plugins.cache.policy import FRESH, judge
from plugins.cache.tee import close
from plugins.cache.vary import selecting

WITHOUT: Final = "detail=redis-down"


class Remains:
    """Serves from them.

    Args:
        max_body: bytes; no longer body is unpacked.
        clock: seconds since 1970.
    """

    def __init__(self, redis: Redis, keys: Keys, hot: HotKeys, *, max_body: int, clock: Callable[[], float]) -> None:
        self._redis = redis
        self._keys = keys
        self._hot = hot
        self._max_body = max_body
        self._clock = clock

    async def serve(self, visit: Visit, request: Request, call_next: Handler) -> Response:
        """What is fresh; else from the upstream, or in place of its error what is stale and may be served so."""
        entry, now = self.find(visit, request), self._clock()
        if entry is not None and judge(entry.plan, visit.facts.asked, now) == FRESH:
            answer = await self._served(entry, visit, HIT, f"{told_of(entry, now)}; {WITHOUT}")
            if answer is not None:
                return answer
        if "only-if-cached" in visit.facts.asked:
            return not_stored()
        stale = entry if entry is not None and entry.status < 500 and now < entry.plan.error_until else None
        why = f"fwd={'uri-miss' if entry is None else 'stale'}; {WITHOUT}"
        try:
            response = await call_next(request)
        except Exception:
            answer = await self._served(stale, visit, STALE, why)
            if answer is None:
                raise
            return answer
        if response.status >= 500 and (answer := await self._served(stale, visit, STALE, why)) is not None:
            await close(response)
            return answer
        return mark(response, MISS, why)

    def find(self, visit: Visit, request: Request) -> Entry | None:
        """What is left for this request and was not purged, as far as this worker knows."""
        target = visit.target
        places = [(target.address, target.at_common)]
        if target.common is not None:
            places.append((target.own, False) if target.at_common else (target.common, True))
        for address, at_common in places:
            entry = self._at(address, request)
            if entry is not None and (entry.common or not at_common):
                return entry
        return None

    def _at(self, address: Address, request: Request) -> Entry | None:
        stored = self._read(address)
        if type(stored) is Index and stored.names:
            stored = self._read(address.variant(stored.names, selecting(request, stored.names, request.changes)))
        if type(stored) is not Entry:
            return None
        names = [*address.generations, *[of_tag(self._keys.prefix, tag) for tag in stored.tags]]
        return stored if fingerprint([self._redis.last_known(name) for name in names]) == stored.generations else None

    def _read(self, place: Place) -> object:
        for number in (0, *self._hot.shards(place.digest)):
            stored: object = self._redis.last_known(place.shard(number))
            if stored is not None:
                return stored
        return None

    async def _served(self, entry: Entry | None, visit: Visit, outcome: str, detail: str) -> Response | None:
        """An answer for this client; None where there is none, or it cannot be unpacked."""
        if entry is None:
            return None
        try:
            one = await represented(entry, self._max_body, gzip=visit.target.gzip and not visit.facts.ranges)
        except ValueError:
            return None
        return served(one, visit.facts, self._clock(), outcome, detail)
