"""Keeps answers of the upstream, and gives them to the requests they were made for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from random import random
from typing import TYPE_CHECKING, Any, Final

from gateway.plugin import (
    HIT,
    LATER,
    MISS,
    PASS,
    STALE,
    Answer,
    Handler,
    Later,
    Plugin,
    Redis,
    RedisError,
    Request,
    Response,
)
from plugins.cache import policy, stampede
from plugins.cache.answers import hit, mark, not_stored, served, tailored
from plugins.cache.compress import SUFFIX, original_etag, represented
from plugins.cache.config import CacheConfig
from plugins.cache.early import due
from plugins.cache.entry import Entry, Uncacheable
from plugins.cache.fetch import Errand, Fetcher
from plugins.cache.fitting import has
from plugins.cache.generations import Ending
from plugins.cache.hot import RANK, HotKeys
from plugins.cache.invalidation import changed_urls
from plugins.cache.keys import Keys, everything, of_route
from plugins.cache.lookup import Lookup, Visit
from plugins.cache.parts import PartErrand
from plugins.cache.purge import Purge
from plugins.cache.purge_method import PurgeMethod
from plugins.cache.rules import Rules
from plugins.cache.stampede import Flights
from plugins.cache.store import SCRIPTS, Store
from plugins.cache.tags import Template
from plugins.cache.target import Target, Targets

if TYPE_CHECKING:
    from gateway.console import Context
    from gateway.plugin import Worker

logger = logging.getLogger("gateway.cache")

# A flight may end with "look again"; after so many times the request goes to the upstream.
MAX_LOOKS: Final = 3
OUTCOMES: Final = {policy.FRESH: HIT, policy.STALE: STALE}
FORWARDED: Final = {policy.RELOAD: "fwd=request", policy.EXPIRED: "fwd=stale"}
REPORT_SECONDS: Final = 1.0
RENEW_SECONDS: Final = 600.0


class Cache(Plugin):
    """Answers GET and HEAD from what is stored, as RFC 9111 allows; fetches what is missing once for the whole fleet.

    An answer is kept for the identity that the request speaks for, which a plugin before this one has found out; if
    none has, for those who send the same credentials; and for everybody where there are no credentials.
    """

    Config = CacheConfig
    on_redis_failure = "pass"
    config: CacheConfig

    def __init__(self, config: CacheConfig, name: str) -> None:
        super().__init__(config, name)
        self.clock: Callable[[], float] = time.time
        self.chance: Callable[[], float] = random
        self._number = f"{name}.number"
        self._drawn = f"{name}.drawn"
        self.report_seconds = REPORT_SECONDS
        self._reporter: asyncio.Task[None] | None = None

    def targets(self, seen: Worker | Context) -> Targets:
        """What tells which answer a request is for: workers go by it, and so does who explains what they do."""
        config, query = self.config, self.config.query_rule()
        return Targets(
            Keys(seen.config.redis.prefix, self.name, whole_paths=bool(query)),
            scope=config.scope,
            credentials=config.credentials,
            upstreams={name: f"{table.url} {table.host}" for name, table in seen.config.upstreams.items()},
            query=query,
            key_headers=config.key_headers,
            key_cookies=config.key_cookies,
            methods=config.methods,
            max_key_body=config.max_key_body,
        )

    async def start(self, worker: Worker) -> None:
        config, redis = self.config, worker.redis
        redis.register(*SCRIPTS, RANK)
        self._targets = self.targets(worker)
        keys = self._targets.keys
        self._redis = redis
        self._store = Store(redis, lock_ttl=config.lock_ttl)
        self._hot = HotKeys(keys.hot, threshold=config.hot_threshold, shards=config.shards, clock=time.monotonic)
        self._flights = Flights(self._store, lock_ttl=config.lock_ttl, wait_timeout=config.wait_timeout)
        self._lookup = Lookup(self._store, self._targets, self._hot, clock=self._now)
        self._fetcher = Fetcher(
            self._lookup,
            rules=config.rules(),
            tags=config.tags,
            templates=tuple(Template(text) for text in config.tag_templates),
            max_body=config.max_body,
            compress_over=config.compress_over,
            patience=config.wait_timeout,
            clock=self._now,
        )
        self._rules = Rules(config.purge_rules)
        self._rules.check({route.label: route.match.path for route in worker.config.routes})
        self._purging = PurgeMethod(config.purge_from, fields=config.tags, store=self._store, prefix=redis.prefix)
        routes = [route for route in worker.config.routes if self.name in route.plugins]
        self._lasting = [everything(redis.prefix), *[of_route(redis.prefix, route.label) for route in routes]]
        for route in routes:
            for name in route.plugins[route.plugins.index(self.name) + 1 :]:
                if name in worker.plugins and type(worker.plugins[name]).on_redis_failure == "refuse":
                    logger.warning(
                        "route %s: %s stands before %s, which does not see the requests that are answered from the"
                        " cache; put it first",
                        route.label,
                        self.name,
                        name,
                    )
        self._reporter = asyncio.get_running_loop().create_task(self._report())

    async def stop(self) -> None:
        if self._reporter is not None:
            self._reporter.cancel()
            await asyncio.gather(self._reporter, return_exceptions=True)
            await self._flights.stop()

    # -- a request ---------------------------------------------------------------------------------

    def ask(self, request: Request, redis: Redis) -> Answer | Later | None:
        identity = request.identity
        if request.identity_pending and request.early and self.config.scope != "shared":
            if request.guess is None:
                return LATER
            identity = request.guess
        unknown = request.identity_pending and not request.early
        target = request.state[self.name] = self._targets.target(request, identity, unknown=unknown)
        if target.bypass is not None:
            return None
        if not self._hot.any:
            return self._store.find(target.address.wanted)
        number = request.state[self._number] = self._lookup.number(target)
        return self._lookup.ask(target, number)

    def check(self, request: Request, reply: Any) -> Response | Later | None:
        target: Target = request.state[self.name]
        if not target.fits(request, request.identity):
            return LATER  # it was asked for somebody else, or plugins before this one have changed the request
        entry = reply
        if type(reply) is list:
            entry = reply[0]
            if entry is not None:
                self._hot.count(target.address.digest, target)
        if not target.plain or entry is None:
            return None
        # Most requests end here: nothing special is asked for, and what is stored is proven and fresh.
        if type(reply) is list and (
            type(entry) is not Entry
            or entry.tags != target.address.tags
            or not self._store.proves(request.answers[self], entry)
        ):
            return None
        now = self.clock()
        plan = entry.plan
        if now >= plan.refresh_from and (now >= plan.expires or self._due(request, entry, now)):
            return None
        return hit(entry, now, target.address) if target.gzip or not entry.coding else None

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        target: Target = request.state[self.name]
        if target.unread:
            target = request.state[self.name] = await self._targets.with_body(request, target)
        if target.bypass is not None:
            return await self._bypass(target, request, call_next)
        visit = Visit(request, target, request.state.get(self._number, 0), request.answers.get(self))
        return await self._serve(visit, request, call_next)

    async def _bypass(self, target: Target, request: Request, call_next: Handler) -> Response:
        if self._purging.takes(request):
            return await self._purging.answer(request)
        changing = target.unsafe
        if changing and self.config.compress_over:
            _ask_for_originals(request)
        try:
            response = await call_next(request)
        except asyncio.CancelledError:
            if changing:
                # The client has gone; what it wanted to change may be changed.
                self._store.purge_later(*self._changed(request, [(request.host, request.target)]))
            raise
        if request.upgrade is None:
            assert target.bypass is not None
            mark(response, PASS, target.bypass)
        if changing and response.status < 400:
            # RFC 9111, section 4.4: whoever changed something sees the change.
            try:
                await self._store.purge(*self._changed(request, changed_urls(request, response)))
            except RedisError as error:
                logger.warning("%s: what was changed could not be purged yet: %s", self.name, error)
        return response

    def _changed(self, request: Request, urls: list[tuple[str, str]]) -> list[Ending]:
        """What a change makes void: these URLs, and what rules say."""
        purges = [Purge(urls), *self._rules.after(request)]
        return [ending for purge in purges for ending in purge.endings(self._redis.prefix)]

    async def _serve(self, visit: Visit, request: Request, call_next: Handler) -> Response:
        """From the store if that will do, else from the upstream."""
        why = "fwd=uri-miss"
        for _ in range(MAX_LOOKS):
            found = await self._lookup.find(visit, request)
            if isinstance(found, Uncacheable):
                if "only-if-cached" in visit.facts.asked:
                    return not_stored()
                return await self._forward(request, call_next, f"{why}; detail=not-cacheable")
            if found is not None:
                now = self.clock()
                verdict = policy.judge(found.plan, visit.facts.asked, now)
                visit.stale = found
                if verdict == policy.STALE or (verdict == policy.FRESH and self._due(request, found, now)):
                    self._refresh(visit, request, call_next)
                if verdict == policy.FRESH and visit.target.plain and (visit.target.gzip or not found.coding):
                    return hit(found, now, visit.place)
                if verdict in OUTCOMES:
                    told = f"hit; ttl={found.plan.expires - now:.0f}"
                    return await self._served(found, visit, call_next, OUTCOMES[verdict], told)
                why = FORWARDED[verdict]
            elif visit.index is not None:
                why = "fwd=vary-miss"
            if found is None and visit.facts.ranges:
                return await self._part(visit, request, call_next, why)
            if "only-if-cached" in visit.facts.asked:
                return not_stored()
            if request.method == "HEAD":
                return await self._head(visit, request, call_next, why)
            if visit.stale is not None and (why == "fwd=request" or visit.stale.plan.never_fresh):
                return await self._alone(visit, request, call_next, why)
            if "no-cache" in visit.facts.asked:
                return await self._alone(visit, request, call_next, "fwd=request")
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
            waited = await flight.land(self.config.wait_timeout)
            if waited is None:
                return await self._late(visit, request, call_next, why)
            landing = waited
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
        place = visit.place
        if landing.place.digest != place.digest:
            place = self._lookup.place_of(visit, request, landing.names, request.changes)
        return landing.place.digest == place.digest and await self._lookup.usable(visit, entry) is entry

    async def _part(self, visit: Visit, request: Request, call_next: Handler, why: str) -> Response:
        """A part of what is not stored whole: from a stored part, else from the upstream, to be stored as one."""
        found = await self._lookup.usable(visit, await self._store.read(visit.place.part.entry))
        if isinstance(found, Entry):
            now = self.clock()
            if policy.judge(found.plan, visit.facts.asked, now) == policy.FRESH and has(visit.facts, found):
                return served(found, visit.facts, now, HIT, f"hit; ttl={found.plan.expires - now:.0f}")
            why = "fwd=partial"
        if "only-if-cached" in visit.facts.asked:
            return not_stored()
        if isinstance(found, Uncacheable):
            return await self._forward(request, call_next, f"{why}; detail=not-cacheable")
        return await self._alone(visit, request, call_next, why, PartErrand)

    async def _alone(
        self, visit: Visit, request: Request, call_next: Handler, why: str, kind: type[Errand] = Errand
    ) -> Response:
        """What others do not wait for: newer than what is stored, or a part. Unless somebody fetches it right now."""
        landing = await self._flights.now(kind(self._fetcher, visit, request, call_next))
        if landing is None:
            return await self._forward(request, call_next, why)
        if landing.response is not None:
            return self._first(landing, visit, why)
        assert landing.entry is not None
        return await self._served(landing.entry, visit, call_next, STALE, f"{why}; detail=stale-if-error")

    async def _head(self, visit: Visit, request: Request, call_next: Handler, why: str) -> Response:
        """A HEAD that what is stored does not answer; its answer may bring that up to date."""
        return mark(await Errand(self._fetcher, visit, request, call_next).head(), MISS, why)

    def _first(self, landing: stampede.Landing, visit: Visit, why: str) -> Response:
        """The answer of the one who has fetched it."""
        response, entry = landing.response, landing.entry
        assert response is not None
        status = landing.status or response.status
        detail = f"{why}; fwd-status={status}{'; ' if landing.detail else ''}{landing.detail}"
        if entry is not None and visit.facts.conditions and response.status == 200:
            return served(entry, visit.facts, self.clock(), MISS, detail)
        return mark(tailored(response, visit.facts), MISS, detail)

    async def _served(self, entry: Entry, visit: Visit, call_next: Handler, outcome: str, detail: str) -> Response:
        """What is stored, in the representation for this client; ranges are of the one that is not packed."""
        gzip = visit.target.gzip and not visit.facts.ranges
        try:
            one = await represented(entry, self.config.max_body, gzip=gzip)
        except ValueError:
            # Such as one that is larger than this node's `max_body`.
            return await self._forward(visit.request, call_next, "fwd=miss; detail=damaged")
        return served(one, visit.facts, self.clock(), outcome, detail)

    async def _late(self, visit: Visit, request: Request, call_next: Handler, why: str) -> Response:
        """Another's fetch takes too long."""
        why = f"{why}; detail=wait-timeout"
        stale, now = visit.stale, self.clock()
        if (
            self.config.on_wait_timeout == "stale"
            and stale is not None
            and now < max(stale.plan.stale_until, stale.plan.error_until)
        ):
            return served(stale, visit.facts, now, STALE, why)
        return await self._forward(request, call_next, why)

    def _due(self, request: Request, found: Entry, now: float) -> bool:
        """Whether what is fresh is to be refreshed all the same, by chance (see `early`); a request draws once."""
        if now < found.plan.refresh_from:
            return False
        drawn: bool | None = request.state.get(self._drawn)
        if drawn is None:
            drawn = due(now, found.plan.expires, found.cost, self.config.early_refresh, self.chance())
            request.state[self._drawn] = drawn
        return drawn

    def _refresh(self, visit: Visit, request: Request, call_next: Handler) -> None:
        """Fetch a fresh answer behind the client's back."""
        if request.method != "HEAD" and visit.stale is not None:
            self._flights.refresh(Errand(self._fetcher, visit, request, call_next), visit.stale)

    @staticmethod
    async def _forward(request: Request, call_next: Handler, detail: str) -> Response:
        return mark(await call_next(request), MISS, detail)

    # -- beside requests ---------------------------------------------------------------------------

    def _now(self) -> float:
        return self.clock()

    async def _report(self) -> None:
        """Take part in the ranking of hot keys; keep the generations that everything hangs on."""
        renewed = 0.0
        while True:
            await asyncio.sleep(self.report_seconds)
            try:
                await self._store.pay()
                await self._hot.report(self._redis)
                if time.monotonic() - renewed > RENEW_SECONDS:
                    renewed = time.monotonic()
                    for name in self._lasting:
                        await self._store.renew(name)
            except (RedisError, ValueError) as error:
                logger.debug("%s: %s", self.name, error)


def _ask_for_originals(request: Request) -> None:
    """The upstream does not know the tags of what was packed here."""
    for name in ("If-Match", "If-None-Match"):
        if SUFFIX in (text := ", ".join(request.headers.getall(name, ()))):
            request.set_header(name, original_etag(text))
