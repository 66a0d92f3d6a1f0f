"""Keeps answers of the upstream, and gives them to the requests they were made for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from random import random
from typing import TYPE_CHECKING, Any, Final

from gateway.plugin import (
    LATER,
    PASS,
    Answer,
    Handler,
    Later,
    Plugin,
    Redis,
    RedisError,
    Request,
    Response,
    Seldom,
    share_patience,
)
from plugins.cache.answers import hit, mark, not_stored
from plugins.cache.compress import restore_etags
from plugins.cache.config import CacheConfig
from plugins.cache.entry import Entry
from plugins.cache.fetcher import Fetcher
from plugins.cache.generations import Ending
from plugins.cache.hot import RANK, HotKeys
from plugins.cache.invalidation import changed_urls
from plugins.cache.keys import Keys, everything, of_route
from plugins.cache.lookup import Lookup, Visit
from plugins.cache.purge import Purge
from plugins.cache.purge_method import PurgeMethod
from plugins.cache.purge_rules import PurgeRules
from plugins.cache.remains import Remains
from plugins.cache.serving import Serving
from plugins.cache.stampede import Flights
from plugins.cache.store import SCRIPTS, Store
from plugins.cache.tags import Template
from plugins.cache.target import Target, Targets
from plugins.cache.tee import close

if TYPE_CHECKING:
    from gateway.console import Context
    from gateway.plugin import Worker

logger = logging.getLogger("gateway.cache")

# The upstream may have done what it was asked for before it failed.
UNKNOWN: Final = frozenset({502, 504})
# Requests that may change something, and whose clients have gone, that are waited for.
MAX_LEFT: Final = 100
REPORT_SECONDS: Final = 1.0
RENEW_SECONDS: Final = 600.0
MAX_SKEW: Final = 1.0


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
        self.wall: Callable[[], float] = time.time
        """This machine's clock, to be compared with Redis'."""
        self._skew = 0.0
        self._number = f"{name}.number"
        self.report_seconds = REPORT_SECONDS
        self._reporter: asyncio.Task[None] | None = None
        self._left = 0
        self._complaint = Seldom()

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
        self._serving = Serving(
            self.name, config, self._fetcher, self._flights, clock=self._now, chance=lambda: self.chance()
        )
        self._remains = Remains(redis, keys, self._hot, max_body=config.max_body, clock=self._now)
        self._rules = PurgeRules(config.purge_rules)
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
        with suppress(RedisError):  # it is done again
            await self._compare_clocks()
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
        number = request.state[self._number] = self._lookup.number(target.address)
        return self._lookup.ask(target.address, number)

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
        if target.at_common and not entry.common:
            return None  # it is for those who show no credentials
        now = self.clock() + self._skew
        plan = entry.plan
        if now >= plan.refresh_from and (now >= plan.expires or self._serving.due(request, entry, now)):
            return None
        return hit(entry, now, target.address) if target.gzip or not entry.coding else None

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        target: Target = request.state[self.name]
        if target.unread:
            target = request.state[self.name] = await self._targets.with_body(request, target)
        if target.bypass is not None:
            return await self._bypass(target, request, call_next)
        visit = Visit(request, target, request.state.get(self._number, 0), request.answers.get(self))
        return await self._serving.serve(visit, request, call_next)

    async def without_redis(self, request: Request, call_next: Handler) -> Response:
        target: Target = request.state[self.name]
        unknown = request.identity_pending and self.config.scope != "shared"
        if unknown or not target.fits(request, request.identity):
            target = self._targets.target(request, request.identity, unknown=unknown)
        if target.unread:
            target = await self._targets.with_body(request, target)
        request.state[self.name] = target
        if target.bypass is not None:
            return await self._bypass(target, request, call_next)
        return await self._remains.serve(Visit(request, target, 0, None), request, call_next)

    async def _bypass(self, target: Target, request: Request, call_next: Handler) -> Response:
        if self._purging.takes(request):
            return await self._purging.answer(request)
        if "only-if-cached" in target.facts.asked and request.method in ("GET", "HEAD"):
            return not_stored()
        changing = target.unsafe
        if changing and self.config.compress_over:
            restore_etags(request)
        response = await (self._change(request, call_next) if changing else call_next(request))
        if request.upgrade is None:
            assert target.bypass is not None
            mark(response, PASS, target.bypass)
        return response

    async def _change(self, request: Request, call_next: Handler) -> Response:
        """The answer to what may change something. Whether it has, its answer tells, also if the client has gone:
        nobody is to purge what he may not change by asking and leaving.
        """

        async def answer() -> Response:
            share_patience()
            return await call_next(request)

        answering = asyncio.ensure_future(answer())
        try:
            response = await asyncio.shield(answering)
        except asyncio.CancelledError:
            if self._left >= MAX_LEFT:
                answering.cancel()
            self._flights.in_background(self._end(request, answering))
            raise
        await self._purge_after(request, response)
        return response

    async def _end(self, request: Request, answering: asyncio.Future[Response]) -> None:
        """The end of a request whose client has gone."""
        self._left += 1
        try:
            response = await asyncio.wait_for(answering, self.config.wait_timeout)
        except (TimeoutError, asyncio.CancelledError):
            # What it wanted to change may be changed.
            self._store.purge_later(*self._changed(request, [(request.host, request.target)]))
        except Exception as error:
            logger.debug("%s: a request whose client has gone failed: %s", self.name, error)
        else:
            await close(response)
            await self._purge_after(request, response)
        finally:
            self._left -= 1

    async def _purge_after(self, request: Request, response: Response) -> None:
        if response.status in UNKNOWN:
            self._store.purge_later(*self._changed(request, [(request.host, request.target)]))
        elif response.status < 400:
            # RFC 9111, section 4.4: whoever changed something sees the change.
            try:
                await self._store.purge(*self._changed(request, changed_urls(request, response)))
            except RedisError as error:
                self._complain(error)

    def _complain(self, error: RedisError) -> None:
        """Say that purges have to wait, now and then."""
        if self._complaint.due():
            logger.warning("%s: what was changed could not be purged yet: %s", self.name, error)

    def _changed(self, request: Request, urls: list[tuple[str, str]]) -> list[Ending]:
        """What a change makes void: these URLs, and what rules say."""
        purges = [Purge(urls), *self._rules.after(request)]
        return [ending for purge in purges for ending in purge.endings(self._redis.prefix)]

    # -- beside requests ---------------------------------------------------------------------------

    def _now(self) -> float:
        """Seconds since 1970 by Redis' clock, which all nodes share."""
        return self.clock() + self._skew

    async def _compare_clocks(self) -> None:
        """Learn how far this machine's clock is off, if it is by more than the way to Redis could make of it."""
        asked = self.wall()
        seconds, microseconds = await self._redis.ask("TIME")
        now = self.wall()
        skew = int(seconds) + int(microseconds) / 1e6 - (asked + now) / 2
        wrong = abs(skew) > MAX_SKEW + (now - asked) / 2
        if wrong and not self._skew:
            logger.warning("%s: this machine's clock is %.0f s off; it goes by Redis' clock", self.name, -skew)
        self._skew = skew if wrong else 0.0

    async def _report(self) -> None:
        """Take part in the ranking of hot keys; keep the generations that everything hangs on."""
        renewed = -RENEW_SECONDS
        while True:
            await asyncio.sleep(self.report_seconds)
            try:
                await self._store.pay()
                await self._hot.report(self._redis)
                if time.monotonic() - renewed >= RENEW_SECONDS:
                    renewed = time.monotonic()
                    await self._compare_clocks()
                    for name in self._lasting:
                        await self._store.renew(name)
            except (RedisError, ValueError) as error:
                logger.debug("%s: %s", self.name, error)
