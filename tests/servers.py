"""Redis in all its topologies, as real processes: a cluster, a Sentinel trio, TLS, users with few rights.

They start within two or three seconds because nobody has to find anybody: who belongs to whom stands in their
configuration files before they start. Their clocks are fast: a dead primary is replaced about two seconds later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar
from urllib.parse import quote

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from tests.certificates import Authority, Certificate
from tests.harness import Valkey, eventually, free_port
from tests.relay import Relay, running_relay

SLOTS = 16384
NODE_TIMEOUT = 1000
"""Milliseconds without a word until a cluster's node counts as dead: not less, as tests share the machine."""
DOWN_AFTER = 500
"""The same for Sentinel."""
ASK_SECONDS = 1.0


def free_ports(count: int) -> list[int]:
    """Different ones."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def userinfo(user: str = "", password: str = "") -> str:
    """What stands before the host in a URL."""
    return f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""


class Server(Valkey):
    """One server of several."""

    def __init__(self, port: int, *arguments: str, password: str = "") -> None:
        super().__init__(*arguments)
        self.port = port
        self.password = password
        if password:
            self.arguments += ("--requirepass", password, "--masterauth", password)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.port}>"

    @property
    def url(self) -> str:
        return f"redis://{userinfo(password=self.password)}127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def client(self) -> redis.asyncio.Redis:
        return redis.asyncio.Redis(
            port=self.port,
            password=self.password or None,
            socket_timeout=ASK_SECONDS,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )

    async def ask(self, *command: Any) -> Any:
        """One command; a word such as `CLUSTER` and its subcommand are one string.

        Raises:
            RedisError: it refuses, or does not answer.
        """
        async with self.client() as client:
            return await client.execute_command(*command)

    async def role(self) -> str:
        """`master` or `slave`; empty where it does not answer."""
        try:
            return str((await self.ask("INFO", "replication"))["role"])
        except (RedisError, OSError):
            return ""

    async def in_sync(self) -> bool:
        """Whether it is a replica that has all its primary had."""
        info = await self.ask("INFO", "replication")
        return info["role"] == "slave" and info["master_link_status"] == "up"


class Group:
    """Several servers that belong together."""

    servers: list[Server]

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.remove()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.remove()

    async def start(self) -> None:
        """Start all of them; returns when they are ready."""
        await asyncio.gather(*[asyncio.to_thread(server.start) for server in self.servers])
        await self.settled()

    async def settled(self, within: float = 15) -> None:
        """Until all that run agree about who is who, and replicas are in sync."""
        await eventually(self._settled, within=within, every=0.05)

    async def _settled(self) -> bool:
        raise NotImplementedError

    async def as_made(self) -> bool:
        """Whether nobody was killed, paused or promoted since it was made."""
        raise NotImplementedError

    async def flush(self) -> None:
        """Forget all keys and scripts."""
        raise NotImplementedError

    def remove(self) -> None:
        for server in self.servers:
            server.remove()


Kept = TypeVar("Kept", bound=Group)


class Keeper(Generic[Kept]):
    """A group that is used by test after test for as long as it is as it was made, and then made anew."""

    def __init__(self, make: Callable[[], Kept]) -> None:
        self._make = make
        self._kept: Kept | None = None

    def __enter__(self) -> Keeper[Kept]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._kept is not None:
            self._kept.remove()

    async def take(self) -> Kept:
        """As new, and empty."""
        if self._kept is not None and not await self._kept.as_made():
            self._kept.remove()
            self._kept = None
        if self._kept is None:
            group = self._make()
            self._kept = await group.__aenter__()
        else:
            await self._kept.flush()
        return self._kept


# -- cluster ---------------------------------------------------------------------------------------


class Cluster(Group):
    """Three primaries, each with a replica: `servers[0:3]` begin as primaries, `servers[3:6]` as their replicas.

    Kill, pause, resume and start single servers as you like.
    """

    def __init__(self, *arguments: str, password: str = "") -> None:
        ports = free_ports(12)
        self.password = password
        self.ids = [secrets.token_hex(20) for _ in range(6)]
        options = [
            "--cluster-enabled yes",
            f"--cluster-node-timeout {NODE_TIMEOUT}",
            "--cluster-replica-validity-factor 0",
            "--cluster-allow-replica-migration no",
            "--repl-diskless-sync-delay 0",
            "--repl-ping-replica-period 1",
        ]
        words = [word for option in options for word in option.split()]
        self.servers = [
            Server(port, *words, "--cluster-port", str(bus), *arguments, password=password)
            for port, bus in zip(ports[:6], ports[6:], strict=True)
        ]
        self._buses = ports[6:]

    @property
    def hosts(self) -> str:
        """All its addresses, with commas between them."""
        return ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    @property
    def url(self) -> str:
        return f"redis+cluster://{userinfo(password=self.password)}{self.hosts}"

    async def start(self) -> None:
        for number, server in enumerate(self.servers):
            Path(server.folder, "nodes.conf").write_text(self._table(number))
        await super().start()

    def _table(self, me: int) -> str:
        """What a node would have saved of a cluster that has settled."""
        lines = []
        for number, (name, server) in enumerate(zip(self.ids, self.servers, strict=True)):
            flags = ("myself," if number == me else "") + ("master" if number < 3 else "slave")
            primary = "-" if number < 3 else self.ids[number - 3]
            slots = f" {SLOTS * number // 3}-{SLOTS * (number + 1) // 3 - 1}" if number < 3 else ""
            address = f"127.0.0.1:{server.port}@{self._buses[number]}"
            lines.append(f"{name} {address} {flags} {primary} 0 0 {number % 3 + 1} connected{slots}")
        return "\n".join([*lines, "vars currentEpoch 3 lastVoteEpoch 0", ""])

    # -- who is who --------------------------------------------------------------------------------

    @staticmethod
    def slot(key: str | bytes) -> int:
        return key_slot(key.encode() if isinstance(key, str) else key)

    @staticmethod
    def last_of_third(slot: int) -> int:
        """The last slot that begins on the same primary as this one."""
        return next(third[-1] for third in map(_third, range(3)) if slot in third)

    async def owner(self, slot: int) -> Server:
        """The primary that serves a slot now, as a majority of those who answer see it."""
        votes: dict[int, int] = {}
        for table in (await self._tables()).values():
            port = table.get(slot)
            if port is not None:
                votes[port] = votes.get(port, 0) + 1
        port = max(votes, key=lambda port: votes[port])
        return next(server for server in self.servers if server.port == port)

    async def home(self, key: str | bytes) -> Server:
        """The primary where a key lives now."""
        return await self.owner(self.slot(key))

    async def replica_of(self, primary: Server) -> Server:
        """A replica of a primary."""
        for server in self.servers:
            if server.running and server is not primary:
                with contextlib.suppress(RedisError, OSError):
                    info = await server.ask("INFO", "replication")
                    if info.get("master_port") == primary.port:
                        return server
        raise LookupError(f"{primary} has no replica")

    async def primaries(self) -> list[Server]:
        """All that serve slots now."""
        return list({await self.owner(slot): None for slot in (0, SLOTS // 2, SLOTS - 1)})

    async def _tables(self) -> dict[Server, dict[int, int]]:
        """Who serves which slot (the port of each), as each server that answers sees it."""
        tables = await asyncio.gather(*map(self._table_of, self.servers))
        return {server: table for server, table in zip(self.servers, tables, strict=True) if table}

    @staticmethod
    async def _table_of(server: Server) -> dict[int, int]:
        if not server.running:
            return {}
        try:
            async with server.client() as client:
                found = await client.execute_command("CLUSTER SLOTS")
        except (RedisError, OSError):
            return {}
        return {slot: primary[1] for first, last, primary, *_ in found for slot in range(first, last + 1)}

    async def _settled(self) -> bool:
        running = [server for server in self.servers if server.running]
        try:
            for server in running:
                state = await server.ask("CLUSTER INFO")
                if state["cluster_state"] != "ok" or (await server.role() == "slave" and not await server.in_sync()):
                    return False
        except (RedisError, OSError):
            return False
        tables = await self._tables()
        first = tables[running[0]]
        return len(first) == SLOTS and all(tables[server] == first for server in running)

    async def as_made(self) -> bool:
        if not all(server.running for server in self.servers):
            return False
        ports = [server.port for server in self.servers]
        tables = await self._tables()
        made = {slot: ports[number] for number in range(3) for slot in _third(number)}
        return all(tables.get(server) == made for server in self.servers) and await self._settled()

    async def flush(self) -> None:
        for primary in await self.primaries():
            await primary.ask("FLUSHALL")
            await primary.ask("SCRIPT FLUSH")

    # -- what happens to it ------------------------------------------------------------------------

    async def promote(self, replica: Server, how: str = "") -> None:
        """Make a replica the primary: in order, or by `how` = "FORCE" (its primary is away) or "TAKEOVER"."""
        async with asyncio.timeout(15):
            while await replica.role() != "master":
                # The others may take it for unfit yet, and the attempt then ends without a word.
                await replica.ask("CLUSTER FAILOVER", *([how] if how else []))
                with contextlib.suppress(AssertionError):
                    await eventually(lambda: _is(replica, "master"), within=2, every=0.02)

    async def failed_over(self, dead: Server, within: float = 10) -> Server:
        """Until another one serves what a dead (or paused) primary did; the new one."""
        slot = _third(self.servers.index(dead) % 3)[0]

        async def another() -> Server | None:
            tables = await asyncio.gather(*[self._table_of(server) for server in self.servers if server is not dead])
            owners = {table.get(slot) for table in tables if table}
            found = [server for server in self.servers if {server.port} == owners and server is not dead]
            return found[0] if found and await found[0].role() == "master" else None

        server: Server = await eventually(another, within=within, every=0.05)
        return server

    async def migrate(self, slot: int, to: Server | None = None) -> Migration:
        """Begin to move a slot to another primary (or to this one): from now on `ASK` is answered for absent keys."""
        source = await self.owner(slot)
        if to is None:
            to = next(server for server in await self.primaries() if server is not source)
        migration = Migration(self, slot, source, to)
        await migration.begin()
        return migration


class Migration:
    """A slot on its way from one primary to another, key by key."""

    def __init__(self, cluster: Cluster, slot: int, source: Server, target: Server) -> None:
        self.cluster = cluster
        self.slot = slot
        self.source = source
        self.target = target

    async def begin(self) -> None:
        source, target = [str(await server.ask("CLUSTER MYID")) for server in (self.source, self.target)]
        await self.target.ask("CLUSTER SETSLOT", self.slot, "IMPORTING", source)
        await self.source.ask("CLUSTER SETSLOT", self.slot, "MIGRATING", target)

    async def keys(self) -> list[str]:
        """Those that are still where they were, at most a thousand."""
        return list(await self.source.ask("CLUSTER GETKEYSINSLOT", self.slot, 1000))

    async def move(self, *keys: str) -> None:
        """Some keys; those asked for now are answered with `ASK`."""
        if keys:
            password = self.cluster.password
            auth = ["AUTH", password] if password else []
            await self.source.ask("MIGRATE", "127.0.0.1", self.target.port, "", 0, 1000, *auth, "KEYS", *keys)

    async def move_all(self) -> None:
        while keys := await self.keys():
            await self.move(*keys)

    async def finish(self) -> None:
        """The rest, then the slot: from now on `MOVED` is answered."""
        await self.move_all()
        target = str(await self.target.ask("CLUSTER MYID"))
        # The target first, so that there is no moment in which nobody serves it.
        for server in (self.target, self.source, *self.cluster.servers):
            if await server.role() == "master":
                await server.ask("CLUSTER SETSLOT", self.slot, "NODE", target)
        await self.cluster.settled()


def _third(number: int) -> range:
    return range(SLOTS * number // 3, SLOTS * (number + 1) // 3)


async def _is(server: Server, role: str) -> bool:
    return await server.role() == role


# -- Sentinel --------------------------------------------------------------------------------------


class SentinelProcess(Server):
    """One Sentinel: the same binary, with a configuration file that it writes to."""

    def __init__(self, port: int, configuration: Sequence[str], password: str = "") -> None:
        super().__init__(port)
        self.password = password
        self._configuration = configuration

    @property
    def command(self) -> list[str]:
        path = Path(self.folder, "sentinel.conf")
        if not path.exists():
            own = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}", "enable-debug-command yes"]
            own += [f'requirepass "{self.password}"', f'sentinel sentinel-pass "{self.password}"'] * bool(self.password)
            path.write_text("\n".join([*own, *self._configuration, ""]))
        return [super().command[0], str(path), "--sentinel"]


class Sentinel(Group):
    """A primary and a replica, watched by three Sentinels; two of them agree that one is down.

    Args:
        password: of the servers.
        sentinel_password: of the Sentinels.
    """

    service = "main"

    def __init__(self, *arguments: str, password: str = "", sentinel_password: str = "") -> None:
        self.password = password
        self.sentinel_password = sentinel_password
        primary, replica, *watching = free_ports(5)
        options = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", *arguments]
        self.primary = Server(primary, *options, password=password)
        self.replica = Server(replica, *options, "--replicaof", f"127.0.0.1 {primary}", password=password)
        self.ids = dict(zip(watching, [secrets.token_hex(20) for _ in watching], strict=True))
        self.sentinels = [SentinelProcess(port, self._watching(port), sentinel_password) for port in watching]
        self.servers = [self.primary, self.replica, *self.sentinels]

    def _watching(self, me: int) -> list[str]:
        name = self.service
        others = [(port, identity) for port, identity in self.ids.items() if port != me]
        return [
            f"sentinel myid {self.ids[me]}",
            f"sentinel monitor {name} 127.0.0.1 {self.primary.port} 2",
            f"sentinel down-after-milliseconds {name} {DOWN_AFTER}",
            f"sentinel failover-timeout {name} 3000",
            f"sentinel known-replica {name} 127.0.0.1 {self.replica.port}",
            *[f"sentinel known-sentinel {name} 127.0.0.1 {port} {identity}" for port, identity in others],
            *[f'sentinel auth-pass {name} "{self.password}"'] * bool(self.password),
        ]

    @property
    def hosts(self) -> str:
        """The Sentinels' addresses, with commas between them."""
        return ",".join(f"127.0.0.1:{server.port}" for server in self.sentinels)

    @property
    def url(self) -> str:
        """Without the Sentinels' own password."""
        return f"redis+sentinel://{userinfo(password=self.password)}{self.hosts}/{self.service}"

    async def start(self) -> None:
        # One after the other: who does not find the server it asks for waits a second until it tries again.
        await asyncio.to_thread(self.primary.start)
        await asyncio.to_thread(self.replica.start)
        await asyncio.gather(*[asyncio.to_thread(server.start) for server in self.sentinels])
        for server in self.sentinels:
            # Its clocks are made for machines far apart. It takes no replica that it knows only from before five pings,
            # and looks at one without a primary once a second.
            periods = {"info": 200, "ping": 300, "ask": 100, "publish": 200, "tilt": 500}
            words = [word for name, value in periods.items() for word in (f"{name}-period", value)]
            await server.ask("SENTINEL DEBUG", *words, "election-timeout", 1000, "slave-reconf-timeout", 500)
        await self.settled()

    async def _settled(self) -> bool:
        try:
            primary = await self.current()
            for server in (self.primary, self.replica):
                if server.running and server is not primary and not await server.in_sync():
                    return False
            for sentinel in self.sentinels:
                if not sentinel.running:
                    continue
                state = _pairs(await sentinel.ask("SENTINEL MASTER", self.service))
                usable = state["flags"] == "master" and state["num-other-sentinels"] == "2"
                if not usable or int(state["port"]) != primary.port:
                    return False
                # Or the next failover would find no replica that it may take.
                [replica] = map(_pairs, await sentinel.ask("SENTINEL REPLICAS", self.service))
                if self.primary.running and self.replica.running and not _promotable(replica):
                    return False
        except (RedisError, OSError, LookupError, ValueError):
            return False
        return await primary.role() == "master"

    async def as_made(self) -> bool:
        if not all(server.running for server in self.servers):
            return False
        return await self._settled() and await self.current() is self.primary

    async def current(self) -> Server:
        """The primary, as most Sentinels that answer see it.

        Raises:
            LookupError: none answers.
        """
        ports: list[int] = []
        for sentinel in self.sentinels:
            if sentinel.running:
                with contextlib.suppress(RedisError, OSError):
                    found = await sentinel.ask("SENTINEL GET-MASTER-ADDR-BY-NAME", self.service)
                    ports.append(int(found[1]))
        if not ports:
            raise LookupError("no Sentinel answers")
        port = max(ports, key=ports.count)
        return next(server for server in (self.primary, self.replica) if server.port == port)

    async def flush(self) -> None:
        primary = await self.current()
        await primary.ask("FLUSHALL")
        await primary.ask("SCRIPT FLUSH")

    async def fail_over(self) -> None:
        """Have the Sentinels swap primary and replica, without anybody being down.

        They do not repeat one that was ordered too soon after the start, and so came to nothing.
        """
        old = await self.current()
        for _ in range(6):
            with contextlib.suppress(redis.exceptions.ResponseError):
                await self.sentinels[0].ask("SENTINEL FAILOVER", self.service)
            with contextlib.suppress(AssertionError):
                await self.failed_over(old, within=7)
                return

    async def failed_over(self, old: Server, within: float = 45) -> Server:
        """Until the Sentinels have made another server the primary; the new one.

        A first try of theirs may fail: then it takes some times `failover-timeout`.
        """

        async def another() -> Server | None:
            current = await self.current()
            return current if current is not old and await current.role() == "master" else None

        server: Server = await eventually(another, within=within, every=0.05)
        return server


