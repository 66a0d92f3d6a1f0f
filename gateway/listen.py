"""Listening sockets, bound once in the parent and handed to the workers."""

from __future__ import annotations

import errno
import socket
import sys
from typing import Any, Final

# Linux spreads connections over all sockets of a port; elsewhere only one of them would get any.
ONE_EACH: Final = sys.platform == "linux"
OPTIONS: Final = {
    "server.listen": "--listen HOST:PORT, or GATEWAY_LISTEN in the environment",
    "admin.listen": "--admin HOST:PORT, or GATEWAY_ADMIN_LISTEN in the environment",
}


class BindError(Exception):
    """The address cannot be listened on; the message says what to do."""


class Listeners:
    """The listening sockets of one address.

    On Linux each worker has a socket of its own (`SO_REUSEPORT`), so that the kernel spreads the connections; the
    parent keeps all of them open, so that those of a worker that died wait for its successor. Elsewhere all share one.

    Args:
        address: `HOST:PORT`, `[IPv6]:PORT`, or `:PORT` for all addresses of both families. Port 0 takes a free one.
        key: the configuration key that an error names.

    Raises:
        BindError: the port is taken, or the address is not one of this machine.
    """

    def __init__(self, address: str, *, backlog: int = 2048, key: str = "server.listen") -> None:
        self.address = address
        self._backlog = backlog
        self._key = key
        self._family, self._where = resolve(address, key)
        # With SO_REUSEPORT at once, a port where somebody else listens with it would be shared with them.
        with self._bind(share=False) as probe:
            self._where = (self._where[0], probe.getsockname()[1], *self._where[2:])
        self._sockets = [self._listen()]

    def __repr__(self) -> str:
        return f"<Listeners {self.url} {len(self._sockets)} sockets>"

    @property
    def port(self) -> int:
        port: int = self._where[1]
        return port

    @property
    def host(self) -> str:
        """The IP address it is bound to."""
        host: str = self._where[0]
        return host

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it."""
        host = self.host
        if host in ("::", "0.0.0.0"):  # noqa: S104
            host = "127.0.0.1"
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def take(self, number: int) -> socket.socket:
        """The socket of the worker with this number."""
        if not ONE_EACH:
            return self._sockets[0]
        while len(self._sockets) <= number:
            self._sockets.append(self._listen())
        return self._sockets[number]

    def shrink(self, count: int) -> None:
        """Close the sockets of workers from number `count` on."""
        while len(self._sockets) > max(count, 1):
            self._sockets.pop().close()

    def close(self) -> None:
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()

    def _listen(self) -> socket.socket:
        listening = self._bind(share=ONE_EACH)
        listening.listen(self._backlog)
        listening.setblocking(False)
        return listening

    def _bind(self, *, share: bool) -> socket.socket:
        bound = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            # After a restart, connections of the last run may still be in TIME_WAIT.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if share:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if self._family == socket.AF_INET6:
                both = self.address.startswith(":")
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
            bound.bind(self._where)
        except OSError as error:
            bound.close()
            raise BindError(explain(error, self.address, self._key)) from error
        return bound


def resolve(address: str, key: str) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Family and socket address of `HOST:PORT`.

    Raises:
        BindError: the name has no address.
    """
    host, _, port = address.rpartition(":")
    if not host:
        return (socket.AF_INET6, ("::", int(port))) if has_ipv6() else (socket.AF_INET, ("0.0.0.0", int(port)))  # noqa: S104
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BindError(f"{key}: {host!r} is not an address of this machine: {error.strerror}") from error
    # `localhost` has one of each family; where only one can be had, clients try IPv4 as well.
    family, _, _, _, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, where


def has_ipv6() -> bool:
    """Whether a socket for both families can be made: containers often have the family, but no address."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def explain(error: OSError, address: str, key: str) -> str:
    """Why an address cannot be bound, and what to do."""
    port = address.rpartition(":")[2]
    option = OPTIONS.get(key, f"{key} in the configuration")
    if error.errno == errno.EADDRINUSE:
        return f"{key}: port {port} is in use already ({address}); stop what listens there, or take another: {option}"
    if error.errno == errno.EACCES:
        return f"{key}: not allowed to listen on port {port} ({address}); take one from 1024 on: {option}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{key}: {address} is not an address of this machine; take another: {option}"
    return f"{key}: cannot listen on {address}: {error.strerror}; take another: {option}"
