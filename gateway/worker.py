"""One process: what starts and stops, in which order.

    start   redis → fleet → upstreams → plugins (in the order of their tables) → listen
    stop    drain → listeners closed → plugins (reversed) → upstreams → fleet → redis

What has started is stopped again if a later part cannot start.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from gateway.chain import Chain
from gateway.config import Config
from gateway.fleet import Fleet, worker_name
from gateway.observe import Observer
from gateway.observe.metrics import Metrics
from gateway.plugin import Plugin
from gateway.routes import Route, Routes
from gateway.server import Server
from gateway.store import Redis
from gateway.store.link import LinkOptions
from gateway.upstream.forward import Upstream

logger = logging.getLogger("gateway.worker")


class Worker:
    """What a plugin's `start` gets to know of its process.

    Args:
        config: the whole configuration, `redis.url` resolved (never `embedded`).
        plugins: by name, loaded and not started.
        number: this worker's number among those of its supervisor, from 0.
        node: the gateway process' name in the fleet; made up if empty.
        observer: told of each answer; None for none.
        short_way: see `Server`.

    Attributes:
        fleet: how many workers there are, of all nodes.
    """

    def __init__(
        self,
        config: Config,
        plugins: Mapping[str, Plugin],
        *,
        number: int = 0,
        node: str = "",
        metrics: Metrics | None = None,
        observer: Observer | None = None,
        short_way: bool | None = None,
    ) -> None:
        self.config = config
        self.number = number
        self.node = node or secrets.token_hex(4)
        self.metrics = metrics if metrics is not None else Metrics()
        self.plugins = dict(plugins)
        self.redis = Redis(
            link_options(config, self.node),
            mirror_bytes=config.redis.mirror.max_bytes,
            prefix=config.redis.prefix,
        )
        self.fleet = Fleet(self.redis, worker_name(self.node, number), config.server.workers)
        self.upstreams = {name: Upstream(name, table) for name, table in config.upstreams.items()}
        self.routes = Routes([self._route(index) for index in range(len(config.routes))])
        self.server = Server(config.server, self.routes, self.redis, observer, node=self.node, short_way=short_way)
        self._observer = observer
        self._listeners: list[asyncio.Server] = []
        self._started: list[Callable[[], Awaitable[None]]] = []

    def _route(self, index: int) -> Route:
        table = self.config.routes[index]
        plugins = [self.plugins[name] for name in table.plugins if name in self.plugins]
        timeout = self.config.redis.timeout
        chain = Chain(plugins, self.upstreams[table.upstream], self.redis, self.metrics, timeout=timeout)
        return Route(table.label, table, chain)

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Start everything, then accept connections on these listening sockets.

        Raises:
            Exception: whatever kept a part from starting; what had started is stopped again.
        """
        try:
            await self._begin(self.redis.start, self.redis.stop)
            await self._begin(self.fleet.start, self.fleet.stop)
            for upstream in self.upstreams.values():
                await self._begin(upstream.start, upstream.stop)
            for plugin in self.plugins.values():
                await self._begin(partial(plugin.start, self), plugin.stop)
            loop = asyncio.get_running_loop()
            for listening in sockets:
                self._listeners.append(
                    await loop.create_server(self.server, sock=listening, backlog=self.config.server.backlog)
                )
        except BaseException:
            await self.stop()
            raise

    async def _begin(self, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]) -> None:
        self._started.append(stop)  # first: a half-done start is to be undone too
        await start()

    async def drain(self, timeout: float | None = None) -> bool:
        """Accept nothing new and let what is in flight end; whether it all did within `timeout` seconds."""
        for listener in self._listeners:
            listener.close()
        return await self.server.drain(self.config.server.drain_timeout if timeout is None else timeout)

    async def stop(self) -> None:
        """Close all that was started, in reverse order; one part's failure does not keep the others open."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        await self.server.shutdown(0.1)
        while self._started:
            try:
                await self._started.pop()()
            except Exception:
                logger.exception("a part of the worker failed to stop")


def link_options(config: Config, node: str) -> LinkOptions:
    """The `[redis]` table as the links take it."""
    table = config.redis
    return LinkOptions(
        url=table.url,
        timeout=table.timeout,
        max_silence=table.max_silence,
        max_queue=table.max_queue,
        backoff_base=table.backoff_base,
        backoff_max=table.backoff_max,
        client_name=f"gateway-{node}",
        tracking=table.mirror.max_bytes > 0,
        read_from=table.read_from,
    )
