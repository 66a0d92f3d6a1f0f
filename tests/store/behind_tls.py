"""Sentinels and clusters that clients reach by TLS only, at the addresses that they tell.

What ends TLS stands on the port that everybody knows, where plain text passes too: for the servers among themselves,
which may have no TLS, and for the tests. Those who have the tested URL log in with a password that nobody else has: it
is never to pass in plain text.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote

from tests.certificates import Authority
from tests.relay import running_relay, until_one_ends
from tests.servers import Cluster, Group, Sentinel, SentinelProcess, Server, free_ports, tls_binary, userinfo

HANDSHAKE = b"\x16"
"""A TLS connection begins with it (RFC 8446, section 5.1); no command of Redis does."""
USER, PASSWORD = "ada", secrets.token_hex(16)
"""Of the tested URL, for Sentinels too."""


class Fork:
    """Takes connections: to one port those that begin TLS, to another one those that do not.

    Attributes:
        secured: how many have begun TLS.
        betrayed: how many have not, and told the password.
    """

    def __init__(self, port: int, tls: int, plain: int) -> None:
        self.port = port
        self.secured = 0
        self.betrayed = 0
        self._tls = tls
        self._plain = plain
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            first = await reader.read(1)
            self.secured += first == HANDSHAKE
            there, to = await asyncio.open_connection("127.0.0.1", self._tls if first == HANDSHAKE else self._plain)
            writers.append(to)
            to.write(first)
            await until_one_ends(self._pump(reader, to), self._pump(there, writer))
        except OSError:
            pass  # nobody there: the client sees that it is closed
        finally:
            for one in writers:
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        secret, end = PASSWORD.encode(), b""
        while piece := await reader.read(65536):
            seen = end + piece
            self.betrayed += secret in seen
            end = seen[1 - len(secret) :]
            writer.write(piece)
            await writer.drain()


class Behind:
    """A group behind TLS.

    Attributes:
        group: what it is without; its servers' ports are the forks'.
        forks: by server.
    """

    def __init__(self, group: Sentinel | Cluster, authority: Authority) -> None:
        self.group = group
        self.authority = authority
        self.forks: dict[Server, Fork] = {}

    def url(self, name: str = "") -> str:
        """With the user, the authority, and if it is given the name that certificates are to have."""
        more = f"&ssl_server_name={name}" if name else ""
        if isinstance(self.group, Sentinel):
            more += f"&sentinel_username={USER}&sentinel_password={PASSWORD}"
        url = self.group.url.replace("redis+", "rediss+").replace("://", f"://{userinfo(USER, PASSWORD)}")
        return f"{url}?ssl_ca_certs={quote(str(self.authority.path))}{more}"

    @property
    def secured(self) -> set[Server]:
        """Those that somebody has come to by TLS."""
        return {server for server, fork in self.forks.items() if fork.secured}

    @property
    def betrayed(self) -> set[Server]:
        """Those to whom somebody with the URL has spoken in plain text."""
        return {server for server, fork in self.forks.items() if fork.betrayed}


@contextlib.asynccontextmanager
async def behind_tls(group: Sentinel | Cluster, folder: Path, name: str, *, own: bool) -> AsyncIterator[Behind]:
    """Start a group whose certificates all have one name.

    Args:
        own: the servers speak TLS themselves, if this machine has such a Redis. Else relays end it.

    Raises:
        LookupError: it has none.
        AssertionError: in the end, if somebody with the URL has spoken in plain text to any of them.
    """
    binary = tls_binary()
    if own and binary is None:
        raise LookupError("no redis-server with TLS on this machine (TEST_REDIS_SERVER names one)")
    authority = Authority(folder)
    certificate = authority.issue(name)
    found = Behind(group, authority)
    async with contextlib.AsyncExitStack() as stack:
        if own:
            stack.enter_context(mock.patch.dict(os.environ, TEST_REDIS_SERVER=str(binary)))
        for server in group.servers:
            plain, tls = free_ports(2)
            words = {"port": plain}
            if own:
                files = {"ca-cert": authority.path, "cert": certificate.path, "key": certificate.key}
                words |= {"tls-port": tls, "tls-auth-clients": "no"}
                words |= {f"tls-{option}-file": path for option, path in files.items()}
            else:
                tls = (
                    await stack.enter_async_context(running_relay(plain, authority.server_context(certificate)))
                ).port
            configure(server, words | announced(group, server))
            fork = found.forks[server] = Fork(server.port, tls, plain)
            await stack.enter_async_context(fork.running())
        await stack.enter_async_context(group)
        # The servers are told the password's hash only: it has not passed by before the test begins.
        known = hashlib.sha256(PASSWORD.encode()).hexdigest()
        for server in group.servers:
            await server.ask("ACL SETUSER", USER, "on", f"#{known}", "~*", "&*", "+@all")
        yield found
        assert not found.betrayed, "the URL's password has passed in plain text"


def announced(group: Group, server: Server) -> dict[str, int]:
    """What has a server tell others the port on which all reach it."""
    if isinstance(server, SentinelProcess):
        return {}
    if isinstance(group, Sentinel):
        return {"replica-announce-port": server.port}
    return {"cluster-announce-port": server.port, "cluster-announce-tls-port": server.port}


def configure(server: Server, words: Mapping[str, Any]) -> None:
    """Options that count instead of those that it has."""
    if isinstance(server, SentinelProcess):
        server._configuration = [*server._configuration, *[f"{name} {value}" for name, value in words.items()]]
    else:
        server.arguments += tuple(word for name, value in words.items() for word in (f"--{name}", str(value)))
