"""Entries, locks and generations in Redis, read through the mirror where there is one.

Entries and locks travel on the bulk link, together: who is told that a lock is gone finds the entry. Generations are
small and travel on the main one.

An answer is void unless every generation it was made under (all, route, URL, user, each of its tags) is still what it
was (see `generations`). Those of an answer are read before its fetch begins, so a purge meanwhile wins.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Final

from gateway.plugin import All, Answer, Gets, Known, Read, Redis, RedisDown, RedisError, Script
from plugins.cache.entry import Entry, Stored, Uncacheable, decode, encode
from plugins.cache.generations import (
    GENERATION_SECONDS,
    PURGE_SOFT,
    PURGE_TAG,
    VALID,
    VOID,
    Ending,
    Standing,
    begun_before,
    fingerprint,
    milliseconds,
    purged_at,
    standing,
    unlike_any,
)
from plugins.cache.keys import Place, everything, of_tag
from plugins.cache.policy import MAX_LIFE
from plugins.cache.wanted import Found, Wanted, parse_generation
from plugins.cache.watch import Watch

ACQUIRE: Final = Script.beside(__file__, "acquire.lua")
EXTEND: Final = Script.beside(__file__, "extend.lua")
STORE: Final = Script.beside(__file__, "store.lua")
GENERATION: Final = Script.beside(__file__, "generation.lua")
SCRIPTS: Final = (ACQUIRE, EXTEND, STORE, GENERATION, PURGE_SOFT, PURGE_TAG)

# Of an address' generations the first two are few: everything's and the route's. Clients can make up any number of
# the others, which begin with this life and get a longer one with an answer that is kept.
LASTING: Final = 2
FETCH_SECONDS: Final = 600.0
# In place of a lock, for as long as those who wait for it may take to hear it; see store.lua.
NOTHING: Final = b"nothing"
NOTHING_MS: Final = 1000
INDEX_SECONDS: Final = MAX_LIFE

# Without a mirror nothing is pushed: generations are believed for this long.
BELIEVED_SECONDS: Final = 0.03
MAX_BELIEVED: Final = 10_000
MAX_OWED: Final = 10_000


class Grant:
    """The reply to `Store.acquire`."""

    __slots__ = ("found", "owned", "time")

    def __init__(self, owned: bool, time: int, found: Stored | None) -> None:
        self.owned = owned
        self.time = time
        """Microseconds, by Redis' clock."""
        self.found = found


