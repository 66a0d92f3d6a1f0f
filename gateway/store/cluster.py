"""A cluster: which primary has which slot, and how a worker notices that this has changed.

theory of operation
A primary tells a worker of changes only to keys of its own slots. When a slot moves to another one, those keys that are
there are withdrawn, but not those that were absent: "this token is not revoked" would stay in the mirror for ever, and
while the slot is on its way absent keys are already written elsewhere. So each primary is asked, every half
`redis.max_silence`, which slots it has and which are on their way (its own line of `CLUSTER NODES`; nobody knows
better), and whether it still is in touch with the others (`CLUSTER INFO`). Whatever is not as it was empties the
mirror, and what lies in a slot on its way is not kept. A primary that does not answer that question in time is not
believed either.

`MOVED` changes the table at once, for one slot; then all of it is read again from the node that was named, at most
every `REFRESH_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

from gateway.store.answer import RedisDown, RedisError, Reply, Waiting
from gateway.store.attempts import pause_after
from gateway.store.clients import make_node_client
from gateway.store.handshake import Owner
from gateway.store.link import Link, LinkOptions
from gateway.store.mirror import Mirror
from gateway.store.prepared import CACHING_YES, Call, Gets, Read, pack
from gateway.store.resent import ASKING, Routed
from gateway.store.script import Script
from gateway.store.slots import NO_SLOT, SLOTS, Own, Range, addresses, own_line, slot_of
from gateway.store.topology import Primary, fixed
from gateway.store.url import Address, Place

logger = logging.getLogger("gateway.redis")

NOTHING: Final = Own(primary=True, ranges=(), migrating=frozenset())
REFRESH_SECONDS: Final = 0.2
"""The table is read at most so often by a worker."""
DISCOVERY_SECONDS: Final = 1.0
"""A node that has not told the table by then is passed over for the next one."""

NO_CLUSTER: Final = 'it is no cluster: expected "redis://HOST:PORT"'

Table = list[Primary | None]


class Cluster:
    """The primaries of a cluster.

    Args:
        place: some of its nodes.
        options: within which bounds.
        mirror: out of which goes what is not to stay.
        on_push: called with each push message.
        on_state: called when the mirror may not be true any more.
        scripts: what is loaded on each connection, by hash.
        send: puts a command on a link and has it flushed.
        on_links: called when links have come or gone.
    """

    def __init__(
        self,
        place: Place,
        options: LinkOptions,
        mirror: Mirror,
        on_push: Callable[[list[Any]], None],
        on_state: Callable[[bool], None],
        scripts: dict[bytes, Script],
        send: Callable[[Link, bytes, Waiting | None], None],
        on_links: Callable[[], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.send = send
        self.epoch = 0
        """Grows when it may be that another server than before tells of changes."""
        self.moving: set[int] = set()
        """Slots on their way to another primary."""
        self._place = place
        self._options = options
        self._mirror = mirror
        self._on_push = on_push
        self._empty_mirror = on_state
        self._scripts = scripts
        self._on_links = on_links
        self._primaries: dict[Address, Primary] = {}
        self._replicas: dict[Address, tuple[Address, ...]] = {}
        self._table: Table = [None] * SLOTS
        # Where slots are on their way to.
        self._expecting: set[Address] = set()
        self._own: dict[Address, Own] = {}
        self._closing = False
        self._blind = False  # whether nobody told the table, and that was said
        # Where a slot has no server: a link that is never up.
        self._nowhere = Link(options, self._owner(("", 0)), "none")
        self._hint: Address | None = None
        self._wanted = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        # Not cancelled but waited for: redis-py would leave a connection behind that it was just opening.
        self._refreshing: asyncio.Task[bool] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Cluster {self._primaries!r}>"

    @property
    def links(self) -> tuple[Link, ...]:
        return tuple([link for primary in self._primaries.values() for link in primary.links])

    @property
    def all_links(self) -> tuple[Link, ...]:
        """Those that decide, and those to replicas."""
        return tuple([link for primary in self._primaries.values() for link in primary.all_links])

    @property
    def up(self) -> bool:
        """Whether each slot has a server, and all of them are connected."""
        return None not in self._table and all(link.up for link in self.links)

    @property
    def why_down(self) -> str:
        """Why some slots have no server; empty if all have."""
        return self._nowhere.why_down if None in self._table else ""

    # -- which link --------------------------------------------------------------------------------

    def link_of(self, question: Call | Read | Gets) -> Link:
        """The link for a prepared question."""
        slot = question.slot
        if slot == NO_SLOT:
            slot = question.slot = slot_of(question.key)
        primary = self._table[slot]
        if primary is None:
            return self._nowhere
        if question.anywhere:
            return primary.link_of(question)
        return primary.bulk if question.bulk else primary.main

    def link_for(self, key: bytes, bulk: bool) -> Link:
        """The link for a command on a key."""
        primary = self._table[slot_of(key)]
        return self._nowhere if primary is None else primary.bulk if bulk else primary.main

    def routed(self, packed: bytes, entry: Waiting | None, mirrored: bytes | None) -> Waiting | None:
        """Who waits for the reply to a command, in place of `entry`."""
        if packed is CACHING_YES or packed is ASKING or isinstance(entry, Routed):
            return entry
        return Routed(self, packed, entry, mirrored)

    # -- what replies tell -------------------------------------------------------------------------

    def moved(self, slot: int, address: Address) -> None:
        """A server has said that another one has a slot."""
        there = self.at(address)
        if self._table[slot] is not there:
            self._table[slot] = there
            self._distrust()
        self._hint = address
        self.look_again()

    def is_moving(self, slot: int, address: Address) -> None:
        """A server has said that a slot is on its way to another one, which may have none yet."""
        self._expecting.add(address)
        if slot not in self.moving:
            self.moving.add(slot)
            self._distrust()

    def at(self, address: Address) -> Primary:
        """The primary at an address, which may be new."""
        primary = self._primaries.get(address)
        if primary is None:
            primary = self._add(address)
            self._do(primary.start())
        return primary

    def look_again(self) -> None:
        """Have the table read."""
        self._wanted.set()

    def trusts(self, key: bytes, epoch: int) -> bool:
        """Whether changes to a key that was asked for in an epoch are told by the server that was asked."""
        return epoch == self.epoch and not (self.moving and slot_of(key) in self.moving)

    def settle_untrusted(self, entry: Waiting, reply: Any, key: bytes) -> None:
        """Hand on a reply that is not to stay in the mirror, nor to prove anything that does."""
        self._mirror.invalidations += 1
        entry.settle(reply)
        self._mirror.drop(key)

    # -- keeping it true ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the table and connect. Returns after the first try, whether it succeeded or not."""
        await self._refresh()
        self._keepers = [self.loop.create_task(work) for work in (self._keep(), self._watch())]
        if self._tasks:
            await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        self._closing = True
        self._wanted.set()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self._refreshing is not None:
            await asyncio.gather(self._refreshing, return_exceptions=True)
        await asyncio.gather(*(primary.stop() for primary in self._primaries.values()))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self) -> None:
        """Read the table when there is reason to, and again and again while a slot has no server that answers."""
        failures = 0
        self._wanted.set()
        while not self._closing:
            await self._wanted.wait()
            self._wanted.clear()
            self._refreshing = self.loop.create_task(self._refresh())
            failures = 0 if await asyncio.shield(self._refreshing) and self.up else failures + 1
            if failures:
                self._wanted.set()
            pause = pause_after(failures, self._options.backoff_base, self._options.backoff_max)
            await asyncio.sleep(max(REFRESH_SECONDS, pause))

    async def _watch(self) -> None:
        pause = self._options.max_silence / 2
        while not self._closing:
            # Not all workers of a fleet at once.
            await asyncio.sleep(pause * random.uniform(0.8, 1))  # noqa: S311
            try:
                await self._check()
            except Exception:  # what cannot be checked is not believed, and is checked again
                logger.exception("redis: the cluster's slots could not be checked")
                self._distrust()

    async def _check(self) -> None:
        """Ask each primary for its slots, and believe only what is as it was."""
        told = await asyncio.gather(*(self._told_by(*known) for known in list(self._primaries.items())))
        moving = {slot for own in told if own is not None for slot in own.migrating}
        if self.moving and not moving:
            self.look_again()
        if moving or self.moving or None in told:
            self.moving = moving
            self._distrust()

    async def _told_by(self, address: Address, primary: Primary) -> Own | None:
        """What a primary says of itself; None where it is not as it was."""
        if not primary.main.up:
            return NOTHING  # its end has emptied the mirror, and so will its return
        try:
            nodes, info = await asyncio.gather(
                self._ask(primary.main, "CLUSTER", "NODES"), self._ask(primary.main, "CLUSTER", "INFO")
            )
            own = own_line(nodes)
        except (RedisError, ValueError) as error:
            logger.debug("redis: %s:%d does not tell its slots: %s", *address, error)
            self.look_again()  # another server may have them by now
            return None
        if own != self._own.get(address):
            if not own.primary or own.slots() != {slot for slot, there in enumerate(self._table) if there is primary}:
                self.look_again()
                return None
            self._own[address] = own
        return own if b"cluster_state:ok" in info else None

    async def _ask(self, link: Link, *words: str) -> bytes:
        if not link.open:
            raise RedisDown(link.why_down)
        reply = Reply()
        self.send(link, pack(words), reply)
        told: bytes = await reply
        return told

    def _distrust(self) -> None:
        self.epoch += 1
        self._empty_mirror(self.up)

    def _on_state(self, up: bool) -> None:
        self._empty_mirror(up)
        if not up:
            self.look_again()

    # -- the table ---------------------------------------------------------------------------------

    async def _refresh(self) -> bool:
        """Read the table from whoever tells it; whether anybody did."""
        reasons: list[str] = []
        for address in self._whom_to_ask():
            if self._closing:
                return False
            try:
                self._take_over(await self._read_table(address))
            except Exception as error:  # whatever one node says, another may tell the table
                text = str(error) or "no answer in time"
                reasons.append(NO_CLUSTER if "cluster support disabled" in text else f"{name_of(address)}: {text}")
            else:
                self._blind = False
                return True
        why = f"no node of the cluster tells its slots: {reasons[0]}"
        if not self._blind:
            self._blind = True
            logger.error("redis: %s; trying again in the background", why)
        self._nowhere.why_down = why
        return False

    def _whom_to_ask(self) -> Iterable[Address]:
        hint, self._hint = self._hint, None
        known = [address for address, primary in self._primaries.items() if primary.main.open]
        random.shuffle(known)
        others = [*self._primaries, *self._place.hosts]
        return dict.fromkeys([*([hint] if hint else []), *known, *others])

    async def _read_table(self, address: Address) -> list[Range]:
        """The table as one node sees it.

        Raises:
            RedisDown: it has none.
        """
        host, port = address
        async with (
            asyncio.timeout(DISCOVERY_SECONDS),
            make_node_client(self._place, host, port, DISCOVERY_SECONDS) as client,
        ):
            found = addresses(await cast(Any, client).execute_command("CLUSTER SLOTS"), host)
        if not found:
            raise RedisDown("it knows no slots")
        return found

    def _take_over(self, ranges: list[Range]) -> None:
        table: Table = [None] * SLOTS
        self._replicas = {address: replicas for _, _, address, replicas in ranges}
        served = set(self._replicas)
        before = set(self._primaries)
        for address in served - before:
            self._do(self._add(address).start())
        for first, last, address, _ in ranges:
            table[first : last + 1] = [self._primaries[address]] * (last + 1 - first)
        if table != self._table:
            self._table = table
            self._own.clear()
            self._distrust()
        if not self.moving:
            self._expecting.clear()
        gone = before - served - self._expecting
        for address in gone:
            self._own.pop(address, None)
            self._do(self._primaries.pop(address).stop())
        self._nowhere.why_down = "the slot has no server"
        for address, primary in self._primaries.items():
            replica, known = primary.replica, self._replicas.get(address, ())
            if replica is not None and replica.up and replica.where not in known:
                replica.drop("it is no replica of this primary any more")
        if served - before or gone:
            names = ", ".join(sorted(map(name_of, self._primaries)))
            logger.info("redis: the cluster's primaries are %s", names)
        if gone:
            self._on_links()

    def _add(self, address: Address) -> Primary:
        async def replicas() -> Sequence[Address]:
            # Those that are known are tried now; whoever has come since, the next time.
            self.look_again()
            return self._replicas.get(address, ())

        primary = self._primaries[address] = Primary(
            self._options,
            self._owner(address),
            name_of(address),
            replicas if self._options.read_from == "replica" else None,
        )
        self._on_links()
        return primary

    def _owner(self, address: Address) -> Owner:
        return Owner(self._place, fixed(address), self._on_push, self._on_state, self._scripts)

    def _do(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def name_of(address: Address) -> str:
    """`host:port`."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
