"""One fetch for what is missing: one flight for each key in a worker, one holder of its lock in the fleet.

    request ── a flight here? ── yes ─▶ wait for it
                    │ no
               start one ── lock ours? ── yes ─▶ is it there now? fetch, write, release
                                 │ no
                            read entry and lock (from then on Redis tells us of changes)
                                 │
                            there ─▶ land      gone ─▶ try the lock      neither ─▶ wait for a push

A holder that dies holds others up for `lock_ttl` at most: the lock ends by itself. One that takes longer extends it. A
flight is a task of its own: a client that leaves does not end the fetch that others wait for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import Final, Protocol

from gateway.plugin import RedisError, Response
from plugins.cache.entry import Entry, Stored
from plugins.cache.keys import Place
from plugins.cache.store import Store

logger = logging.getLogger("gateway.cache")

# Each may hold a body of `max_body`; requests past this go to the upstream by themselves.
MAX_FLIGHTS: Final = 1000

# How a flight ends.
FOUND: Final = "found"  # another worker has stored it meanwhile
FETCHED: Final = "fetched"  # the answer can be shared, stored or not
STALE: Final = "stale"  # the fetch failed; the stale answer will do
ALONE: Final = "alone"  # it cannot be shared, or takes too long: each goes to the upstream
AGAIN: Final = "again"  # it lies elsewhere by now: look again


class Landing:
    """The end of a flight.

    Args:
        how: one of the above.
        place: where the entry lies, or would.
        entry: what all who waited may have, if it fits them.
        response: what the one who fetched answers; nobody else may use it.
        names: the request fields that `place` depends on.
        detail: what the fetch came to, as parameters for `Cache-Status`.
    """

    __slots__ = ("detail", "entry", "how", "names", "place", "response")

    def __init__(
        self,
        how: str,
        place: Place,
        *,
        entry: Entry | None = None,
        response: Response | None = None,
        names: tuple[str, ...] = (),
        detail: str = "",
    ) -> None:
        self.how = how
        self.place = place
        self.entry = entry
        self.response = response
        self.names = names
        self.detail = detail

    def __repr__(self) -> str:
        return f"<Landing {self.how} {self.entry}>"


class Work(Protocol):
    """What a flight is for."""

    place: Place

    async def look(self) -> Landing | None:
        """Whether it is there by now, as the mirror knows it."""

    async def landed(self, found: Stored | None) -> Landing | None:
        """Whether what Redis holds will do."""

    async def fetch(self, owner: str, since: int) -> Landing:
        """Get it; write it and release the lock.

        Args:
            owner: the lock's.
            since: when the lock was taken, in microseconds by Redis' clock.
        """


class Flight:
    """One flight, and whoever waits for it."""

    __slots__ = ("_closing", "_led", "_task")

    def __init__(self, task: asyncio.Task[Landing], closing: Callable[[Awaitable[None]], None], *, led: bool) -> None:
        self._task = task
        self._closing = closing
        self._led = led
        task.add_done_callback(self._ended)

    async def land(self, timeout: float) -> Landing | None:
        """Its end; None if it has not come after `timeout` seconds. For those who did not start it.

        Raises:
            Exception: what the fetch raised.
        """
        done, _ = await asyncio.wait((self._task,), timeout=timeout)
        return self._task.result() if done else None

    async def lead(self) -> Landing:
        """Its end, for the one who started it. If he leaves, the others get what they wait for.

        Raises:
            Exception: what the fetch raised.
        """
        try:
            await asyncio.wait((self._task,))
        except asyncio.CancelledError:
            self._led = False
            if self._task.done():
                self._ended(self._task)
            raise
        return self._task.result()

    def _ended(self, task: asyncio.Task[Landing]) -> None:
        if task.cancelled() or task.exception() is not None:
            return
        response = task.result().response
        if not self._led and response is not None and not isinstance(response.body, bytes):
            self._closing(response.body.aclose())


class Flights:
    """All flights of one worker.

    Args:
        store: locks and entries.
        lock_ttl: seconds after which a dead holder's lock ends.
        wait_timeout: seconds after which a request goes to the upstream itself.
    """

    def __init__(self, store: Store, *, lock_ttl: float, wait_timeout: float) -> None:
        self._store = store
        self._lock_ttl = lock_ttl
        self._wait_timeout = wait_timeout
        self._flights: dict[str, Flight] = {}
        self._alone = 0  # fetches without a flight
        self._tasks: set[asyncio.Task[object]] = set()

    def __repr__(self) -> str:
        return f"<Flights {len(self._flights)} under way>"

    def under_way(self, place: Place) -> Flight | None:
        """The flight that somebody has started for this place."""
        return self._flights.get(place.digest)

    def start(self, work: Work, *, led: bool = True) -> Flight | None:
        """Start one; None if there are too many.

        Args:
            led: whether somebody will take its response with `Flight.lead`.
        """
        name = work.place.digest
        if len(self._flights) + self._alone >= MAX_FLIGHTS:
            return None
        task = asyncio.get_running_loop().create_task(self._fly(work))
        flight = self._flights[name] = Flight(task, self._in_background, led=led)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._flights.pop(name, None))
        return flight

    async def now(self, work: Work) -> Landing | None:
        """Fetch at once if nobody else does; None if somebody does, or there are too many fetches.

        Raises:
            RedisError: Redis cannot tell.
        """
        if len(self._flights) + self._alone >= MAX_FLIGHTS:
            return None
        owner = token_hex(8)
        self._alone += 1
        try:
            grant = await self._store.acquire(work.place, owner)
            return await self._hold(work, owner, grant.time) if grant.owned else None
        finally:
            self._alone -= 1

    async def stop(self) -> None:
        """End all flights; locks are given back."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- inside ------------------------------------------------------------------------------------

    async def _fly(self, work: Work) -> Landing:
        store, place = self._store, work.place
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_timeout
        owner = token_hex(8)
        while True:
            grant = await store.acquire(place, owner)
            if grant.owned:
                # Between our look and our lock somebody may have fetched it.
                landing = await work.landed(grant.found) if grant.found is not None else None
                if landing is None:
                    return await self._hold(work, owner, grant.time)
                store.release(place, owner)
                return landing
            again = True
            while again:
                with store.watch(place) as watch:
                    landing = await work.look()
                    if landing is not None:
                        return landing
                    left = deadline - loop.time()
                    if left <= 0:
                        return Landing(ALONE, place, detail="detail=wait-timeout")
                    if not await store.held(place):
                        break
                    again = await watch.wait(min(left, self._lock_ttl))

    async def _hold(self, work: Work, owner: str, since: int) -> Landing:
        """Fetch with the lock in hand."""
        keeper = asyncio.get_running_loop().create_task(self._extend(work.place, owner))
        try:
            return await work.fetch(owner, since)
        except BaseException:
            self._store.release(work.place, owner)
            raise
        finally:
            keeper.cancel()

    async def _extend(self, place: Place, owner: str) -> None:
        while True:
            await asyncio.sleep(self._lock_ttl / 2)
            try:
                await self._store.extend(place, owner)
            except RedisError as error:
                logger.debug("a lock could not be extended: %s", error)

    def _in_background(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
