"""The admin listener, over HTTP; the supervisor behind it is made up, the whole one is in test_supervisor.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from gateway.admin import app as admin_app
from gateway.admin.app import Admin
from gateway.config import Config
from gateway.listen import Listeners
from gateway.observe.metrics import Metrics, Snapshot, merge


@dataclass
class Process:
    """A worker as its parent sees it."""

    pid: int
    ready: bool = True
    draining: bool = False
    answers: bool = True
    snapshot: dict[str, Any] | None = None

    async def ask_snapshot(self, timeout: float) -> bool:
        if not self.answers:
            await asyncio.sleep(timeout)
        return self.answers


@dataclass
class Place:
    number: int
    process: Process | None


@dataclass
class Supervised:
    slots: list[Place]
    config: Config = field(default_factory=lambda: Config.model_validate({}))
    node: str = "n0de"
    started: float = field(default_factory=lambda: time.monotonic() - 60)
    ending: bool = False
    metrics: Metrics = field(default_factory=Metrics)
    retired: Snapshot = field(default_factory=dict)


def told(requests: int, **changes: Any) -> dict[str, Any]:
    """What a worker tells of itself."""
    metrics = Metrics()
    metrics.counter("gateway_requests_total", "Requests answered.").value += requests
    decided = "gateway_decided_without_redis_total"
    metrics.counter(decided, "Decided.", plugin="rate_limit", decision="local").value += requests
    metrics.gauge("gateway_mirror_entries", "Entries.", lambda: 3)
    redis = {"redis_up": True, "redis_why": "", "redis_latency_ms": 0.2 + requests, "redis_waiting": 0}
    mirror = {"mirror_entries": 3, "mirror_bytes": 900, "workers_alive": 4 + requests}
    return {"requests": requests, "in_flight": 0, "metrics": metrics.snapshot(), **redis, **mirror, **changes}


@pytest.fixture
def supervised() -> Supervised:
    return Supervised([Place(0, Process(100, snapshot=told(1))), Place(1, Process(101, snapshot=told(2)))])


Ask = Callable[..., Awaitable[tuple[int, Any]]]


@pytest.fixture
async def ask(supervised: Supervised) -> AsyncIterator[Ask]:
    admin = Admin(supervised)
    await admin.start(Listeners("127.0.0.1:0", key="admin.listen"))
    async with aiohttp.ClientSession() as session:

        async def ask(path: str, method: str = "GET") -> tuple[int, Any]:
            async with session.request(method, admin.url + path) as answer:
                assert answer.headers["Cache-Control"] == "no-store"
                json = answer.content_type.endswith("json") and method != "HEAD"
                return answer.status, await answer.json(content_type=None) if json else await answer.text()

        yield ask
    await admin.stop()


async def test_all_is_well(ask: Ask) -> None:
    status, health = await ask("/_gateway/health")
    assert status == 200
    assert health.pop("uptime") == pytest.approx(60, abs=5)
    assert health.pop("version")
    assert health["workers"][0] == {
        "number": 0, "pid": 100, "ready": True, "answers": True, "requests": 1, "in_flight": 0
    }  # fmt: skip
    assert health["redis"]["links"][1] == {"worker": 1, "up": True, "why": "", "latency_ms": 2.2, "waiting": 0}
    assert (health["redis"]["up"], health["redis"]["latency_ms"]) == (True, 2.2)
    assert health["mirror"] == {"entries": 6, "bytes": 1800}
    assert health["fleet"] == {"workers": 6}
    assert health["redis"]["decided_without"] == {"rate_limit": {"local": 3}}
    assert (health["status"], health["ready"], health["node"]) == ("ok", True, "n0de")
    assert (await ask("/_gateway/health?ready"))[0] == 200


async def test_redis_away_is_degraded_and_still_ready(ask: Ask, supervised: Supervised) -> None:
    away = told(2, redis_up=False, redis_why="main: connection refused", redis_latency_ms=None)
    supervised.slots[1].process = Process(101, snapshot=away)
    status, health = await ask("/_gateway/health?ready")
    assert (status, health["status"], health["ready"], health["redis"]["up"]) == (200, "degraded", True, False)
    assert health["redis"]["links"][1]["why"] == "main: connection refused"
    assert health["redis"]["latency_ms"] == 1.2  # of those that answered


async def test_a_redis_that_only_keeps_silent_is_degraded(ask: Ask, supervised: Supervised) -> None:
    silent = told(2, redis_up=True, redis_why="", redis_latency_ms=None)
    supervised.slots[1].process = Process(101, snapshot=silent)
    assert (await ask("/_gateway/health"))[1]["status"] == "degraded"


@pytest.mark.parametrize("process", [None, Process(101, ready=False), Process(101, draining=True, snapshot=told(2))])
async def test_a_worker_that_is_not_ready(ask: Ask, supervised: Supervised, process: Process | None) -> None:
    supervised.slots[1].process = process
    assert (await ask("/_gateway/health"))[0] == 200
    status, health = await ask("/_gateway/health?ready")
    assert (status, health["status"], health["ready"]) == (503, "degraded", False)
    assert health["workers"][1]["ready"] is False


async def test_the_end_is_told_to_load_balancers(ask: Ask, supervised: Supervised) -> None:
    supervised.ending = True
    assert (await ask("/_gateway/health?ready"))[0] == 503


async def test_workers_that_do_not_answer_are_not_waited_for(
    ask: Ask, supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_app, "COLLECT_SECONDS", 0.5)
    for place in supervised.slots:
        assert place.process is not None
        place.process.answers = False
    began = time.monotonic()
    _, health = await ask("/_gateway/health")
    assert time.monotonic() - began < 0.95  # both at once
    assert [worker["answers"] for worker in health["workers"]] == [False, False]
    assert health["status"] == "degraded"
    assert "gateway_requests_total 3.0" in (await ask("/_gateway/metrics"))[1]  # as they were


async def test_metrics_are_of_all_workers_that_are_and_were(ask: Ask, supervised: Supervised) -> None:
    supervised.retired = merge([told(10)["metrics"]], gauges=False)
    supervised.metrics.gauge("gateway_workers", "Workers.", lambda: 2)
    status, text = await ask("/_gateway/metrics")
    assert status == 200
    lines = text.splitlines()
    assert "gateway_requests_total 13.0" in lines
    assert "gateway_mirror_entries 6.0" in lines
    assert "gateway_workers 2.0" in lines
    assert "# TYPE gateway_requests_total counter" in lines


@pytest.mark.parametrize("path", ["/", "/_gateway", "/_gateway/", "/_gateway/healthy", "/_gateway/health/", "/metrics"])
async def test_there_is_nothing_else(ask: Ask, path: str) -> None:
    assert await ask(path) == (404, {"type": "about:blank", "title": "Not Found", "status": 404})


async def test_it_only_tells(ask: Ask) -> None:
    status, problem = await ask("/_gateway/health", "POST")
    assert (status, problem["title"]) == (405, "Method Not Allowed")
    assert (await ask("/_gateway/health", "HEAD"))[0] == 200
