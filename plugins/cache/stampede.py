"""One fetch for what is missing: one flight for each key in a worker, one holder of its lock in the fleet.

    request ── a flight here? ── yes ─▶ wait for it
                    │ no
               start one ── lock ours? ── yes ─▶ is it there now? fetch, write, release
                                 │ no
                            read entry and lock (from then on Redis tells us of changes)
                                 │
                            there ─▶ land      gone ─▶ try the lock      neither ─▶ wait for a push

A holder that dies holds others up for `lock_ttl` at most: the lock ends by itself. One that takes longer extends it. A
flight is a task of its own: a client that leaves does not end the fetch that others wait for. Who started it may get
his answer before its end: a large one, while it is being stored.

A refresh of what is still served waits for nothing: if somebody else has the lock, he does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

from gateway.plugin import Response, end_patience, share_patience
from plugins.cache.entry import Entry, Stored
from plugins.cache.generations import unlike_any
from plugins.cache.keys import Place
from plugins.cache.store import NOTHING, Grant, Store

# Each may hold a body of `max_body`; requests past this go to the upstream by themselves.
MAX_FLIGHTS: Final = 1000

# How a flight ends.
FOUND: Final = "found"  # another worker has stored it meanwhile
FETCHED: Final = "fetched"  # the answer can be shared, stored or not
STALE: Final = "stale"  # the fetch failed; the stale answer will do
ALONE: Final = "alone"  # it cannot be shared: each goes to the upstream
LATE: Final = "late"  # another worker's fetch takes too long
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
        status: what the upstream answered to this fetch, 304 among it; 0: nothing.
    """

    __slots__ = ("detail", "entry", "how", "names", "place", "response", "status")

    def __init__(
        self,
        how: str,
        place: Place,
        *,
        entry: Entry | None = None,
        response: Response | None = None,
        names: tuple[str, ...] = (),
        detail: str = "",
        status: int = 0,
    ) -> None:
        self.how = how
        self.place = place
        self.entry = entry
        self.response = response
        self.names = names
        self.detail = detail
        self.status = status

    def __repr__(self) -> str:
        return f"<Landing {self.how} {self.entry}>"

    @property
    def failed(self) -> bool:
        """The answer is an error of the upstream that is not to be stored."""
        return self.how == FETCHED and self.status >= 500 and self.entry is not None and self.entry.plan.never_fresh


Handover = Callable[[Landing], None]


class Work(Protocol):
    """What a flight is for."""

    place: Place

    def prepare(self) -> None:
        """Ask Redis for what `fetch` needs to know, before it is called. Nobody waits for it here."""

    async def look(self) -> Landing | None:
        """Whether it is there by now, as the mirror knows it."""

    async def landed(self, found: Stored | None) -> Landing | None:
        """Whether what Redis holds will do."""

    async def fetch(self, owner: str, since: int, answer: Handover) -> Landing:
        """Get it; write it and release the lock.

        Args:
            owner: the lock's.
            since: when the lock was taken, in microseconds by Redis' clock.
            answer: may be called once, with what the one who started the flight answers before its end.
        """


