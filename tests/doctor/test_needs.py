"""What the gateway needs is gathered from its code: proven by a gateway whose user may do that, and nothing else."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from hashlib import sha1, sha256
from pathlib import Path

import aiohttp
import pytest
import redis.asyncio

from gateway.config import Config
from gateway.doctor import needs
from gateway.doctor.checks import LINKS_PER_WORKER
from gateway.fleet import BEAT
from gateway.loader import built_in_names, load_plugins, make_plugins
from gateway.plugin import Plugin
from gateway.store.url import Place
from tests.conftest import StartGateway
from tests.harness import UpstreamServer, eventually

ROOT = Path(__file__).parents[2]
PLACE = Place("single")
OWN = """
from gateway.plugin import Plugin, Script

class Counting(Plugin):
    COUNT = Script("return redis.call('INCR', KEYS[1])", "count.lua")

    def ask(self, request, redis):
        redis.tell("LPUSH", "mine", request.path)
        return redis.ask("GETEX", "mine", "EX", 5)
"""


def built_in() -> list[Plugin]:
    tables = {name: {"limits": ["1/s"]} if name == "rate_limit" else {} for name in built_in_names()}
    plugins, problems = make_plugins(Config.model_validate({"plugins": tables}).plugins, ROOT)
    assert not problems
    return list(plugins.values())


def test_finds_every_script() -> None:
    known = {script.sha.decode() for script in needs.scripts_of(built_in())}
    files = {path: sha1(path.read_bytes()).hexdigest() for path in (ROOT / "plugins").rglob("*.lua")}
    assert files
    assert {path.name for path, sha in files.items() if sha not in known} == set()


def test_only_what_the_configured_plugins_need() -> None:
    plugins = [plugin for plugin in built_in() if plugin.name == "request_id"]
    always = {*needs.LINKS, *needs.commands_of([BEAT])}
    assert set(needs.needed(plugins, PLACE)) == {*always, *needs.MIRROR}
    assert set(needs.needed(plugins, PLACE, mirror=False)) == always
    assert ("select",) in needs.needed(plugins, Place("single", db=3))


def test_a_plugin_of_ones_own_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "counting_plugin.py").write_text(OWN)
    config = Config.model_validate({"plugins": {"own": {"use": "counting_plugin:Counting"}}})
    try:
        plugins = list(load_plugins(config, tmp_path).values())
        assert {("lpush",), ("getex",), ("incr",)} <= set(needs.needed(plugins, PLACE))
    finally:
        sys.modules.pop("counting_plugin", None)


def test_names_of_keys_that_the_configuration_chose() -> None:
    tables = {"session": {"key": "login:{id}:v1"}, "token_blacklist": {}}
    plugins, _ = make_plugins(Config.model_validate({"plugins": tables}).plugins, ROOT)
    assert needs.key_templates(plugins.values(), "gateway") == ["login:{id}:v1"]


@pytest.mark.parametrize("mirror", [1 << 20, 0])
async def test_a_gateway_needs_no_more(
    mirror: int,
    gateway: StartGateway,
    upstream: UpstreamServer,
    http: aiohttp.ClientSession,
    redis_client: redis.asyncio.Redis,
    acl_user: Callable[..., Awaitable[str]],
) -> None:
    needed = needs.needed(built_in(), PLACE, mirror=mirror > 0)
    url = await acl_user(*needs.rules(needed, ["gateway:*"]).split())
    await redis_client.execute_command("ACL LOG", "RESET")
    await redis_client.config_resetstat()
    node = await gateway(
        {
            "redis": {"url": url, "mirror": {"max_bytes": mirror}},
            "plugins": {
                "request_id": {},
                "rate_limit": {"limits": ["100/minute"]},
                "bucket": {"use": "rate_limit", "limits": ["100/minute"], "algorithm": "token_bucket"},
                "token_blacklist": {},
                "session": {"touch_interval": 0.001, "ttl": 3600},
                "cache": {
                    "ttl": 30,
                    "credentials": [],
                    "purge_from": ["127.0.0.0/8"],
                    "purge_rules": ["PUT /{any} -> tag one"],
                    "hot_threshold": 1,
                },
            },
        }
    )
    assert node.worker.redis.up
    session = "gateway:session:" + sha256(b"ada").hexdigest()
    await redis_client.hset(session, mapping={"userId": "ada", "expiresAt": str(int(time.time()) + 600)})
    await redis_client.expire(session, 600)
    headers = {"Cookie": "session=ada", "Authorization": "Bearer abc"}
    for method, path, more in [
        ("GET", "/a", {}),
        ("GET", "/a", {}),
        ("GET", "/b", {"Cache-Control": "no-cache"}),
        ("PUT", "/a", {}),
        ("GET", "/a", {}),
        ("PURGE", "/a", {}),
        ("PURGE", "/a", {"Soft-Purge": "1"}),
        ("PURGE", "/a", {"Cache-Tag": "one"}),
        ("GET", "/a", {}),
    ]:
        async with http.request(method, node.url + path, headers={**headers, **more}) as response:
            assert response.status == 200, (method, path, await response.text())
            await response.read()
    names = [client["name"] for client in await redis_client.client_list()]
    assert len([name for name in names if name == f"gateway-{node.worker.node}"]) == LINKS_PER_WORKER
    sent = await eventually(lambda: commands_of(redis_client, "evalsha"))
    assert await redis_client.execute_command("ACL LOG") == []
    own = {"acl|log", "acl|setuser", "config|resetstat", "hset", "expire", "info", "client|list", "hello", "auth"}
    assert {name for name in sent if not name.startswith(("client|setinfo", "client|maint"))} - own <= {
        needs.rule(words) for words in needed
    }
    assert {"set", "pexpire", "hgetall"} <= set(sent)


async def commands_of(client: redis.asyncio.Redis, wanted: str) -> set[str]:
    """What was asked of Redis since its counts began anew, scripts included."""
    stats = await client.info("commandstats")
    found = {name.removeprefix("cmdstat_") for name in stats}
    return found if wanted in found else set()
