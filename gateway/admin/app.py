"""Health and metrics of all workers, and the plugins' own routes, served by the parent on a listener of its own.

    GET /_gateway/health            200; "status" is "ok", or "degraded" while a worker or its Redis is away
    GET /_gateway/health?ready      503 instead, unless every worker accepts connections: for load balancers
    GET /_gateway/metrics           Prometheus' text format, added up over all workers
    /_gateway/{group}/...           what plugins add (`gateway.admin.routes`)

`degraded` is no 503 by itself: what a gateway does without Redis is each plugin's `on_redis_failure`, and a load
balancer that takes away all nodes at once because of Redis would turn that into an outage.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Protocol

import orjson
from aiohttp import web

from gateway.admin.context import Context, Requests, requests_in
from gateway.admin.guard import NOT_STORED, guard, is_loopback, problems
from gateway.admin.plugins import MAX_BODY, RedisClient, mount
from gateway.chain import DECIDED
from gateway.config import Config
from gateway.control import WorkerProcess
from gateway.listen import Listeners
from gateway.observe.exposition import CONTENT_TYPE, render
from gateway.observe.metrics import Metrics, Snapshot, merge

logger = logging.getLogger("gateway.admin")

COLLECT_SECONDS: Final = 1.0
"""A worker that does not answer by then is shown as such."""
SHUTDOWN_SECONDS: Final = 1.0


class Place(Protocol):
    """Where a worker belongs, and the one that is there now."""

    number: int
    process: WorkerProcess | None


class Node(Protocol):
    """What is shown: the supervisor."""

    config: Config
    node: str
    started: float
    ending: bool
    metrics: Metrics
    retired: Snapshot

    @property
    def slots(self) -> Sequence[Place]: ...


class Admin:
    """The admin listener.

    Args:
        node: what is shown.
        folder: where the configuration's own plugins lie.
    """

    def __init__(self, node: Node, folder: Path | None = None) -> None:
        self.url = ""
        self._node = node
        self._folder = folder or Path.cwd()
        self._listeners: Listeners | None = None
        self._loopback = True
        self._redis = RedisClient()
        app = web.Application(
            middlewares=[problems, guard(self._token, lambda: self._loopback)], client_max_size=MAX_BODY
        )
        app.router.add_get("/_gateway/health", self._health)
        app.router.add_get("/_gateway/metrics", self._metrics)
        mount(app, self._context)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)

    async def start(self, listeners: Listeners) -> None:
        self._listeners = listeners
        self.url = listeners.url
        self._loopback = is_loopback(listeners.host)
        if not self._loopback and not self._token():
            logger.warning(
                "admin.listen: whoever reaches %s can look into the gateway and purge its caches; set admin.token, or"
                " listen on 127.0.0.1",
                listeners.address,
            )
        await self._runner.setup()
        await web.SockSite(self._runner, listeners.take(0)).start()

    async def stop(self) -> None:
        await self._runner.cleanup()
        await self._redis.close()
        if self._listeners is not None:
            self._listeners.close()

    async def _collect(self) -> list[tuple[int, WorkerProcess | None, bool]]:
        """Number, process and whether it has answered, for each place; all are asked at once."""
        places = [(slot.number, slot.process) for slot in self._node.slots]
        answered = await asyncio.gather(*(_ask(process) for _, process in places))
        return [(number, process, yes) for (number, process), yes in zip(places, answered, strict=True)]

    async def _health(self, request: web.Request) -> web.Response:
        node = self._node
        workers = [worker_state(*found) for found in await self._collect()]
        ready = bool(workers) and all(worker["ready"] for worker in workers) and not node.ending
        # `redis` is None where the worker did not answer.
        redis = [worker.pop("redis") or {"up": None} for worker in workers]
        mirrors = [worker.pop("mirror") for worker in workers]
        alive = [worker.pop("workers_alive") or 0 for worker in workers]
        latencies = [state["latency_ms"] for state in redis if state.get("latency_ms") is not None]
        # A stopped Redis is "up" until `max_silence` has passed, but does not answer.
        answered = all(state["up"] and state.get("latency_ms") is not None for state in redis)
        healthy = ready and answered and all(worker["answers"] for worker in workers)
        document = {
            "status": "ok" if healthy else "degraded",
            "ready": ready,
            "node": node.node,
            "version": VERSION,
            "uptime": round(time.monotonic() - node.started, 3),
            "redis": {
                "up": bool(redis) and all(state["up"] for state in redis),
                "latency_ms": max(latencies, default=None),
                "decided_without": decided_in(merge(self._snapshots())),
                "links": [{"worker": worker["number"], **state} for worker, state in zip(workers, redis, strict=True)],
            },
            "mirror": {key: sum(mirror[key] for mirror in mirrors if mirror) for key in ("entries", "bytes")},
            "workers": workers,
            "fleet": {"workers": max(alive, default=0)},
        }
        status = 503 if "ready" in request.query and not ready else 200
        return web.Response(
            status=status,
            body=orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE),
            content_type="application/json",
            headers=NOT_STORED,
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        await self._collect()
        return web.Response(body=render(self._snapshots()), headers=NOT_STORED | {"Content-Type": CONTENT_TYPE})

    def _snapshots(self) -> list[Snapshot]:
        """As they were when they were collected last."""
        processes = [slot.process for slot in self._node.slots]
        # One that did not answer counts as it was: a sum that falls would read as a restart.
        told = [process.snapshot["metrics"] for process in processes if process is not None and process.snapshot]
        return [self._node.metrics.snapshot(), self._node.retired, *told]

    def _token(self) -> str:
        return self._node.config.admin.token.get_secret_value()

    async def _context(self) -> Context:
        config = self._node.config
        redis = await self._redis.get(config.redis)
        return Context(config, self._folder, redis, self._requests)

    async def _requests(self) -> Requests:
        await self._collect()
        return requests_in(merge(self._snapshots()))


async def _ask(process: WorkerProcess | None) -> bool:
    if process is None or not process.ready or process.draining:  # one that drains listens no more
        return False
    return await process.ask_snapshot(COLLECT_SECONDS)


def worker_state(number: int, process: WorkerProcess | None, answers: bool) -> dict[str, Any]:
    """One worker as `health` shows it."""
    state: dict[str, Any] = {"number": number, "pid": None, "ready": False, "answers": answers}
    state |= {"requests": None, "in_flight": None, "redis": None, "mirror": None, "workers_alive": None}
    if process is None:
        return state
    state |= {"pid": process.pid, "ready": process.ready and not process.draining}
    if not answers or process.snapshot is None:
        return state
    told = process.snapshot
    state |= {key: told[key] for key in ("requests", "in_flight", "workers_alive")}
    state["redis"] = {
        "up": told["redis_up"],
        "why": told["redis_why"],
        "latency_ms": told["redis_latency_ms"],
        "waiting": told["redis_waiting"],
    }
    state["mirror"] = {"entries": told["mirror_entries"], "bytes": told["mirror_bytes"]}
    return state


def decided_in(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    """How many requests each plugin has decided about without Redis since the start, and how."""
    family = snapshot.get(DECIDED)
    if family is None:
        return {}
    plugin, decision = family["labels"].index("plugin"), family["labels"].index("decision")
    found: dict[str, dict[str, int]] = {}
    for values, count in family["series"]:
        found.setdefault(values[plugin], {})[values[decision]] = int(count)
    return found


def _version() -> str:
    try:
        return version("redis-gateway")
    except PackageNotFoundError:
        return "unknown"  # run from its source, not installed


VERSION: Final = _version()
