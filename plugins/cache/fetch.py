"""Fetching an answer: without what only the one client asked for, into memory up to a bound, and into Redis."""

from __future__ import annotations

import logging
from dataclasses import replace
from email.utils import formatdate
from typing import Any, Final

from multidict import CIMultiDict

from gateway.plugin import Answer, Handler, RedisError, Request, Response, header_line, problem
from plugins.cache.answers import ADDED, members
from plugins.cache.compress import packed
from plugins.cache.entry import Entry, Index, Stored, Uncacheable, fields_of
from plugins.cache.exchange import Exchange
from plugins.cache.fetcher import Fetcher
from plugins.cache.generations import fingerprints
from plugins.cache.keys import Place
from plugins.cache.lookup import Visit
from plugins.cache.policy import (
    FRESH,
    Plan,
    control,
    is_common,
    judge,
    left_out,
    only_once,
    plan,
    shared_error,
)
from plugins.cache.stampede import AGAIN, ALONE, FETCHED, FOUND, STALE, Handover, Landing
from plugins.cache.store import INDEX_SECONDS
from plugins.cache.syntax import MAX_VARY
from plugins.cache.tags import tags_for
from plugins.cache.tee import ENDLESS, close, whole
from plugins.cache.vary import selecting

logger = logging.getLogger("gateway.cache")

# Requests for what cannot be stored do not wait for each other for this long.
UNCACHEABLE_SECONDS: Final = 10.0
TURNED_SECONDS: Final = 10.0


