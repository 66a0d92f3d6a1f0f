"""A worker process: `python -m gateway.worker_main FD`, started by the supervisor and told everything over that socket.

It ends when it is told to drain, when it gets SIGTERM, and when the channel closes: a worker never outlives its parent
for longer than its requests in flight take.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from gateway.config import Config, ConfigError, redact
from gateway.control import Channel, Message
from gateway.loader import load_plugins
from gateway.observe import AccessLog, LoopLag, Metrics, Observer, watch_process, watch_redis
from gateway.observe.messages import configure_logging
from gateway.store import RedisError
from gateway.worker import Worker

logger = logging.getLogger("gateway.worker")

# Requests leave no cycles behind: the default of 700 objects would look for them every seventh request. More than
# 5,000 would hold up all requests for over 1 ms each time while a mirror fills; and to walk all that is there takes
# 40 ms, for cycles that have outlived 25,000 objects, which only a faulty plugin makes: once in 25 million will do.
GC_THRESHOLDS = (5_000, 5, 1_000)
PING_SECONDS = 0.5


async def work(fd: int) -> int:
    """The life of the process; its exit code."""
    channel = await Channel.over(socket.socket(fileno=fd))
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    for number in (signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: None)  # the parent decides
    start = await channel.receive()
    if start is None:
        return 0
    config = Config.model_validate(start["config"])
    configure_logging(config.log.level)
    observer = make_observer(config)
    try:
        worker = make_worker(config, start, observer)
        await worker.start([socket.socket(fileno=listening) for listening in start["sockets"]])
    except Exception as error:  # plugins are anybody's code
        if not isinstance(error, ConfigError):
            logger.exception("worker %d cannot start", start["number"])
        channel.send({"failed": str(error) or type(error).__name__})
        await channel.close()
        return 1
    watch_redis(observer.metrics, worker.redis)
    observer.metrics.ratio(
        "gateway_fleet_workers",
        "Workers of all nodes that are alive, as those of this node believe on average.",
        lambda: (worker.fleet.workers, 1),
    )
    observer.metrics.gauge("gateway_requests_in_flight", "Requests being answered.", lambda: worker.server.in_flight)
    lag = LoopLag(observer.metrics)
    # What is here now stays: the collector need not walk it again, which would hold up all requests for 20 ms.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    channel.send({"ready": True})
    listening = loop.create_task(listen(channel, worker, observer, end))
    await end.wait()
    listening.cancel()
    await worker.drain(config.server.drain_timeout)
    channel.send({"snapshot": await snapshot(worker, observer)})
    await worker.stop()
    lag.stop()
    if observer.access_log is not None:
        await observer.access_log.stop()
    await channel.close()
    return 0


def make_observer(config: Config) -> Observer:
    """Counters, and the access log if it is wanted."""
    metrics = Metrics()
    watch_process(metrics)
    dropped = metrics.counter("gateway_access_log_dropped_total", "Lines that a slow reader of the log did not get.")
    return Observer(metrics, AccessLog(config.log.max_buffer, dropped) if config.log.access else None)


def make_worker(config: Config, start: Message, observer: Observer) -> Worker:
    """The worker with its plugins, not started.

    Raises:
        ConfigError: a plugin's table is wrong.
    """
    plugins = load_plugins(config, Path(start["folder"]), start["source"])
    return Worker(
        config, plugins, number=start["number"], node=start["node"], metrics=observer.metrics, observer=observer
    )


async def listen(channel: Channel, worker: Worker, observer: Observer, end: asyncio.Event) -> None:
    """Do what the parent says, until it says to end or is gone."""
    while (message := await channel.receive()) is not None:
        if message["do"] == "snapshot":
            channel.send({"snapshot": await snapshot(worker, observer)})
        elif message["do"] == "drain":
            break
    end.set()


async def snapshot(worker: Worker, observer: Observer) -> dict[str, Any]:
    """What the parent shows of this worker."""
    redis = worker.redis
    latency = await redis_latency(worker)
    return {
        "pid": os.getpid(),
        "number": worker.number,
        "redis_up": redis.up,
        "redis_why": redact(redis.why_down),
        "redis_latency_ms": latency,
        "redis_waiting": sum(link.waiting for link in redis.links),
        "workers_alive": worker.fleet.workers,
        "mirror_entries": len(redis.mirror),
        "mirror_bytes": redis.mirror.bytes,
        "requests": observer.requests,
        "in_flight": worker.server.in_flight,
        "metrics": observer.metrics.snapshot(),
    }


async def redis_latency(worker: Worker) -> float | None:
    """Milliseconds of one round trip to the slowest server; None where one does not answer."""
    asked = time.perf_counter()
    try:
        await asyncio.wait_for(_answer(worker.redis.ping()), PING_SECONDS)
    except (RedisError, TimeoutError):
        return None
    return round((time.perf_counter() - asked) * 1e3, 3)


async def _answer(answer: Any) -> Any:
    return await answer


def main() -> None:
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        sys.exit("gateway.worker_main is started by the gateway itself: use `gateway run`")
    sys.exit(uvloop.run(work(int(sys.argv[1]))))


if __name__ == "__main__":
    main()
