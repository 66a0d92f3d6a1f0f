"""From a request to what is stored for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.plugin import Answer, Known, Request
from plugins.cache.entry import Entry, Index, Stored, Uncacheable
from plugins.cache.generations import SOFT, VALID, softened
from plugins.cache.hot import HotKeys
from plugins.cache.keys import Address, Place
from plugins.cache.store import Asked, Store, ends_of
from plugins.cache.target import Target, Targets
from plugins.cache.vary import selecting
from plugins.cache.wanted import Found


class Visit:
    """One request's way through the cache, where its answer was not simply there.

    Args:
        number: which copy of a hot entry was asked for.
        answer: what was asked for at the address, once; None: nothing yet.
    """

    __slots__ = (
        "address",
        "answer",
        "asked",
        "at_common",
        "closely",
        "facts",
        "index",
        "number",
        "place",
        "request",
        "retried",
        "stale",
        "target",
        "who",
    )

    def __init__(self, request: Request, target: Target, number: int, answer: Answer | None) -> None:
        self.request = request
        self.target = target
        self.facts = target.facts
        self.address: Address = target.address
        self.at_common = target.at_common
        """The address is the one for all: what lies there is for this request only if it is `Entry.common`."""
        self.who = target.who
        self.number = number
        self.answer = answer
        self.asked: Asked | None = None
        self.place: Place = target.address
        """Where the answer itself lies, as far as it is known."""
        self.index: Index | None = None
        self.closely = False
        """What was found was not the newest: the primary is asked, not a replica, nor the mirror of one."""
        self.retried = False
        """It has waited for a fetch that failed."""
        self.stale: Entry | None = None
        """What can be served if fetching fails."""

    @property
    def shared(self) -> bool:
        """What is kept at the address is for anybody."""
        return not self.who or self.at_common

    def turn(self, address: Address, *, at_common: bool) -> None:
        """Look at this address from now on; nothing is known of it yet."""
        self.address = self.place = address
        self.at_common = at_common
        self.asked = self.index = None

    def whose(self, request: Request) -> bool:
        """Whether the request still is for whom its answer would be kept: plugins behind the cache may know more."""
        target = self.target
        return target.shared or (target.identity == request.identity and not request.identity_pending)


class Lookup:
    """Finds what is stored."""

    def __init__(self, store: Store, targets: Targets, hot: HotKeys, *, clock: Callable[[], float]) -> None:
        self.store = store
        self.targets = targets
        self.keys = targets.keys
        self.hot = hot
        self._clock = clock

    def number(self, address: Address) -> int:
        """Which copy to read: 0 is the entry itself."""
        return self.hot.shard(address.digest)

    def ask(self, address: Address, number: int) -> Answer:
        """Have everything read that can be named already, with this tick's write; see `Store.find`."""
        return self.store.find(address.wanted_of(number) if number else address.wanted)

    async def find(self, visit: Visit, request: Request) -> Entry | Uncacheable | None:
        """What is stored for the request and not purged; it may be stale. Fills in `address`, `place` and `index`.

        Raises:
            RedisError: Redis cannot tell.
        """
        return self._mine(visit, await self._stored(visit, request))

    async def part(self, visit: Visit, stored: Stored | None) -> Entry | Uncacheable | None:
        """What is left of what lies where a part may, `visit.place.part`."""
        found = await self.usable(visit, stored)
        return None if isinstance(found, Index) else self._mine(visit, found)

    @staticmethod
    def _mine(visit: Visit, found: Entry | Uncacheable | None) -> Entry | Uncacheable | None:
        """What is found, if it is for this request."""
        return found if not visit.at_common or (type(found) is Entry and found.common) else None

    def turn(self, visit: Visit) -> None:
        """Look where the answer for all lies, if by now it is known that there is one."""
        common = visit.target.common
        if common is not None and not visit.at_common and self.targets.commons.known(common.digest):
            visit.turn(common, at_common=True)
            # What was found before is one client's own: nothing for all is made of it.
            visit.stale = None

    async def _stored(self, visit: Visit, request: Request) -> Entry | Uncacheable | None:
        if visit.answer is None:
            before = self.store.asked
            visit.number = self.number(visit.address)
            if visit.closely:
                visit.answer, visit.asked = self.store.peek(visit.address.shard(visit.number)), None
            else:
                visit.answer = self.ask(visit.address, visit.number)
            self._count_trip(visit, before)
        answer, visit.answer = visit.answer, None
        visit.place, visit.index = visit.address, None
        found = await answer
        if visit.closely:
            (stored,) = found
        elif type(found) is list:
            stored, *values = found
            generations = visit.address.generations
            visit.asked = Asked(
                answer.state if type(answer) is Found else self.store.state,
                generations,
                [Known(value) for value in values[: len(generations)]],
            )
        else:
            stored = found
        if type(stored) is Entry and stored.tags != visit.address.tags:
            visit.address.expect(stored.tags)
        found = await self._at(visit, visit.address, visit.number, stored)
        if type(found) is Index and found.names:
            visit.index = found
            visit.place = self.place_of(visit, request, found.names, request.changes)
            number = self.hot.shard(visit.place.digest)
            before = self.store.asked
            answer = self._variant(visit, number)
            self._count_trip(visit, before)
            stored = await answer
            if visit.closely:
                (stored,) = stored
            if stored is not None and not isinstance(answer, Known):
                self.hot.count(visit.place.digest, visit.target)
            found = await self._at(visit, visit.place, number, stored)
        return None if isinstance(found, Index) else found

    def _variant(self, visit: Visit, number: int) -> Answer:
        key = visit.place.shard(number)
        return self.store.peek(key) if visit.closely else self.store.read(key, anywhere=True)

    def place_of(
        self, visit: Visit, request: Request, names: tuple[str, ...], changes: Mapping[bytes, bytes | None]
    ) -> Place:
        """Where the answer lies for a request like this one, if it varies on these fields."""
        if not names:
            return visit.address
        return visit.address.variant(names, selecting(request, names, changes))

    async def usable(self, visit: Visit, stored: Stored | None) -> Stored | None:
        """What is left of it: itself, or after a soft purge a copy that is not fresh; None if it is purged or over."""
        if type(stored) is not Entry:
            return stored if stored is not None and ends_of(stored) > self._clock() else None
        if stored.proven == self.store.state:
            return stored
        asked, visit.asked = visit.asked, None
        if asked is None:
            before = self.store.asked
            asked = self.store.ask_generations(visit.address.generations)
            self._count_trip(visit, before)
        standing = await self.store.valid(stored, asked, self.keys.prefix)
        if standing is SOFT:
            return softened(stored, asked.purged_at, self._clock())
        return stored if standing is VALID else None

    def _count_trip(self, visit: Visit, before: int) -> None:
        """Nothing was awaited since `before` was read: what was asked is this request's own."""
        if self.store.asked != before:
            _ = visit.request.redis

    async def _at(self, visit: Visit, place: Place, number: int, stored: Stored | None) -> Stored | None:
        left = await self.usable(visit, stored)
        if number and (left is None or left is not stored or ends_of(left) <= self._clock()):
            # The copy is missing or outlived: the entry itself tells, and is copied.
            if self.store.may_lag:
                (stored,) = await self.store.peek(place.entry)
            else:
                stored = await self.store.read(place.entry)
            left = await self.usable(visit, stored)
            if left is stored and type(left) in (Entry, Index):
                self.store.copy(place.shard(number), left, ends_of(left) - self._clock())
        return left
