"""From a request to what is stored for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from gateway.plugin import Answer, Known, Request
from plugins.cache.entry import Entry, Index, Stored, Uncacheable
from plugins.cache.facts import Facts, FactsReader, selecting
from plugins.cache.hot import HotKeys
from plugins.cache.keys import MAX_KNOWN_TEXT, Address, Keys, Place
from plugins.cache.store import Asked, Store, ends_of

Scope = Literal["auto", "user", "shared"]

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class Visit:
    """One request's way through the cache.

    Args:
        bypass: why it is none of the cache's business, as `fwd` of `Cache-Status`; None: it is.
        address: where its answer lies, or the index of variants.
        who: see `Facts.who`.
        shared: there is one copy for all, whoever asks.
    """

    __slots__ = (
        "_identity",
        "_shared",
        "_target",
        "address",
        "answer",
        "asked",
        "bypass",
        "facts",
        "index",
        "place",
        "request",
        "shard",
        "stale",
        "who",
    )

    def __init__(
        self,
        request: Request,
        facts: Facts,
        bypass: str | None,
        address: Address,
        who: tuple[str, ...],
        *,
        shared: bool,
    ) -> None:
        self._identity = request.identity
        self._target = (request.host, request.target)
        self._shared = shared
        self.request = request
        self.facts = facts
        self.bypass = bypass
        self.address = address
        self.who = who
        self.answer: Answer | None = None
        """What was asked for at the address, once."""
        self.shard = 0
        self.asked: Asked | None = None
        self.place: Place = address
        """Where the answer itself lies, as far as it is known."""
        self.index: Index | None = None
        self.stale: Entry | None = None
        """What can be served if fetching fails."""

    def still(self, request: Request) -> bool:
        """Whether plugins before the cache have left the request as it was when this was made."""
        return (
            self._identity == request.identity
            and not request.identity_pending
            and self._target == (request.host, request.target)
        )

    def whose(self, request: Request) -> bool:
        """Whether the request still is for whom its answer would be kept: plugins behind the cache may know more."""
        return self._shared or (self._identity == request.identity and not request.identity_pending)


class Lookup:
    """Finds what is stored.

    Args:
        scope: whom answers are kept for.
        credentials: see `FactsReader`.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        hot: HotKeys,
        *,
        scope: Scope,
        credentials: tuple[str, ...],
        clock: Callable[[], float],
    ) -> None:
        self.store = store
        self.keys = keys
        self.hot = hot
        self._scope = scope
        self._facts = FactsReader(credentials)
        self._clock = clock

    def visit(self, request: Request) -> Visit:
        """Begin: whose request it is must be known, or be known to stay unknown."""
        facts = self._facts.read(request)
        identity = None if self._scope == "shared" else request.identity
        who = () if self._scope == "shared" else facts.who(identity)
        size = len(request.target) + facts.size
        address = (self.keys.address if size <= MAX_KNOWN_TEXT else self.keys.new_address)(
            request.route.name, request.scheme, request.host, request.target, identity, who, facts.steering
        )
        return Visit(request, facts, self._bypass(request, facts, who), address, who, shared=self._scope == "shared")

    def _bypass(self, request: Request, facts: Facts, who: tuple[str, ...]) -> str | None:
        if request.method not in ("GET", "HEAD"):
            return "fwd=method"
        if request.body is not None:
            return "fwd=bypass; detail=body"
        if request.upgrade is not None:
            return "fwd=bypass; detail=upgrade"
        if facts.partial:
            return "fwd=bypass; detail=partial"
        if "no-store" in facts.asked:
            return "fwd=request; detail=no-store"
        if request.identity_pending:
            # Redis could not tell, and the request passes all the same: it may be anybody's.
            return "fwd=bypass; detail=identity-unknown"
        if self._scope == "user" and not who:
            return "fwd=bypass; detail=no-identity"
        return None

    def ask(self, visit: Visit) -> Answer:
        """Have everything read that can be named already, with this tick's write."""
        place = visit.address
        visit.shard = self.hot.shard(place.digest)
        visit.answer = answer = self.store.read(place.shard(visit.shard))
        if type(answer) is not Known or type(answer.value) is not Entry or answer.value.proven != self.store.state:
            visit.asked = self.store.ask_generations(place.generations)
        return answer

    async def find(self, visit: Visit, request: Request) -> Entry | Uncacheable | None:
        """What is stored for the request and not purged; it may be stale. Fills in `place` and `index`.

        Raises:
            RedisError: Redis cannot tell.
        """
        if visit.answer is None:
            before = self.store.asked
            self.ask(visit)
            self._count_trip(visit, before)
        answer, visit.answer = visit.answer, None
        assert answer is not None
        visit.place, visit.index = visit.address, None
        found = await self._at(visit, visit.address, visit.shard, answer)
        if type(found) is Index:
            visit.index = found
            visit.place = self.place_of(visit, request, found.names, request.changes)
            number = self.hot.shard(visit.place.digest)
            before = self.store.asked
            answer = self.store.read(visit.place.shard(number))
            self._count_trip(visit, before)
            found = await self._at(visit, visit.place, number, answer)
        return None if type(found) is Index else found  # type: ignore[return-value]

    def place_of(
        self, visit: Visit, request: Request, names: tuple[str, ...], changes: Mapping[bytes, bytes | None]
    ) -> Place:
        """Where the answer lies for a request like this one, if it varies on these fields."""
        if not names:
            return visit.address
        return visit.address.variant(names, selecting(request, names, changes))

    async def usable(self, visit: Visit, stored: Stored | None) -> bool:
        """Whether it is neither purged nor over."""
        if type(stored) is Entry:
            if stored.proven == self.store.state:
                return True
            asked, visit.asked = visit.asked, None
            if asked is None:
                before = self.store.asked
                asked = self.store.ask_generations(visit.address.generations)
                self._count_trip(visit, before)
            return await self.store.valid(stored, asked, self.keys.prefix)
        return stored is not None and ends_of(stored) > self._clock()

    def _count_trip(self, visit: Visit, before: int) -> None:
        """Nothing was awaited since `before` was read: what was asked is this request's own."""
        if self.store.asked != before:
            _ = visit.request.redis

    async def _at(self, visit: Visit, place: Place, number: int, answer: Answer) -> Stored | None:
        stored: Stored | None = await answer
        if stored is not None and type(answer) is not Known:
            self.hot.count(place.digest)
        if number and (stored is None or ends_of(stored) <= self._clock() or not await self.usable(visit, stored)):
            # The copy is missing or outlived: the entry itself tells, and is copied.
            stored = await self.store.read(place.entry)
            if type(stored) in (Entry, Index) and await self.usable(visit, stored):
                self.store.copy(place.shard(number), stored, ends_of(stored) - self._clock())
        return stored if await self.usable(visit, stored) else None