class Flight:
    """One flight, and whoever waits for it.

    Args:
        closing: ends what nobody will send.
        led: somebody takes its response with `lead`.
    """

    __slots__ = ("_answer", "_closing", "_led", "_task")

    def __init__(self, closing: Callable[[Awaitable[None]], None], *, led: bool) -> None:
        self._answer: asyncio.Future[Landing] = asyncio.get_running_loop().create_future()
        self._closing = closing
        self._led = led

    def begin(self, flying: Coroutine[Any, Any, Landing]) -> asyncio.Task[Landing]:
        """Start."""
        self._task = asyncio.get_running_loop().create_task(flying)
        self._task.add_done_callback(self._ended)
        return self._task

    def answer(self, landing: Landing) -> None:
        """Let the one who started it have his response now; the others go on waiting for the end."""
        end_patience()
        if self._led:
            self._answer.set_result(landing)
        else:
            self._close(landing)

    async def land(self, timeout: float) -> Landing | None:
        """Its end; None if it has not come after `timeout` seconds. For those who did not start it.

        Raises:
            Exception: what the fetch raised.
        """
        done, _ = await asyncio.wait((self._task,), timeout=timeout)
        return self._task.result() if done else None

    async def lead(self) -> Landing:
        """Its answer or its end, for the one who started it. If he leaves, the others get what they wait for.

        Raises:
            Exception: what the fetch raised.
        """
        try:
            await asyncio.wait((self._answer, self._task), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._led = False
            if self._answer.done():
                self._close(self._answer.result())
            elif self._task.done():
                self._ended(self._task)
            raise
        return self._answer.result() if self._answer.done() else self._task.result()

    def _ended(self, task: asyncio.Task[Landing]) -> None:
        # Asked for its exception, so that one that nobody waits for is not complained about.
        if not task.cancelled() and task.exception() is None and not self._led:
            self._close(task.result())

    def _close(self, landing: Landing) -> None:
        response = landing.response
        if response is not None and not isinstance(response.body, bytes):
            self._closing(response.body.aclose())


class Lease:
    """A lock in hand, kept until `end`; if that cannot be done it ends by itself.

    Args:
        extend: asks for another `lock_ttl`.
        every: seconds.
    """

    __slots__ = ("_every", "_extend", "_timer")

    def __init__(self, extend: Callable[[], object], *, every: float) -> None:
        self._extend = extend
        self._every = every
        self._timer = asyncio.get_running_loop().call_later(every, self._again)

    def _again(self) -> None:
        self._extend()
        self._timer = asyncio.get_running_loop().call_later(self._every, self._again)

    def end(self) -> None:
        self._timer.cancel()


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

    def start(self, work: Work) -> Flight | None:
        """Start one, which is to be led; None if there are too many."""
        return self._launch(work.place, lambda flight: self._fly(work, flight.answer), led=True)

    def refresh(self, work: Work, known: Entry) -> None:
        """Start one for what is still served, unless there is one or there are too many.

        Args:
            known: what is served. If there is another one by now nothing is fetched.
        """
        if self.under_way(work.place) is None:
            self._launch(work.place, lambda flight: self._refresh(work, known, flight.answer), led=False)

    async def now(self, work: Work) -> Landing | None:
        """Fetch at once if nobody else does; None if somebody does, or there are too many fetches. If the one who
        called this leaves, the fetch goes on.

        Raises:
            RedisError: Redis cannot tell.
        """
        flight = self._launch(None, lambda flight: self._reload(work, flight.answer), led=True)
        if flight is None:
            return None
        landing = await flight.lead()
        return None if landing.how == AGAIN and landing.response is None else landing

    def in_background(self, work: Awaitable[None]) -> None:
        """Have this done that nobody waits for, until the end at most."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End all flights; locks are given back."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- inside ------------------------------------------------------------------------------------

    def _launch(
        self, place: Place | None, flying: Callable[[Flight], Coroutine[Any, Any, Landing]], *, led: bool
    ) -> Flight | None:
        """Start a flight; others can join it where it has a place."""
        if len(self._flights) + self._alone >= MAX_FLIGHTS:
            return None
        flight = Flight(self.in_background, led=led)
        task = flight.begin(flying(flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if place is None:
            self._alone += 1
            task.add_done_callback(self._one_less)
        else:
            name = place.digest
            self._flights[name] = flight
            task.add_done_callback(lambda _: self._flights.pop(name, None))
        return flight

    def _one_less(self, _: object) -> None:
        self._alone -= 1

    async def _reload(self, work: Work, answer: Handover) -> Landing:
        share_patience()
        owner = unlike_any()
        grant = await self._acquire(work, owner)
        return await self._hold(work, owner, grant.time, answer) if grant.owned else Landing(AGAIN, work.place)

    async def _refresh(self, work: Work, known: Entry, answer: Handover) -> Landing:
        store, place = self._store, work.place
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_timeout
        owner = unlike_any()
        grant = await self._acquire(work, owner)
        if grant.owned:
            # `known` may have been purged softly: that leaves this one time as it was.
            if isinstance(grant.found, Entry) and grant.found.plan.kept_until != known.plan.kept_until:
                store.release(place, owner)
                return Landing(AGAIN, place)
            return await self._hold(work, owner, grant.time, answer)
        # Whoever else comes for it here would ask for the lock again: he need not before its holder has ended.
        while (left := deadline - loop.time()) > 0:
            with store.watch(place) as watch:
                if await store.holder(place) in (None, NOTHING):
                    break
                await watch.wait(min(left, self._lock_ttl))
        return Landing(AGAIN, place)

    async def _fly(self, work: Work, answer: Handover) -> Landing:
        share_patience()
        store, place = self._store, work.place
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_timeout
        owner = unlike_any()
        grant = await self._acquire(work, owner)
        while not grant.owned:
            again = True
            while again:
                with store.watch(place) as watch:
                    held = store.holder(place)
                    landing = await work.look()
                    if landing is not None:
                        return landing
                    left = deadline - loop.time()
                    if left <= 0:
                        return Landing(LATE, place, detail="detail=wait-timeout")
                    holder = await held
                    if holder == NOTHING:
                        return Landing(ALONE, place)
                    if holder is None:
                        break
                    again = await watch.wait(min(left, self._lock_ttl))
            grant = await store.acquire(place, owner)
            if grant.owned:
                work.prepare()
        return await self._hold(work, owner, grant.time, answer, grant.found)

    async def _acquire(self, work: Work, owner: str) -> Grant:
        """Try to take the lock; ask at once for what is needed with it in hand, as each trip takes its time. That is
        for who comes first, not for all who have waited for him.
        """
        work.prepare()
        return await self._store.acquire(work.place, owner)

    async def _hold(self, work: Work, owner: str, since: int, answer: Handover, found: Stored | None = None) -> Landing:
        """Fetch with the lock in hand.

        Args:
            found: between our look and our lock somebody may have fetched it.
        """
        lease = Lease(lambda: self._store.extend(work.place, owner), every=self._lock_ttl / 2)
        try:
            landing = await work.landed(found) if found is not None else None
            if landing is None:
                return await work.fetch(owner, since, answer)
        except BaseException:
            self._store.release(work.place, owner)
            raise
        finally:
            lease.end()
        self._store.release(work.place, owner)
        return landing