class Errand:
    """The fetch of one answer; see `stampede.Work`.

    Args:
        visit: of the request that is sent; nobody else uses it meanwhile.
    """

    def __init__(self, fetcher: Fetcher, visit: Visit, request: Request, call_next: Handler) -> None:
        self.place = visit.place
        self._exchange = Exchange(request, call_next, limit=fetcher.max_body, patience=fetcher.patience)
        self._fetcher = fetcher
        self._store = fetcher.store
        self._visit = visit
        self._request = request
        self._call_next = call_next
        self._changes = request.changes
        self._turned = False
        self._elsewhere = False
        self._began = fetcher.clock()
        self._peeked: Answer | None = None
        self._generations: Answer | None = None

    def prepare(self) -> None:
        """Have read what is stored as a part or for all, and the generations as they stand.

        Before the fetch: what is purged while it lasts is not stored as if it was made afterwards.
        """
        store, visit = self._store, self._visit
        self._peeked = None
        if visit.stale is None:
            common = None if visit.at_common else visit.target.common
            self._peeked = store.peek(visit.place.part.entry, *(() if common is None else (common.entry,)))
        self._generations = store.generations(visit.address.generations)

    async def look(self) -> Landing | None:
        """Whether another worker has stored something that will do."""
        return await self.landed(await self._store.read(self.place.entry))

    async def landed(self, found: Stored | None) -> Landing | None:
        """Whether this will do for all who wait here."""
        found = await self._fetcher.lookup.usable(self._visit, found)
        if found is None:
            return None
        if isinstance(found, Entry):
            stale = self._visit.stale
            newer = stale is None or found.plan.born > stale.plan.born
            mine = found.common or not self._visit.at_common
            fresh = newer and mine and judge(found.plan, {}, self._fetcher.clock()) == FRESH
            return Landing(FOUND, self.place, entry=found) if fresh else None
        if isinstance(found, Index):
            # Without names it says that the answer has just been stored where it is for all.
            return Landing(AGAIN, self.place) if found.names or found.made > self._began else None
        return Landing(ALONE, self.place)

    async def fetch(self, owner: str, since: int, answer: Handover) -> Landing:
        """Get the answer and store it if that is allowed; the lock is released either way."""
        request, clock = self._request, self._fetcher.clock
        known, standing = await self._before()
        if self._elsewhere:
            self._store.release(self.place, owner)
            self._fetcher.lookup.targets.learn(request, self._visit.target)
            return Landing(AGAIN, self.place)
        self._changes = dict(request.changes)
        sent = clock()
        try:
            response = await self._ask(known)
        except Exception:
            if self._stale(clock()) is None:
                raise
            return await self._failed(owner, None, None)
        received = clock()
        fields = fields_of(response.head())
        failed = response.status >= 500
        if failed and self._stale(received) is not None:
            return await self._failed(owner, response, None)
        mine = self._visit.whose(request)
        if not mine:
            made: Plan | str = "identity"
        elif not self._turn(fields, known, failed=failed):
            mine, made = False, "not-for-all"
        else:
            made = self._plan(response.status, fields, sent, received)
        generations = [standing[name] for name in self._visit.address.generations]
        body = None
        if failed or isinstance(made, Plan):
            try:
                body = await self._body(response, fields, None if failed else answer)
            except Exception as error:
                # It breaks off here and not in the middle of what the client takes for the whole.
                logger.warning("cache: an answer broke off while it was read (%s)", type(error).__name__)
                response = problem(502, "Bad Gateway", "The server behind this gateway did not give a usable answer.")
                fields, made, failed = fields_of(response.head()), "broken", True
                assert isinstance(response.body, bytes)
                body = response.body
        if failed and isinstance(made, str):
            vary = shared_error(
                fields, shared=self._visit.shared, authorized=self._authorized, rules=self._fetcher.rules
            )
            entry = None
            if mine and vary is not None and body is not None:
                entry = self._entry(response, fields, only_once(received, vary), body, fingerprints(generations))
            return await self._failed(owner, response, entry)
        if isinstance(made, str) or body is None:
            return await self._uncacheable(owner, response, made if isinstance(made, str) else "body")
        return await self._save(owner, since, response, fields, made, body, generations, received - sent)

    # -- inside ------------------------------------------------------------------------------------

    async def _before(self) -> tuple[Entry | None, dict[bytes, bytes]]:
        """What is stored, out of date or a part, and the generations; see `prepare`."""
        assert self._generations is not None  # `prepare` comes first
        standing = dict(zip(self._visit.address.generations, await self._generations, strict=True))
        if self._peeked is None:
            return self._visit.stale, standing
        part, *for_all = await self._peeked
        if for_all:
            self._elsewhere = await self._is_for_all(for_all[0])
        found = await self._fetcher.lookup.part(self._visit, part)
        return found if isinstance(found, Entry) else None, standing

    async def _is_for_all(self, stored: Stored | None) -> bool:
        """Whether this, from the address for all, leads to a fresh answer that is for all."""
        common = self._visit.target.common
        assert common is not None
        if isinstance(stored, Index):
            place = common.variant(stored.names, selecting(self._request, stored.names, self._request.changes))
            (stored,) = await self._store.peek(place.entry)
        return isinstance(stored, Entry) and stored.common and stored.plan.expires > self._fetcher.clock()

    async def _save(
        self,
        owner: str,
        since: int,
        response: Response,
        fields: CIMultiDict[str],
        made: Plan,
        body: bytes,
        generations: list[bytes],
        cost: float,
    ) -> Landing:
        """Store it, unless one of its tags was purged meanwhile."""
        store = self._store
        tags = tags_for(self._request, fields, self._fetcher.tags, self._fetcher.templates) or ()
        try:
            tagged = await store.tag_generations(self._fetcher.lookup.keys.prefix, tags, since) if tags else []
        except RedisError as error:
            # The answer is here: what cannot be done is to keep it.
            self._fetcher.complain(error)
            store.release(self.place, owner)
            return self._landing(ALONE, self.place, response=response, detail="detail=redis")
        if tagged is None:
            store.release(self.place, owner)
            return self._landing(AGAIN, self.place, response=response, detail="detail=purged")
        entry = self._entry(response, fields, made, body, fingerprints([*generations, *tagged]), tags, cost)
        return await self._write(owner, response, entry)

    async def _body(self, response: Response, fields: CIMultiDict[str], answer: Handover | None) -> bytes | None:
        """The whole body. A large one is given to the client as it comes, if there is an `answer` to do it with."""
        if fields.get("Content-Type", "").lower().startswith(ENDLESS):
            return None

        def hand(shown: Response) -> None:
            assert answer is not None
            answer(self._landing(FETCHED, self.place, response=shown, detail="detail=streamed"))

        facts = self._visit.facts
        # Who may have it already, or wants a part of it, gets that from what is stored.
        early = answer is not None and not facts.conditions and not facts.ranges
        return await whole(
            response,
            max_body=self._fetcher.max_body,
            patience=self._fetcher.patience,
            hand=hand if early else None,
        )

    async def _ask(self, known: Entry | None) -> Response:
        """The upstream's answer.

        Args:
            known: what is stored, out of date or a part.
        """
        return await self._exchange.whole(known)

    def _turn(self, fields: CIMultiDict[str], known: Entry | None, *, failed: bool) -> bool:
        """Turn to where an answer like this belongs; False where it cannot be kept, as nobody looked there before.

        Args:
            known: what was stored.
            failed: it is an error, which says nothing about where others belong.
        """
        visit, request, targets = self._visit, self._request, self._fetcher.lookup.targets
        common = visit.target.common
        if common is None or visit.at_common == is_common(fields, self._fetcher.rules):
            return True
        if known is not None and not known.common and self._exchange.status in (206, 304):
            return True  # it is made of what was one client's own, which stays his
        if failed:
            return not visit.at_common
        if visit.at_common:
            targets.forget(request, visit.target)
            return False
        targets.learn(request, visit.target)
        visit.turn(common, at_common=True)
        self._turned = True
        return True

    def _landing(self, how: str, place: Place, **more: Any) -> Landing:
        return Landing(how, place, status=self._exchange.status, **more)

    @property
    def _authorized(self) -> bool:
        return bool(self._visit.facts.credentials) or self._request.identity is not None

    def _plan(self, status: int, fields: CIMultiDict[str], sent: float, received: float) -> Plan | str:
        visit, fetcher = self._visit, self._fetcher
        if tags_for(self._request, fields, fetcher.tags, fetcher.templates) is None:
            return "tags"
        made = plan(
            status,
            fields,
            shared=visit.shared,
            authorized=self._authorized,
            rules=fetcher.rules,
            sent=sent,
            received=received,
            chance=fetcher.chance(),
        )
        if isinstance(made, Plan) and visit.index is not None:
            # Once variants are told apart by a field, they stay so: another answer may have left it out of `Vary`.
            names = tuple(sorted({*made.vary, *visit.index.names}))
            return replace(made, vary=names) if len(names) <= MAX_VARY else "vary"
        return made

    def _entry(
        self,
        response: Response,
        fields: CIMultiDict[str],
        made: Plan,
        body: bytes,
        prints: tuple[bytes, bytes],
        tags: tuple[str, ...] = (),
        cost: float = 0.0,
    ) -> Entry:
        rules = self._fetcher.rules
        out = left_out(control(fields, rules).directives, rules, shared=self._visit.shared)
        without = {*ADDED, *[name.encode("utf-8", "surrogateescape") for name in out]}
        lines = [line for line in response.head().split(b"\r\n") if line]
        named = [(line.partition(b":")[0].lower(), line) for line in lines]
        kept = [(name, line) for name, line in named if name not in without]
        head = b"".join([line + b"\r\n" for _, line in kept])
        names = [name for name, _ in kept]
        if "Date" not in fields:
            # RFC 9110, section 6.6.1.
            head += header_line("Date", formatdate(self._fetcher.clock(), usegmt=True))
            names.append(b"date")
        return Entry(
            response.status,
            made,
            head,
            frozenset((*names, *ADDED)),
            body,
            generations=prints[0],
            hard=prints[1],
            tags=tags,
            reason=response.reason,
            prior=members(fields),
            cost=round(cost, 3),
            common=is_common(fields, rules),
        )

    def _stale(self, now: float) -> Entry | None:
        """What can be served in place of an error."""
        stale = self._visit.stale
        return stale if stale is not None and stale.status < 500 and now < stale.plan.error_until else None

    async def _failed(self, owner: str, response: Response | None, entry: Entry | None) -> Landing:
        """An error: the stale answer instead, or the same error for all who wait, so that they do not all try."""
        self._store.release(self.place, owner)
        stale = self._stale(self._fetcher.clock())
        if stale is not None:
            if response is not None:
                await close(response)
            return self._landing(STALE, self.place, entry=stale)
        if entry is None:
            return self._landing(ALONE, self.place, response=response)
        names = entry.plan.vary
        return self._landing(FETCHED, self._place(names), entry=entry, response=response, names=names)

    async def _uncacheable(self, owner: str, response: Response, why: str) -> Landing:
        """Let the others go, also those that come in the next seconds.

        But not where this one request may be the reason (it was refused, or wants another answer than the one that is
        there): a client could keep away from all others what is stored for them.
        """
        now, visit = self._fetcher.clock(), self._visit
        kept = visit.stale
        spared = kept is not None and response.status != 200 and now < kept.plan.error_until
        if response.status >= 400 or visit.at_common or spared or (kept is not None and now < kept.plan.expires):
            self._store.release(self.place, owner, nothing=True)
        else:
            try:
                await self._store.write(self.place, owner, Uncacheable(now + UNCACHEABLE_SECONDS), UNCACHEABLE_SECONDS)
            except RedisError as error:
                self._fetcher.complain(error)
                self._store.release(self.place, owner)
        return self._landing(ALONE, self.place, response=response, detail=f"detail={why}")

    async def _write(self, owner: str, response: Response, entry: Entry) -> Landing:
        """Where the request finds it, and the index that leads there."""
        kept = await packed(entry, self._fetcher.compress_over)
        store, visit, now = self._store, self._visit, self._fetcher.clock()
        names = entry.plan.vary
        place = self._place(names) if entry.part is None else self._place(names).part
        ttl = entry.plan.ends - now
        detail = "stored"
        written: list[tuple[Place, Stored, float]] = [(place, kept, ttl)]
        if names and (visit.index is None or visit.index.names != names or now - visit.index.made > INDEX_SECONDS / 2):
            written.append((visit.address, Index(names, now), INDEX_SECONDS))
        late = False
        try:
            if place.digest != self.place.digest and not await store.extend(self.place, owner):
                return self._landing(AGAIN, place, response=response, detail="detail=late")
            # First what the generations of the URL and the user hang on: they need not outlive it by much.
            store.keep(visit.address.generations, ttl)
            # The one with the lock comes last: who is let in finds all of it.
            for where, stored, seconds in sorted(written, key=lambda one: one[0].digest == self.place.digest):
                if where.digest == self.place.digest:
                    late = not await store.write(where, owner, stored, seconds)
                else:
                    await store.put(where.entry, stored, seconds)
                for number in () if late else self._fetcher.lookup.hot.shards(where.digest):
                    store.copy(where.shard(number), stored, seconds)
            if self._turned:
                # Who waits where this began looks again, and finds it there.
                await store.write(self.place, owner, Index((), now), TURNED_SECONDS)
            elif self.place.digest not in (place.digest, visit.address.digest):
                store.release(self.place, owner)
        except (RedisError, ValueError) as error:
            self._fetcher.complain(error)
            store.release(self.place, owner)
            detail = "detail=redis"
        if late:
            # Another worker has fetched it meanwhile: who waits finds that.
            return self._landing(AGAIN, place, response=response, detail="detail=late")
        if entry.plan.expires <= now:
            # It is there to be revalidated: who waits does that for himself.
            return self._landing(AGAIN, place, response=response, detail=detail)
        return self._landing(FETCHED, place, entry=entry, response=response, names=names, detail=detail)

    def _place(self, names: tuple[str, ...]) -> Place:
        return self._fetcher.lookup.place_of(self._visit, self._request, names, self._changes)
