"""A parent and its workers, as processes: what clients notice when they start, die, change and end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.harness import UpstreamServer, eventually
from tests.nodes import Node, running_node

StartNode = Callable[..., Awaitable[Node]]


@pytest.fixture
async def node(tmp_path: Path, redis_url: str, upstream: UpstreamServer) -> AsyncIterator[StartNode]:
    """Starts gateways in front of the upstream, on the shared Redis."""
    async with contextlib.AsyncExitStack() as stack:
        count = 0

        async def start(**tables: Any) -> Node:
            nonlocal count
            count += 1
            folder = tmp_path / f"node{count}"
            folder.mkdir()
            if plugin := tables.pop("code", None):
                (folder / "own_plugin.py").write_text(plugin)
            tables = {"redis": {"url": redis_url}, "upstreams": {"default": {"url": upstream.url}}, **tables}
            return await stack.enter_async_context(running_node(folder, **tables))

        yield start


async def get(url: str, path: str = "/") -> tuple[int, bytes]:
    """One request on a connection of its own."""
    async with aiohttp.ClientSession() as session, session.get(url + path) as answer:
        return answer.status, await answer.read()


class Slow:
    """An upstream's answer that comes when the test says so."""

    def __init__(self, upstream: UpstreamServer, path: str = "/slow") -> None:
        self.asked = asyncio.Event()
        self.release = asyncio.Event()
        upstream.answer(path, self)

    async def __call__(self, request: web.Request) -> web.Response:
        self.asked.set()
        await self.release.wait()
        return web.Response(text="at last")


class Traffic:
    """Request after request, each on a connection of its own, while something happens."""

    def __init__(self, url: str, path: str = "/") -> None:
        self.statuses: list[int] = []
        self.errors: list[Exception] = []
        self._url, self._path = url, path
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Traffic:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(3)]
        await eventually(lambda: len(self.statuses) > 5)
        return self

    async def __aexit__(self, *_: object) -> None:
        # Also what comes after is served.
        seen = len(self.statuses)
        try:
            await eventually(lambda: len(self.statuses) > seen + 5)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                self.statuses.append((await get(self._url, self._path))[0])
            except (aiohttp.ClientError, OSError) as error:
                self.errors.append(error)


async def test_two_workers_share_one_port_and_their_metrics_are_added_up(node: StartNode) -> None:
    gateway = await node(server={"workers": 2})
    for _ in range(40):  # the odds that one worker gets none are 1 to 2 ** 39
        assert (await get(gateway.url))[0] == 200
    health = await gateway.health()
    assert (health["status"], health["ready"]) == ("ok", True), (health, gateway.text)
    counts = [worker["requests"] for worker in health["workers"]]
    assert all(counts)
    assert sum(counts) == 40
    metrics = await gateway.metrics()
    assert metrics["gateway_requests_total"] == 40
    assert metrics["gateway_request_seconds_count"] == 40
    assert metrics["gateway_workers"] == 2
    assert metrics["gateway_redis_up"] == 4  # two links each


async def test_a_killed_worker_is_replaced_and_the_port_never_refuses(node: StartNode) -> None:
    gateway = await node(server={"workers": 2})
    before = await gateway.workers()
    async with Traffic(gateway.url) as traffic:
        counted = (await gateway.metrics())["gateway_requests_total"]
        os.kill(before[0], signal.SIGKILL)
        await eventually(gone_and_replaced(gateway, before[0]))
    assert set(traffic.statuses) == {200}
    # What the killed worker was just answering is lost, nothing else: no connection was refused.
    assert not any(isinstance(error, aiohttp.ClientConnectorError) for error in traffic.errors)
    assert len(traffic.errors) <= 3
    metrics = await gateway.metrics()
    assert metrics["gateway_workers_ended_total"] == 1
    assert metrics["gateway_requests_total"] >= counted
    assert "died: killed by SIGKILL; it is replaced" in gateway.text


