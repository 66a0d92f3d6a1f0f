"""The command as people run it: a process, before servers that are set up badly and well."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.store.embedded import Embedded
from tests.conftest import StartGateway
from tests.harness import Valkey, free_port, running_valkey
from tests.test_cli import in_a_process

CONFIG = """
[upstreams.default]
url = "http://127.0.0.1:1"
[plugins.session]
[plugins.cache]
[plugins.rate_limit]
limits = ["5/minute"]
[[routes]]
name = "all"
plugins = ["rate_limit", "session", "cache"]
"""
SECRET = "s3/cr@t:#?%"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path


def levels(told: Any) -> dict[str, str]:
    return {finding["check"]: finding["level"] for finding in told["findings"]}


async def told_of(folder: Path, url: str, code: int, *arguments: str) -> Any:
    done = await asyncio.to_thread(in_a_process, folder, "--redis", url, "doctor", "--json", *arguments)
    assert (done.returncode, done.stderr) == (code, ""), done.stdout
    assert "s3" not in done.stdout
    return json.loads(done.stdout)


async def test_a_server_that_is_set_up_badly(folder: Path) -> None:
    with running_valkey("--maxmemory", "100mb", "--slowlog-log-slower-than", "0") as server:
        with redis.Redis(port=server.port) as client:
            client.set("gateway:session:0123456789abcdef", "x")
            client.eval("return redis.call('GET', KEYS[1])", 1, "gateway:x")
        told = await told_of(folder, server.url, 1)
        found = levels(told)
        assert told["level"] == found.pop("eviction") == "critical"
        warned = {check for check, level in found.items() if level == "warning"}
        assert warned == {"persistence", "slow log", "keys without TTL"}
        assert "unknown" not in found.values()
        assert all(finding["hint"] for finding in told["findings"] if finding["level"] != "ok")
        done = in_a_process(folder, "doctor", "--redis", server.url)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[1].startswith("critical  eviction ")
    assert lines[2].strip().startswith("→ CONFIG SET maxmemory-policy allkeys-lfu")
    assert "gateway:session:01234567..." in done.stdout
    assert lines[-1].startswith("1 critical, 3 warnings, ")


async def test_a_server_that_is_set_up_well(folder: Path) -> None:
    """With the users that the command itself prints, none of them an administrator."""
    options = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lfu", "--appendonly", "yes"]
    acl = in_a_process(folder, "doctor", "--acl", "--user", "gw")
    assert acl.returncode == 0
    with running_valkey(*options) as server:
        with redis.Redis(port=server.port) as client:
            for line in acl.stdout.splitlines():
                client.execute_command(*[">s3cret" if word[0] == ">" else word for word in line.split()])
            client.set("gateway:cache:a", "x", ex=100)
            client.config_resetstat()
        told = await told_of(folder, server.url.replace("//", "//gw-doctor:s3cret@"), 0, "--user", "gw")
        assert set(levels(told).values()) == {"ok"}
        assert told["redis"] == server.url.replace("//", "//***@")
        with redis.Redis(port=server.port) as client:
            assert client.keys() == [b"gateway:cache:a"]
            stats = client.info("commandstats")
        # What was only asked about counts as rejected, not as called.
        called = {name.removeprefix("cmdstat_") for name, stat in stats.items() if stat["calls"]}
        assert not called & {"set", "unlink", "del", "config|set", "slowlog|reset", "flushall", "eval"}


@pytest.mark.parametrize(
    ("url", "more", "told"),
    [
        ("redis://h", set(), ""),
        ("redis+cluster://h", {"+cluster|slots", "+cluster|nodes", "+cluster|info", "+asking"}, "replicas too"),
        ("redis+sentinel://h/main", set(), "sentinel_username in the URL), who need +sentinel|masters"),
    ],
)
def test_the_user_to_make_on_each_server(folder: Path, url: str, more: set[str], told: str) -> None:
    done = in_a_process(folder, "--redis", url, "doctor", "--acl")
    assert done.returncode == 0
    gateway, operators, doctor = done.stdout.splitlines()
    assert {word for word in gateway.split() if word.startswith(("+cluster", "+sentinel", "+asking"))} == more
    assert "+config|get" in doctor
    assert "+config|get" not in gateway + operators
    assert all(line.startswith("# ") for line in done.stderr.splitlines())
    assert "`gateway doctor --user gateway`" in done.stderr
    assert told in done.stderr
    assert ("are not copied" in done.stderr) == bool(told)


async def test_a_user_without_rights(folder: Path, acl_user: Callable[..., Awaitable[str]]) -> None:
    url = await acl_user("~gateway:*", "+get", password=SECRET)
    told = await told_of(folder, url, 1)
    found = levels(told)
    assert found["rights"] == "critical"
    assert found["version"] == "ok"
    for check, right in {"eviction": "+info", "clock": "+time", "slow log": "+slowlog|get"}.items():
        assert found[check] == "unknown"
        assert right in next(one["hint"] for one in told["findings"] if one["check"] == check)


async def test_counts_the_nodes_it_sees(folder: Path, redis_url: str, gateway: StartGateway) -> None:
    for _ in range(2):
        await gateway({"plugins": {"request_id": {}}})
    told = await told_of(folder, redis_url, 0)
    assert "2 nodes 4 (8 while" in next(one["found"] for one in told["findings"] if one["check"] == "maxclients")


@pytest.mark.parametrize("state", ["away", "silent", "refuses"])
def test_redis_cannot_be_asked(folder: Path, own_valkey: Valkey, state: str) -> None:
    port = free_port() if state == "away" else own_valkey.port
    if state == "silent":
        own_valkey.pause()
    began = time.monotonic()
    done = in_a_process(folder, "doctor", "--redis", f"redis://ada:hush@127.0.0.1:{port}")
    assert time.monotonic() - began < 5
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"Redis at redis://***@127.0.0.1:{port}" in done.stderr
    assert "hush" not in done.stderr


async def test_the_embedded_server(folder: Path, tmp_path: Path) -> None:
    done = in_a_process(folder, "doctor", GATEWAY_STATE_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "`gateway run` starts it" in done.stderr
    server = Embedded(str(tmp_path))
    await server.start()
    try:
        done = await asyncio.to_thread(in_a_process, folder, "doctor", "--json", GATEWAY_STATE_DIR=str(tmp_path))
    finally:
        await server.stop()
    assert done.returncode == 0, done.stderr
    assert set(levels(json.loads(done.stdout)).values()) == {"ok"}


def test_a_wrong_configuration_is_told_before_redis_is_asked(folder: Path) -> None:
    (folder / "config.toml").write_text(CONFIG.replace("5/minute", "five"))
    done = in_a_process(folder, "doctor", "--redis", "redis://127.0.0.1:1")
    assert done.returncode == 2
    assert "plugins.rate_limit.limits" in done.stderr