def _promotable(replica: dict[str, str]) -> bool:
    """Whether a Sentinel has looked at a replica since all is well."""
    return (
        replica["flags"] == "slave"
        and replica["master-link-status"] == "ok"
        and int(replica["master-link-down-time"]) == 0
        and int(replica["info-refresh"]) < 1000
    )


def _pairs(reply: Any) -> dict[str, str]:
    """A reply that may be a map or a flat list."""
    if isinstance(reply, dict):
        found = {str(key): value for key, value in reply.items()}
    else:
        found = dict(zip(reply[::2], reply[1::2], strict=True))
    return {key: str(value) for key, value in found.items()}


# -- TLS -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TlsServer:
    """A server that speaks TLS on 127.0.0.1, and what its clients need."""

    port: int
    authority: Authority
    client: Certificate
    backend: Server
    """The server itself; what it answers without TLS where a relay stands before it."""

    @property
    def bare_url(self) -> str:
        """Without the authority: its certificate is not trusted."""
        return f"rediss://127.0.0.1:{self.port}/0"

    @property
    def url(self) -> str:
        return f"{self.bare_url}?ssl_ca_certs={quote(str(self.authority.path))}"

    @property
    def client_url(self) -> str:
        """With the client's certificate."""
        return f"{self.url}&ssl_certfile={quote(str(self.client.path))}&ssl_keyfile={quote(str(self.client.key))}"


