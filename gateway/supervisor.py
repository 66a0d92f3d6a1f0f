"""The parent: bind, spawn, watch, restart, reload, drain.

It serves no request itself. What it holds outlives each worker: the listening sockets, the embedded Redis, the admin
listener, and the sums of workers that have ended.

signals
    SIGTERM, SIGINT     drain: workers stop accepting and finish what is in flight; the same again: end at once
    SIGHUP              read the configuration again; new workers take over, the old ones drain
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.admin.app import Admin
from gateway.config import Config, ConfigError, Overrides, load, redact
from gateway.config.reading import BUILT_IN
from gateway.control import Message, WorkerProcess
from gateway.listen import BindError, Listeners
from gateway.observe.messages import configure_logging
from gateway.observe.metrics import Metrics, Snapshot, merge
from gateway.store.embedded import Embedded, EmbeddedError

logger = logging.getLogger("gateway.supervisor")

START_SECONDS: Final = 30.0
"""A worker that is not ready by then is given up."""
STOP_SECONDS: Final = 5.0
"""What a worker gets beyond `server.drain_timeout` to close what is left."""
QUICK_SECONDS: Final = 1.0
MAX_QUICK_DEATHS: Final = 5
BACKOFF_BASE: Final = 0.1
BACKOFF_MAX: Final = 5.0


class WorkerFailed(Exception):
    """A worker cannot start; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What there is to tell once all workers accept connections."""

    config: Config
    url: str
    admin_url: str | None
    redis: str
    """Where Redis is, without its password."""
    pid: int


class Slot:
    """One place among the workers, kept filled until it is drained.

    Args:
        start: what each of its workers is told.
        on_end: called with each process that has ended.
        on_give_up: called with the reason when one worker after the other dies at once.
    """

    def __init__(
        self,
        number: int,
        listening: socket.socket,
        start: Callable[[], Message],
        on_end: Callable[[WorkerProcess], None],
        on_give_up: Callable[[str], None],
    ) -> None:
        self.number = number
        self.process: WorkerProcess | None = None
        self._listening = listening
        self._start = start
        self._on_end = on_end
        self._on_give_up = on_give_up
        self._ending = asyncio.Event()
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Whoever waits for it may have been cancelled: that is no reason for a line in the log.
        self._first.add_done_callback(lambda first: first.cancelled() or first.exception())
        self.task = asyncio.get_running_loop().create_task(self._keep())

    def __repr__(self) -> str:
        return f"<Slot {self.number} {self.process!r}>"

    async def ready(self) -> None:
        """Wait for the first worker.

        Raises:
            WorkerFailed: it could not start.
        """
        await asyncio.shield(self._first)

    async def drain(self, timeout: float) -> None:
        """Have the worker end in order; after `timeout` seconds it is killed."""
        self._ending.set()
        if self.process is not None:
            self._end(self.process)
        await asyncio.wait({self.task}, timeout=timeout)
        if not self.task.done():
            logger.error("worker %d did not end within %g s: it is killed", self.number, timeout)
            self.kill()
            await asyncio.wait({self.task})

    @staticmethod
    def _end(process: WorkerProcess) -> None:
        if process.ready:
            process.drain()
        else:
            process.kill()  # it has no request yet

    def kill(self) -> None:
        self._ending.set()
        if self.process is not None:
            self.process.kill()

    async def _keep(self) -> None:
        deaths = 0
        try:
            while not self._ending.is_set():
                quick, how = await self._one()
                if self._ending.is_set():
                    break
                if not self._first.done():
                    self._first.set_exception(WorkerFailed(f"worker {self.number} cannot start: {how}"))
                    return
                deaths = deaths + 1 if quick else 0
                if deaths >= MAX_QUICK_DEATHS:
                    self._on_give_up(f"worker {self.number} died {deaths} times in a row: {how}")
                    return
                pause = min(BACKOFF_MAX, BACKOFF_BASE * 2 ** (deaths - 1)) if deaths else 0.0
                logger.error("worker %d died: %s; it is replaced in %g s", self.number, how, pause)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), pause)
        finally:
            if not self._first.done():
                self._first.cancel()

    async def _one(self) -> tuple[bool, str]:
        """One worker from its start to its end: whether that was quick, and how it ended."""
        try:
            process = self.process = await WorkerProcess.spawn(self.number, self._listening, self._start())
        except OSError as error:
            return True, f"no process can be made: {error.strerror}"
        if self._ending.is_set():  # told while it was being made
            self._end(process)
        ready = await process.started(START_SECONDS)
        since = time.monotonic()
        if not ready:
            process.kill()
        elif not self._first.done():
            self._first.set_result(None)
        how = await process.wait()
        self._on_end(process)
        return not ready or time.monotonic() - since < QUICK_SECONDS, process.failure or how


class Supervisor:
    """All that `gateway run` starts.

    Args:
        config: validated; `path` and `overrides` are what it was loaded from, for SIGHUP.
        on_ready: called once, when connections are accepted.
    """

    def __init__(
        self,
        config: Config,
        *,
        path: Path | None = None,
        overrides: Overrides | None = None,
        on_ready: Callable[[Ready], None] | None = None,
    ) -> None:
        self.config = config
        self.node = secrets.token_hex(4)
        self.started = time.monotonic()
        self.metrics = Metrics()
        self.retired: Snapshot = {}
        """The counters of workers that have ended, so that the sums never fall."""
        self.ending = False
        self.slots: list[Slot] = []
        self._path = path
        self._overrides = overrides
        self._on_ready = on_ready
        self._coming: list[Slot] = []
        self._old: dict[asyncio.Task[None], list[Slot]] = {}
        self._listeners: Listeners | None = None
        self._admin: Admin | None = None
        self._embedded: Embedded | None = None
        self._embedded_url = ""
        self._spawned = 0
        self._exit_code = 0
        self._end = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._deaths = self.metrics.counter("gateway_workers_ended_total", "Workers that ended without being told to.")
        self.metrics.gauge("gateway_workers", "Workers that accept connections.", lambda: len(self._ready_workers()))

    def __repr__(self) -> str:
        return f"<Supervisor {self.node} {len(self.slots)} workers>"

    def _ready_workers(self) -> list[WorkerProcess]:
        return [slot.process for slot in self.slots if slot.process is not None and slot.process.ready]

    async def run(self) -> int:
        """Serve until a signal says to end; the exit code: 0, or 1 after an error, which is logged."""
        if not logging.getLogger().handlers:
            configure_logging(self.config.log.level)
        # nohup has it ignored: then a closed window is no reason to end.
        had_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_end_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup, had_terminal)
        starting = loop.create_task(self._start())
        ended = loop.create_task(self._end.wait())
        reloading = loop.create_task(self._reload_when_wanted(starting))
        try:
            await asyncio.wait({starting, ended}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await ended
        except (BindError, EmbeddedError, WorkerFailed) as error:
            logger.error("cannot start: %s", error)
            self._exit_code = 1
        finally:
            for task in (starting, ended, reloading):
                task.cancel()
            await asyncio.gather(starting, ended, reloading, return_exceptions=True)
            await self._stop()
        return self._exit_code

    # -- start and stop ------------------------------------------------------------------------------

    async def _start(self) -> None:
        config = self.config
        # What fails most often comes first, and before anything is started.
        self._listeners = Listeners(config.server.listen, backlog=config.server.backlog)
        if config.admin.enabled:
            self._admin = Admin(self, self._path.absolute().parent if self._path else None)
            await self._admin.start(Listeners(config.admin.listen, key="admin.listen"))
        self.slots = await self._make_slots(config)
        await asyncio.gather(*(slot.ready() for slot in self.slots))
        if self._on_ready is not None:
            admin_url = self._admin.url if self._admin is not None else None
            redis = "embedded" if config.redis.url == "embedded" else redact(config.redis.url)
            self._on_ready(Ready(config, self._listeners.url, admin_url, redis, os.getpid()))

    async def _make_slots(self, config: Config) -> list[Slot]:
        """Workers for a configuration, starting."""
        assert self._listeners is not None
        url = await self._redis_url(config)
        resolved = config.model_copy(update={"redis": config.redis.model_copy(update={"url": url})})
        message: dict[str, Any] = {
            "config": resolved.model_dump(mode="json"),
            "folder": str(self._path.absolute().parent if self._path else Path.cwd()),
            "source": str(self._path) if self._path else BUILT_IN,
        }

        def start() -> Message:
            # The node's name begins each request id: no two worker processes may have the same.
            self._spawned += 1
            return {**message, "node": f"{self.node}.{self._spawned}"}

        return [
            Slot(number, self._listeners.take(number), start, self._on_worker_end, self._give_up)
            for number in range(config.server.workers)
        ]

    async def _redis_url(self, config: Config) -> str:
        if config.redis.url != "embedded":
            return config.redis.url
        if self._embedded is None:
            embedded = Embedded(config.redis.state_dir)
            self._embedded_url = await embedded.start()
            self._embedded = embedded
        return self._embedded_url

    async def _stop(self) -> None:
        """Drain the workers, then close what they were using."""
        self.ending = True
        if self._listeners is not None:
            self._listeners.close()  # the workers close theirs: from now on the port refuses
        await self._drain(self._all_slots())
        if self._admin is not None:
            await self._admin.stop()
        if self._embedded is not None:
            await self._embedded.stop()

    def _all_slots(self) -> list[Slot]:
        return [*self.slots, *self._coming, *(slot for slots in self._old.values() for slot in slots)]

    # -- what happens meanwhile ----------------------------------------------------------------------

    def _on_end_signal(self) -> None:
        if self._end.is_set():
            logger.warning("told twice to end: requests in flight are cut off")
            for slot in self._all_slots():
                slot.kill()
        self._end.set()

    def _on_hangup(self, had_terminal: bool) -> None:
        if had_terminal and not _has_terminal():
            self._on_end_signal()  # its window was closed
        else:
            self._reload_wanted.set()

    def _on_worker_end(self, process: WorkerProcess) -> None:
        if not process.draining:
            self._deaths.value += 1
        if process.snapshot is not None:
            self.retired = merge([self.retired, process.snapshot["metrics"]], gauges=False)

    def _give_up(self, why: str) -> None:
        logger.error("giving up: %s", why)
        self._exit_code = 1
        self._end.set()

    async def _reload_when_wanted(self, starting: asyncio.Task[None]) -> None:
        await asyncio.wait({starting})
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            try:
                await self._reload()
            except (ConfigError, BindError, EmbeddedError, WorkerFailed) as error:
                logger.error("reload: the old configuration stays, because the new one is wrong: %s", error)

    async def _reload(self) -> None:
        config = load(self._path, overrides=self._overrides)
        for key in ("server.listen", "admin.listen", "admin.enabled", "redis.state_dir"):
            table, name = key.split(".")
            if getattr(getattr(config, table), name) != getattr(getattr(self.config, table), name):
                logger.warning("reload: %s has changed; that takes a restart", key)
        slots = self._coming = await self._make_slots(config)
        try:
            await asyncio.gather(*(slot.ready() for slot in slots))
        except BaseException:
            self._coming = []
            self._retire(slots)
            raise
        old, self.slots, self._coming, self.config = self.slots, slots, [], config
        self._retire(old)
        configure_logging(config.log.level)
        logger.info("reload: %d new workers have taken over", len(slots))

    def _retire(self, slots: list[Slot]) -> None:
        """Have workers end in the background."""
        task = asyncio.get_running_loop().create_task(self._drain(slots))
        self._old[task] = slots
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._old.pop(task)
        if self._listeners is not None and not self.ending:
            # Where nobody accepts any more, connections must not be queued.
            self._listeners.shrink(1 + max(slot.number for slot in self._all_slots()))

    async def _drain(self, slots: Iterable[Slot]) -> None:
        timeout = self.config.server.drain_timeout + STOP_SECONDS
        await asyncio.gather(*(slot.drain(timeout) for slot in slots))


def _has_terminal() -> bool:
    """Whether this process was started in a terminal that is still there."""
    try:
        os.tcgetpgrp(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return True