class Store:
    """What one worker's cache has in Redis.

    Args:
        redis: where it is.
        lock_ttl: seconds after which the lock of a holder that died is void.
    """

    def __init__(self, redis: Redis, *, lock_ttl: float) -> None:
        self._redis = redis
        self._lock_ms = math.ceil(lock_ttl * 1000)
        self._mirrored = redis.mirror.max_bytes > 0
        self._purges = 0
        self._proven_at = -1
        self._believed: dict[bytes, tuple[bytes | None, float]] = {}
        self._owed: dict[Ending, None] = {}
        self._unsure: dict[str, Place] = {}

    @property
    def may_lag(self) -> bool:
        """Whether `find` may tell of an entry what is not so any more: it may come from a replica."""
        return self._redis.reads_replicas

    @property
    def state(self) -> int:
        """Changes whenever this worker hears of a change: until then, what was found valid still is."""
        return self._redis.mirror.invalidations + self._purges

    @property
    def asked(self) -> int:
        """Grows with each question that goes to Redis."""
        return self._redis.asked

    # -- entries -----------------------------------------------------------------------------------

    def read(self, key: bytes, *, anywhere: bool = False) -> Answer:
        """What is stored under a key: an answer, an index, a mark, or None.

        Args:
            anywhere: as a replica has it will do.
        """
        return self._redis.look(Read("GET", key, parse=decode, bulk=True, anywhere=anywhere))

    def peek(self, *keys: bytes) -> Answer:
        """The same of several as a list, past the mirror: it is not to keep what is mostly absent, nor may it have
        what a replica has told.
        """
        return self._redis.gets(Gets([Read("GET", key, parse=decode, bulk=True) for key in keys]))

    def find(self, wanted: Wanted) -> Answer:
        """What is stored, with what proves it: an `Entry` that is proven, or a list of what is stored and of the
        generations that `wanted` names.
        """
        if not self._mirrored:
            if not self.may_lag:
                return self._redis.gets(wanted.gets)
            # The entry may come from a replica; what it hangs on may not.
            return All([self._redis.look(wanted.entry), *map(self._redis.look, wanted.generations)])
        redis = self._redis
        state = redis.mirror.invalidations + self._purges  # `state`, without a call
        stored = redis.look(wanted.entry)
        if type(stored.value) is Entry and stored.value.proven == state:
            return stored
        found = Found([stored, *map(redis.look, wanted.generations)], state)
        if found.ready and found.error is None and type(entry := found.value[0]) is Entry and self.proves(found, entry):
            return Known(entry)
        return found

    def proves(self, found: Answer, entry: Entry) -> bool:
        """Whether the generations that came with an entry are those it was made under. Its tags are not looked at:
        of an entry with tags, those must have been wanted too.
        """
        if self._owed:
            return False  # see `valid`
        values = found.value[1:]
        if type(found) is Found:
            if fingerprint(values) != entry.generations:
                return False
            # The number's object is shared by all that are proven at this state.
            self._proven_at = found.state if found.state != self._proven_at else self._proven_at
            entry.proven = self._proven_at
        elif values != entry.proof:
            if fingerprint(values) != entry.generations:
                return False
            entry.proof = values
        return True

    async def put(self, key: bytes, stored: Stored, ttl: float) -> None:
        """Write without a lock, for `ttl` seconds.

        Raises:
            RedisError: it could not be written.
        """
        await self._redis.ask("SET", key, encode(stored), "PX", milliseconds(ttl), bulk=True)

    def copy(self, key: bytes, stored: Stored, ttl: float) -> None:
        """Write a copy whose loss does not matter, and do not wait."""
        self._redis.tell("SET", key, encode(stored), "PX", milliseconds(ttl), bulk=True)

    async def write(self, place: Place, owner: str, stored: Stored, ttl: float) -> bool:
        """Write what was fetched and release the lock, at once. False, and nothing is written, if the lock has ended
        and what is there may be newer: the process was stopped for longer than it lasts.

        Raises:
            RedisError: it could not be written.
        """
        answer = self._redis.run(
            STORE, [place.lock, place.entry], [owner, encode(stored), milliseconds(ttl)], bulk=True
        )
        # A read after this is to go to Redis: what was read before is no longer so.
        self._redis.mirror.drop(place.entry)
        self._redis.mirror.drop(place.lock)
        return bool(await answer)

    # -- locks -------------------------------------------------------------------------------------

    async def acquire(self, place: Place, owner: str) -> Grant:
        """Take the right to fetch, unless somebody has it.

        Raises:
            RedisError: Redis cannot tell.
        """
        try:
            owned, time, data = await self._redis.run(
                ACQUIRE, [place.lock, place.entry], [owner, self._lock_ms], bulk=True
            )
        except BaseException:
            # Whoever gives up before the reply may have got it all the same: now, or once a server goes on that had
            # stopped, from a connection that is closed by then.
            self.release(place, owner, again=True)
            raise
        try:
            found = decode(data)
        except ValueError:
            found = None  # said once by the read that found it
        return Grant(bool(owned), int(time), found)

    def extend(self, place: Place, owner: str) -> Answer:
        """Keep the lock for another `lock_ttl`; whether it was still ours."""
        return self._redis.run(EXTEND, [place.lock], [owner, self._lock_ms], bulk=True)

    def release(self, place: Place, owner: str, *, nothing: bool = False, again: bool = False) -> None:
        """Give the lock back without having stored anything; nobody waits for the reply.

        Args:
            nothing: tell those who wait for it that there will be nothing for them.
            again: give it back once more with the next `pay`, as is done where Redis is away now.
        """
        told = NOTHING_MS if nothing else 0
        self._redis.tell_script(STORE, [place.lock, place.entry], [owner, "", told], bulk=True)
        if (again or not self._redis.up) and len(self._unsure) < MAX_OWED:
            self._unsure[owner] = place

    def holder(self, place: Place) -> Answer:
        """Who has the right to fetch; `NOTHING` if he had, and there is nothing for those who waited; None: nobody."""
        return self._redis.read("GET", place.lock, bulk=True)

    def watch(self, place: Place) -> Watch:
        """Notices changes from now on. What it is to notice must be read after this."""
        futures = (self._redis.changed(place.entry), self._redis.changed(place.lock)) if self._mirrored else ()
        return Watch(futures, lambda: self._redis.ask("EXISTS", place.lock, bulk=True))

    # -- generations -------------------------------------------------------------------------------

    def ask_generations(self, names: Sequence[bytes]) -> Asked:
        """Have them read with this tick's write; `valid` waits for them."""
        return Asked(self.state, names, [self._generation(name) for name in names])

    def generations(self, names: Sequence[bytes]) -> Answer:
        """The present generations as a list, as Redis itself has them; one that is not there is begun."""
        return All(
            [
                self._begin(name, FETCH_SECONDS if number >= LASTING else GENERATION_SECONDS)
                for number, name in enumerate(names)
            ]
        )

    def keep(self, names: Sequence[bytes], ttl: float) -> None:
        """Have the generations of an answer live as long as it does, in good time for the next one."""
        for name in names[LASTING:]:
            if ttl > FETCH_SECONDS / 2:
                self._redis.tell("PEXPIRE", name, milliseconds(ttl + FETCH_SECONDS), "GT")

    async def tag_generations(self, prefix: str, tags: Sequence[str], since: int) -> list[bytes] | None:
        """The generations of an answer's tags, as they were before its fetch; None if one was purged meanwhile.

        Args:
            since: when the fetch began, in microseconds by Redis' clock.

        Raises:
            RedisError: Redis cannot tell.
        """
        begun = [self._begin(of_tag(prefix, tag)) for tag in tags]
        values = [begun_before(await value, since) for value in begun]
        return None if None in values else [value for value in values if value is not None]

    async def valid(self, entry: Entry, asked: Asked, prefix: str) -> Standing:
        """What purges have left of an entry: all of it, what may be revalidated, or nothing.

        Raises:
            RedisError: Redis cannot tell.
        """
        tags = [of_tag(prefix, tag) for tag in entry.tags]
        if self._owed and not {ending.name for ending in self._owed}.isdisjoint((*asked.names, *tags)):
            return VOID  # Redis has not heard of it yet
        late = self.ask_generations(tags)
        values = await self._replies(asked) + await self._replies(late)
        if fingerprint(values) == entry.generations:
            if self._mirrored:
                entry.proven = asked.state
            return VALID
        # The entry may be newer than what is known here of its generations: Redis itself decides.
        names = (*asked.names, *tags)
        for name in names:
            self._believed.pop(name, None)
        answers = [self._redis.ask("GET", name) for name in names]
        try:
            values = [await answer for answer in answers]
        except RedisDown:
            raise
        except RedisError:
            return VOID  # garbage of another type
        asked.purged_at = purged_at(values)
        return standing(entry, values)

    async def purge(self, *endings: Ending) -> None:
        """End generations.

        Raises:
            RedisError: one could not be ended; `pay` tries again.
        """
        for ending in endings:
            self._owe(ending)
        try:
            for ending, answer in [(ending, self._end(ending)) for ending in endings]:
                await answer
                self._owed.pop(ending, None)
        finally:
            for ending in endings:
                self._believed.pop(ending.name, None)
            # Our own push may come a moment after the reply.
            self._purges += 1

    def purge_later(self, *endings: Ending) -> None:
        """End generations now, without waiting, and once more with the next `pay`."""
        for ending in endings:
            self._owe(ending)
            self._end(ending)

    async def pay(self) -> None:
        """End what could not be ended when it was to be, and give back locks that may be held for nobody.

        Raises:
            RedisError: it still cannot.
        """
        if self._unsure and self._redis.up:
            unsure, self._unsure = self._unsure, {}
            for owner, place in unsure.items():
                self.release(place, owner)
        while self._owed:
            await self.purge(next(iter(self._owed)))

    async def renew(self, name: bytes) -> None:
        """Keep a generation that many answers hang on, if it is there and would end soon."""
        left = await self._redis.ask("PTTL", name)
        if 0 <= left < GENERATION_SECONDS * 1000 / 2:
            self._redis.tell("PEXPIRE", name, milliseconds(GENERATION_SECONDS))

    def _owe(self, ending: Ending) -> None:
        if len(self._owed) >= MAX_OWED:
            self._owed = {Ending(everything(self._redis.prefix)): None}
        self._redis.forget(ending.name)
        self._purges += 1
        # Last: what cannot be ended now does not hold up the others.
        self._owed.pop(ending, None)
        self._owed[ending] = None

    def _end(self, ending: Ending) -> Answer:
        if ending.script is None:
            return self._redis.ask("UNLINK", ending.name)
        return self._redis.run(ending.script, [ending.name], ending.arguments())

    def _begin(self, name: bytes, seconds: float = GENERATION_SECONDS) -> Answer:
        answer = self._redis.run(GENERATION, [name], [unlike_any(), milliseconds(seconds)])
        self._redis.mirror.drop(name)
        self._believed.pop(name, None)
        return answer

    def _generation(self, name: bytes) -> Answer:
        if not self._mirrored and (believed := self._believed.get(name)) and believed[1] > time.monotonic():
            return Known(believed[0])
        return self._redis.read("GET", name, parse=parse_generation)

    async def _replies(self, asked: Asked) -> list[bytes | None]:
        values = [await answer for answer in asked.answers]
        if not self._mirrored:
            until = time.monotonic() + BELIEVED_SECONDS
            for name, answer, value in zip(asked.names, asked.answers, values, strict=True):
                if not isinstance(answer, Known):
                    if len(self._believed) >= MAX_BELIEVED:
                        self._believed.clear()
                    self._believed[name] = (value, until)
        return values


class Asked:
    """Generations that are on their way, and the state of the mirror before they were asked for."""

    __slots__ = ("answers", "names", "purged_at", "state")

    def __init__(self, state: int, names: Sequence[bytes], answers: Sequence[Answer]) -> None:
        self.state = state
        self.names = names
        self.answers = answers
        self.purged_at = 0.0
        """Where `valid` has found `SOFT`: since when, in seconds since 1970."""


def ends_of(stored: Stored) -> float:
    """When something stored is of no more use, in seconds since 1970."""
    if isinstance(stored, Entry):
        return stored.plan.ends
    return stored.until if isinstance(stored, Uncacheable) else stored.made + INDEX_SECONDS