@contextlib.asynccontextmanager
async def running_tls_relay(
    folder: Path, *names: str, client_certificate: bool = False
) -> AsyncIterator[tuple[TlsServer, Relay]]:
    """A server without TLS behind a relay that ends TLS; the relay can be told to misbehave.

    Args:
        names: whom the certificate is for.
        client_certificate: only clients with a certificate are served.
    """
    authority = Authority(folder)
    context = authority.server_context(authority.issue(*names), client_certificate=client_certificate)
    server = Server(free_port())
    try:
        server.start()
        async with running_relay(server.port, context) as relay:
            yield TlsServer(relay.port, authority, authority.issue("gateway", client=True), server), relay
    finally:
        server.remove()


def tls_binary() -> str | None:
    """A Redis on this machine that speaks TLS itself: the one of `TEST_REDIS_SERVER`, or on the path."""
    for name in (os.environ.get("TEST_REDIS_SERVER"), "redis-server", "valkey-server"):
        path = shutil.which(name) if name else None
        # One without TLS does not know the option; one with TLS misses the certificate.
        if path is not None:
            said = subprocess.run([path, "--port", "0", "--tls-port", "1"], capture_output=True, timeout=5).stdout
            if b"tls-cert-file" in said:
                return path
    return None


class TlsProcess(Server):
    """A server that speaks TLS itself, beside plain text on another port."""

    def __init__(self, binary: str, tls_port: int, authority: Authority, certificate: Certificate, ask: bool) -> None:
        files = {"ca-cert": authority.path, "cert": certificate.path, "key": certificate.key}
        words = [word for name, path in files.items() for word in (f"--tls-{name}-file", str(path))]
        super().__init__(free_port(), "--tls-port", str(tls_port), *words, "--tls-auth-clients", "yes" if ask else "no")
        self.binary = binary

    @property
    def command(self) -> list[str]:
        return [self.binary, *super().command[1:]]


@contextlib.contextmanager
def running_tls_process(folder: Path, *names: str, client_certificate: bool = False) -> Iterator[TlsServer]:
    """The same with a Redis that speaks TLS itself.

    Raises:
        LookupError: there is none on this machine.
    """
    binary = tls_binary()
    if binary is None:
        raise LookupError("no redis-server with TLS on this machine (TEST_REDIS_SERVER names one)")
    authority = Authority(folder)
    port = free_port()
    server = TlsProcess(binary, port, authority, authority.issue(*names), client_certificate)
    try:
        server.start()
        yield TlsServer(port, authority, authority.issue("gateway", client=True), server)
    finally:
        server.remove()
