"""One server that decides, as two links, and perhaps a replica beside it; and how its address is found: as the URL
says, or by asking the Sentinels.

The address is asked for anew with each connection, so a failover is over for a worker with its first connection to the
new primary. A connection to a replica is refused by the handshake, and one whose server has become a replica ends with
the first write. Neither helps where the old primary is cut off from the others and does not know it: so a worker behind
Sentinels asks them every half `redis.max_silence`, and leaves a server that is not the one they name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from redis.exceptions import RedisError as ClientError

from gateway.store.answer import RedisDown
from gateway.store.clients import make_async_sentinel
from gateway.store.handshake import Owner
from gateway.store.link import Link, LinkOptions
from gateway.store.prepared import Call, Gets, Read
from gateway.store.script import Script
from gateway.store.url import Address, Place

logger = logging.getLogger("gateway.redis")

Told = TypeVar("Told")

SENTINEL_SECONDS: Final = 1.0
"""All Sentinels are asked at once; one that has not answered by then has no say."""


class Sentinels:
    """The Sentinels of a URL. All are asked, and the newest of their answers counts: one that is cut off from the
    others still names the primary before.
    """

    def __init__(self, place: Place) -> None:
        self._service = place.service
        self._sentinel = make_async_sentinel(place, SENTINEL_SECONDS)
        self._asking: dict[str, asyncio.Task[Any]] = {}

    async def primary(self) -> Address:
        """Where the primary is; those who ask at the same time share the answer.

        Raises:
            RedisDown: no Sentinel names one.
        """
        return await self._share("primary", self._ask_all)

    async def replicas(self) -> list[Address]:
        """Where replicas are that a Sentinel takes for alive, and in touch with their primary."""
        return await self._share("replicas", self._ask_for_replicas)

    async def _share(self, what: str, ask: Callable[[], Coroutine[Any, Any, Told]]) -> Told:
        asking = self._asking.get(what)
        if asking is None or asking.done():
            asking = self._asking[what] = asyncio.get_running_loop().create_task(ask())
        told: Told = await asyncio.shield(asking)
        return told

    async def _ask_for_replicas(self) -> list[Address]:
        named = await asyncio.gather(*map(self._replicas_of, self._sentinel.sentinels))
        return next(filter(None, named), [])

    async def _replicas_of(self, sentinel: Any) -> list[Address]:
        """What one Sentinel names; nothing if it does not answer."""
        try:
            async with asyncio.timeout(SENTINEL_SECONDS):
                named = await sentinel.sentinel_slaves(self._service)
        except Exception as error:  # whatever one of them says, another may name some
            logger.debug("redis: a Sentinel names no replicas: %s", error)
            return []
        in_touch = [state for state in named if state.get("master-link-status") == "ok"]
        return [(str(host), int(port)) for host, port in self._sentinel.filter_slaves(in_touch)]

    async def _ask_all(self) -> Address:
        answers = await asyncio.gather(*(self._ask(sentinel) for sentinel in self._sentinel.sentinels))
        found = [answer for answer in answers if isinstance(answer, dict)]
        named = [state for state in found if self._sentinel.check_master_state(state, self._service)]
        if not named:
            why = "say that it is down" if found else "; ".join(dict.fromkeys(map(str, answers)))
            raise RedisDown(f"the Sentinels name no primary {self._service!r}: they {why}")
        newest = max(named, key=lambda state: int(state.get("config-epoch", 0)))
        return str(newest["ip"]), int(newest["port"])

    async def _ask(self, sentinel: Any) -> dict[str, Any] | str:
        """What one Sentinel knows of the primary, or in words why nothing."""
        try:
            async with asyncio.timeout(SENTINEL_SECONDS):
                known = await sentinel.sentinel_masters()
        except Exception as error:  # whatever one of them says, another may name the primary
            return f"do not answer ({str(error) or 'not in time'})"
        found: dict[str, Any] | None = known.get(self._service)
        return f"know {', '.join(sorted(known)) or 'none'}" if found is None else found

    async def close(self) -> None:
        # Not cancelled: redis-py would leave a connection behind that it was just opening.
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        with contextlib.suppress(ClientError, OSError):
            await self._sentinel.aclose()


class Primary:
    """One server, as two links: `bulk` takes large values, so that they never delay a decision on `main`.

    With `read_from = "replica"` a third one goes to one of its replicas, for reads that may come from `anywhere`. As
    long as that is not open, they travel on the other two.

    Args:
        options: within which bounds.
        owner: where the links go, and who is told.
        server: in a cluster, which one.
        replicas: tells where the replicas are, anew for each connection; None: all is read here.
    """

    def __init__(
        self,
        options: LinkOptions,
        owner: Owner,
        server: str = "",
        replicas: Callable[[], Awaitable[Sequence[Address]]] | None = None,
    ) -> None:
        self.replica: Link | None = None
        if replicas is not None:
            aside = replace(owner, resolve=one_of(replicas), on_state=self._on_replica, scripts={}, replica=True)
            self.replica = Link(options, aside, "replica", server)
        self._on_state = owner.on_state
        self.main = Link(options, owner, "main", server)
        self.bulk = Link(options, owner, "bulk", server)
        self.links = (self.main, self.bulk)

    def __repr__(self) -> str:
        return f"<Primary {self.main!r} {self.bulk!r}>"

    @property
    def all_links(self) -> tuple[Link, ...]:
        """Those that decide, and the one that does not."""
        return self.links if self.replica is None else (*self.links, self.replica)

    def link_of(self, question: Call | Read | Gets) -> Link:
        """The link for a prepared question."""
        if question.anywhere and self.replica is not None and self.replica.open and self.bulk.open:
            return self.replica
        return self.bulk if question.bulk else self.main

    async def start(self) -> None:
        """Connect. Returns after the first try, whether it succeeded or not: the links keep trying."""
        await asyncio.gather(*(link.start() for link in self.all_links))

    async def stop(self) -> None:
        await asyncio.gather(*(link.stop() for link in self.all_links))

    def _on_replica(self, up: bool) -> None:
        # What it has told is withdrawn by nobody else. That it is there withdraws nothing.
        if not up:
            self._on_state(False)


class Watched(Primary):
    """The primary that Sentinels name."""

    def __init__(self, options: LinkOptions, owner: Owner, sentinels: Sentinels) -> None:
        super().__init__(options, owner, replicas=sentinels.replicas if options.read_from == "replica" else None)
        self._sentinels = sentinels
        self._pause = options.max_silence / 2
        self._watcher: asyncio.Task[None] | None = None
        # Not by the cancellation alone: redis-py may take it for its own.
        self._closing = False

    async def start(self) -> None:
        await super().start()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        self._closing = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await super().stop()
        await self._sentinels.close()

    async def _watch(self) -> None:
        while not self._closing:
            # Not all workers of a fleet at once.
            await asyncio.sleep(self._pause * random.uniform(0.8, 1))  # noqa: S311
            try:
                named = await self._sentinels.primary()
            except RedisDown:
                continue  # who is connected may stay: that they do not answer says nothing about Redis
            for link in self.links:
                if not link.up:
                    link.hurry()
                elif link.where != named:
                    link.drop(f"the Sentinels name another primary: {named[0]}:{named[1]}")
            if self.replica is not None and self.replica.up and self.replica.where == named:
                self.replica.drop("it is the primary now")


def primary_of(
    place: Place,
    options: LinkOptions,
    on_push: Callable[[list[Any]], None],
    on_state: Callable[[bool], None],
    scripts: dict[bytes, Script],
) -> Primary:
    """The server of a URL that names one, or Sentinels that do; see `Owner` for the arguments."""
    if place.kind == "sentinel":
        sentinels = Sentinels(place)
        return Watched(options, Owner(place, sentinels.primary, on_push, on_state, scripts), sentinels)
    resolve = None if place.path else fixed(place.hosts[0])
    return Primary(options, Owner(place, resolve, on_push, on_state, scripts))


def one_of(replicas: Callable[[], Awaitable[Sequence[Address]]]) -> Callable[[], Awaitable[Address]]:
    """Of any replica, so that the workers of a fleet spread over them."""

    async def resolve() -> Address:
        found = await replicas()
        if not found:
            raise RedisDown("no replica is known; all is read from the primary")
        return random.choice(found)  # noqa: S311

    return resolve


def fixed(address: Address) -> Callable[[], Awaitable[Address]]:
    """Of a server that is always at one address."""

    async def resolve() -> Address:
        return address

    return resolve
