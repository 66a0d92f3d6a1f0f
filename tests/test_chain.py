"""Ask all, then call down; and what happens when Redis cannot answer."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from gateway.plugin import Answer, Handler, Plugin, PluginConfig, Redis, Request, Response
from tests.conftest import StartGateway
from tests.harness import UpstreamServer, Valkey, eventually


class Marks(Plugin):
    """Shows in which order plugins are entered and left."""

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        request.state.setdefault("order", []).append(self.name)
        response = await call_next(request)
        response.set("X-Order", ",".join([*request.state["order"], self.name]))
        request.state["order"].append(self.name)
        return response


class Asks(Plugin):
    class Config(PluginConfig):
        key: str = "k"

    def ask(self, request: Request, redis: Redis) -> Answer:
        return redis.ask("INCR", self.config.key)

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        count = await request.answers[self]
        response = await call_next(request)
        response.set(f"X-{self.name}", str(count))
        response.set("X-Trips", str(request.trips))
        return response

    async def without_redis(self, request: Request, call_next: Handler) -> Response:
        response = await call_next(request)
        response.set("X-Local", "yes")
        return response


class AsksLate(Plugin):
    async def __call__(self, request: Request, call_next: Handler) -> Response:
        await asyncio.gather(request.redis.ask("INCR", "late"), request.redis.ask("INCR", "late"))
        return await call_next(request)


class AsksAfterwards(Plugin):
    on_redis_failure = "pass"

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        response = await call_next(request)
        await request.redis.ask("INCR", "after")
        return response


def use(name: str) -> dict[str, str]:
    return {"use": f"tests.test_chain:{name}"}


async def test_the_first_is_the_outermost(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway({"plugins": {name: use("Marks") for name in "abc"}})
    async with http.get(node.url) as answer:
        assert answer.headers["X-Order"] == "a,b,c,c,b,a"


async def test_a_disabled_plugin_leaves_the_chain(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    plugins = {name: {**use("Marks"), "enabled": name != "b"} for name in "abc"}
    node = await gateway({"plugins": plugins})
    async with http.get(node.url) as answer:
        assert answer.headers["X-Order"] == "a,c,c,a"


async def test_all_questions_of_a_chain_share_one_round_trip(
    gateway: StartGateway, http: aiohttp.ClientSession
) -> None:
    node = await gateway({"plugins": {name: {**use("Asks"), "key": name} for name in ("one", "two", "three")}})
    writes = node.worker.redis.links[0].writes
    async with http.get(node.url) as answer:
        assert [answer.headers[f"X-{name}"] for name in ("one", "two", "three")] == ["1", "1", "1"]
        assert answer.headers["X-Trips"] == "1"
    assert node.worker.redis.links[0].writes == writes + 1


async def test_a_late_question_costs_one_more(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway({"plugins": {"one": use("Asks"), "late": use("AsksLate")}})
    async with http.get(node.url) as answer:
        assert answer.headers["X-Trips"] == "2"


@pytest.mark.parametrize(
    ("failure", "status", "local"), [("pass", 200, None), ("refuse", 503, None), ("local", 200, "yes")]
)
async def test_what_a_plugin_does_without_redis(
    gateway: StartGateway,
    http: aiohttp.ClientSession,
    own_valkey: Valkey,
    failure: str,
    status: int,
    local: str | None,
) -> None:
    node = await gateway(
        {"redis": {"url": own_valkey.url}, "plugins": {"one": {**use("Asks"), "on_redis_failure": failure}}}
    )
    own_valkey.kill()
    await eventually(lambda: not node.worker.redis.up)
    async with http.get(node.url) as answer:
        assert answer.status == status
        assert answer.headers.get("X-Local") == local
        assert (answer.headers.get("Retry-After") is not None) == (status == 503)


async def test_an_error_of_redis_counts_as_its_failure(
    gateway: StartGateway, http: aiohttp.ClientSession, redis_client: redis.asyncio.Redis
) -> None:
    await redis_client.lpush("k", "not a number")
    node = await gateway({"plugins": {"one": {**use("Asks"), "on_redis_failure": "refuse"}}})
    async with http.get(node.url) as answer:
        assert answer.status == 503


async def test_the_upstream_is_never_called_twice(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, upstream: UpstreamServer
) -> None:
    """`pass` after `call_next` would send a POST again."""
    node = await gateway({"redis": {"url": own_valkey.url}, "plugins": {"after": use("AsksAfterwards")}})
    own_valkey.kill()
    await eventually(lambda: not node.worker.redis.up)
    async with http.post(node.url, data=b"x") as answer:
        assert answer.status == 503
    assert len(upstream.requests) == 1


class Records(Plugin):
    log: list[str] = []  # noqa: RUF012

    class Config(PluginConfig):
        fail: bool = False

    async def start(self, worker: Any) -> None:
        self.log.append(f"start {self.name}")
        if self.config.fail:
            raise RuntimeError("cannot start")

    async def stop(self) -> None:
        self.log.append(f"stop {self.name}")


async def test_plugins_start_in_order_and_stop_in_reverse(gateway: StartGateway) -> None:
    Records.log.clear()
    node = await gateway({"plugins": {name: use("Records") for name in "ab"}})
    await node.stop()
    assert Records.log == ["start a", "start b", "stop b", "stop a"]


async def test_a_start_that_fails_is_undone(gateway: StartGateway) -> None:
    Records.log.clear()
    with pytest.raises(RuntimeError, match="cannot start"):
        await gateway({"plugins": {"a": use("Records"), "b": {**use("Records"), "fail": True}}})
    assert Records.log == ["start a", "start b", "stop b", "stop a"]