def gone_and_replaced(gateway: Node, pid: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        workers = await gateway.workers()
        return pid not in workers and len(workers) == 2

    # A coroutine function, as `eventually` awaits what it is given.
    return functools.wraps(check)(lambda: check())


async def test_the_end_waits_for_requests_in_flight(node: StartNode, upstream: UpstreamServer) -> None:
    slow = Slow(upstream)
    gateway = await node()
    request = asyncio.create_task(get(gateway.url, "/slow"))
    await slow.asked.wait()
    gateway.signal(signal.SIGTERM)
    await eventually(lambda: refuses(gateway.port))  # nothing new is accepted
    assert not request.done()
    assert (await gateway.health("?ready"))["http"] == 503
    slow.release.set()
    assert await request == (200, b"at last")
    assert await gateway.ended() == 0


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def test_told_twice_it_ends_at_once(node: StartNode, upstream: UpstreamServer) -> None:
    slow = Slow(upstream)
    gateway = await node(server={"drain_timeout": 60})
    request = asyncio.create_task(get(gateway.url, "/slow"))
    await slow.asked.wait()
    gateway.signal(signal.SIGINT)
    await eventually(lambda: refuses(gateway.port))
    gateway.signal(signal.SIGINT)
    assert await gateway.ended(within=3) == 0
    with pytest.raises(aiohttp.ClientError):
        await request


async def test_what_does_not_end_in_time_is_cut_off(node: StartNode, upstream: UpstreamServer) -> None:
    slow = Slow(upstream)
    gateway = await node(server={"drain_timeout": 0.2})
    request = asyncio.create_task(get(gateway.url, "/slow"))
    await slow.asked.wait()
    gateway.signal(signal.SIGTERM)
    assert await gateway.ended(within=4) == 0
    with pytest.raises(aiohttp.ClientError):
        await request


async def test_workers_do_not_outlive_a_killed_parent(node: StartNode, upstream: UpstreamServer) -> None:
    slow = Slow(upstream)
    gateway = await node(server={"workers": 2})
    workers = await gateway.workers()
    request = asyncio.create_task(get(gateway.url, "/slow"))
    await slow.asked.wait()
    gateway.process.kill()
    await eventually(lambda: refuses(gateway.port))
    slow.release.set()
    assert await request == (200, b"at last")  # and still finish what they have begun
    await eventually(lambda: not any(alive(pid) for pid in workers))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- what keeps it from starting -------------------------------------------------------------------


@pytest.mark.parametrize("table", ["server", "admin"])
async def test_a_busy_port_is_named_and_ends_it(node: StartNode, table: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        gateway = await node(**{table: {"listen": f"127.0.0.1:{port}"}})
        assert await gateway.ended() == 1
    assert f"{table}.listen: port {port} is in use already" in gateway.text
    assert "Traceback" not in gateway.text


async def test_two_gateways_do_not_share_a_port_by_accident(node: StartNode) -> None:
    first = await node()
    second = await node(server={"listen": f"127.0.0.1:{first.port}"})
    assert await second.ended() == 1
    assert f"port {first.port} is in use already" in second.text


async def test_a_plugin_with_a_wrong_table_ends_it(node: StartNode) -> None:
    gateway = await node(plugins={"own": {"use": "own_plugin:Own", "colour": "red"}}, code=OWN)
    assert await gateway.ended() == 1
    assert "plugins.own.colour" in gateway.text
    assert "Traceback" not in gateway.text


OWN = """
import asyncio, os
from gateway.plugin import Plugin, PluginConfig, Response

class Own(Plugin):
    class Config(PluginConfig):
        word: str = "hello"
        fail: bool = False
        die: bool = False

    async def start(self, worker):
        if self.config.fail:
            raise RuntimeError("no such thing as " + self.config.word)
        if self.config.die:
            asyncio.get_running_loop().call_later(0.02, os._exit, 7)

    async def __call__(self, request, call_next):
        if request.path == "/word":
            return Response(body=self.config.word.encode())
        return await call_next(request)
"""


def own(**keys: Any) -> dict[str, Any]:
    return {"own": {"use": "own_plugin:Own", **keys}}


async def test_a_plugin_that_cannot_start_ends_it_with_its_reason(node: StartNode) -> None:
    gateway = await node(plugins=own(fail=True), code=OWN)
    assert await gateway.ended() == 1
    assert "cannot start: no such thing as hello" in gateway.text


async def test_workers_that_die_again_and_again_end_it(node: StartNode) -> None:
    gateway = await node(server={"workers": 1}, plugins=own(die=True), code=OWN)
    assert await gateway.ended(within=15) == 1
    assert "giving up: worker 0 died 5 times in a row: exit code 7" in gateway.text


# -- reload ----------------------------------------------------------------------------------------


async def test_a_reload_changes_the_configuration_and_loses_no_request(
    node: StartNode, upstream: UpstreamServer
) -> None:
    slow = Slow(upstream)
    gateway = await node(server={"workers": 2}, plugins=own(), code=OWN)
    old = await gateway.workers()
    request = asyncio.create_task(get(gateway.url, "/slow"))
    await slow.asked.wait()
    async with Traffic(gateway.url, "/word") as traffic:
        before = (await gateway.metrics())["gateway_requests_total"]
        gateway.write(plugins=own(word="changed"), server={**gateway.config["server"], "workers": 3})
        gateway.signal(signal.SIGHUP)
        await eventually(lambda: "3 new workers have taken over" in gateway.text)
        assert not set(old) & set(await gateway.workers())
        assert not request.done()
        slow.release.set()
        assert await request == (200, b"at last")
        await eventually(lambda: not any(alive(pid) for pid in old))
        assert (await gateway.metrics())["gateway_requests_total"] >= before
    assert not traffic.errors
    assert set(traffic.statuses) == {200}
    assert await get(gateway.url, "/word") == (200, b"changed")


async def test_fewer_workers_leave_no_connection_behind(node: StartNode) -> None:
    gateway = await node(server={"workers": 3})
    gateway.write(server={**gateway.config["server"], "workers": 1})
    gateway.signal(signal.SIGHUP)

    async def one_left() -> bool:
        return len((await gateway.health())["workers"]) == 1

    await eventually(lambda: one_left())
    await eventually(lambda: "1 new workers" in gateway.text)
    await eventually(lambda: len(children(gateway.process.pid)) == 1)
    for _ in range(20):
        assert (await asyncio.wait_for(get(gateway.url), 2))[0] == 200


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


async def test_a_wrong_configuration_changes_nothing(node: StartNode) -> None:
    gateway = await node(server={"workers": 2}, plugins=own(), code=OWN)
    workers = await gateway.workers()
    # one the parent finds, with all that is wrong
    gateway.write(server={"listn": "x", "workers": 0})
    gateway.signal(signal.SIGHUP)
    await eventually(lambda: "the old configuration stays" in gateway.text)
    assert "server.listn: unknown key" in gateway.text
    assert "server.workers" in gateway.text
    # one that only a worker finds
    gateway.write(server={"listen": "127.0.0.1:0", "workers": 2}, plugins=own(fail=True))
    gateway.signal(signal.SIGHUP)
    await eventually(lambda: "no such thing as hello" in gateway.text)
    await eventually(lambda: len(children(gateway.process.pid)) == 2)
    assert await gateway.workers() == workers
    assert await get(gateway.url, "/word") == (200, b"hello")
    # and a right one still works
    gateway.write(plugins=own(word="right"))
    gateway.signal(signal.SIGHUP)
    await eventually(lambda: "new workers have taken over" in gateway.text)

    async def right() -> bool:
        return await get(gateway.url, "/word") == (200, b"right")

    # The old ones may still take a connection until they have heard of it.
    await eventually(right, within=2)


# -- the embedded Redis ----------------------------------------------------------------------------


async def test_the_embedded_redis_starts_and_ends_with_the_gateway(node: StartNode, tmp_path: Path) -> None:
    state = {"url": "embedded", "state_dir": str(tmp_path / "state")}
    gateway = await node(redis=state)
    health = await gateway.health()
    assert health["redis"]["up"]
    assert health["redis"]["latency_ms"] > 0
    second = await node(redis=state)
    assert await second.ended() == 1
    assert f"in use by another gateway (pid {gateway.process.pid})" in second.text
    family = children(gateway.process.pid)
    assert len(family) == 2
    gateway.signal(signal.SIGTERM)
    assert await gateway.ended() == 0
    assert not any(alive(int(pid)) for pid in family)


# -- what is seen of it ----------------------------------------------------------------------------


async def test_a_worker_that_hangs_is_told_and_holds_nothing_up(node: StartNode) -> None:
    gateway = await node(server={"workers": 2})
    hanging, _ = await gateway.workers()
    await get(gateway.url)
    counted = (await gateway.metrics())["gateway_requests_total"]
    os.kill(hanging, signal.SIGSTOP)
    try:
        health = await asyncio.wait_for(gateway.health(), 3)
        assert health["status"] == "degraded"
        assert [worker["answers"] for worker in health["workers"]] == [False, True]
        assert (await asyncio.wait_for(gateway.metrics(), 3))["gateway_requests_total"] == counted
    finally:
        os.kill(hanging, signal.SIGCONT)


async def test_a_redis_that_is_away_is_told_without_its_password(node: StartNode) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        gateway = await node(redis={"url": f"redis://me:hush-hush@127.0.0.1:{port}/0"})
        health = await gateway.health("?ready")
        assert (health["http"], health["status"], health["ready"]) == (200, "degraded", True)
        assert health["redis"]["up"] is False
        assert health["redis"]["links"][0]["why"]
        (worker,) = await gateway.workers()
        assert (await get(gateway.url))[0] == 200
        for text in (
            str(health),
            gateway.text,
            *(Path(f"/proc/{pid}/cmdline").read_text() for pid in (worker, gateway.process.pid)),
        ):
            assert "hush-hush" not in text


async def test_a_stalled_standard_output_stalls_no_request(node: StartNode) -> None:
    gateway = await node(log={"access": True, "max_buffer": 100_000})
    async with aiohttp.ClientSession() as session:  # nobody reads the log meanwhile
        for _ in range(600):
            async with session.get(f"{gateway.url}/{'x' * 1000}") as answer:
                assert answer.status == 200
    await eventually(lambda: dropped(gateway))
    gateway.signal(signal.SIGTERM)
    assert await asyncio.wait_for(gateway.process.wait(), 8) == 0


async def dropped(gateway: Node) -> bool:
    return (await gateway.metrics())["gateway_access_log_dropped_total"] > 0
