"""What the gateway needs is gathered from its code: proven by a gateway whose user may do that, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import redis.asyncio

from gateway.config import Config
from gateway.doctor import needs
from gateway.doctor.checks import LINKS_PER_WORKER
from gateway.doctor.command import acl_of
from gateway.doctor.nodes import find
from gateway.fleet import BEAT
from gateway.loader import built_in_names, load_plugins, make_plugins
from gateway.plugin import Plugin
from gateway.store.url import Kind, Place
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, Valkey, eventually
from tests.plugins.cache.console import Done, command, write_config
from tests.servers import Cluster, Sentinel, Server, userinfo

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
    assert set(needs.needed(plugins, Place("cluster"))) == {*always, *needs.MIRROR, *needs.CLUSTER}
    assert ("readonly",) in needs.needed(plugins, Place("cluster"), replicas=True)
    assert ("readonly",) not in needs.needed(plugins, Place("sentinel"), replicas=True)


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
    node = await gateway({"redis": {"url": url, "mirror": {"max_bytes": mirror}}, "plugins": PLUGINS})
    assert node.worker.redis.up
    await redis_client.hset(SESSION, mapping=ada())
    await redis_client.expire(SESSION, 600)
    await works(node, http)
    names = [client["name"] for client in await redis_client.client_list()]
    assert len([name for name in names if name == f"gateway-{node.worker.node}"]) == LINKS_PER_WORKER
    sent = names_of(await redis_client.info("commandstats"))
    assert await redis_client.execute_command("ACL LOG") == []
    assert {name for name in sent if not name.startswith(("client|setinfo", "client|maint"))} - FREE <= {
        needs.rule(words) for words in needed
    }
    assert {"set", "pexpire", "hgetall", "evalsha"} <= sent


@pytest.mark.parametrize("replicas", [True, False])
async def test_nor_in_a_cluster(
    replicas: bool, gateway: StartGateway, upstream: UpstreamServer, http: aiohttp.ClientSession, cluster: Cluster
) -> None:
    """Nor where slots move, and where a replica becomes the primary."""
    needed = needs.needed(built_in(), Place("cluster"), replicas=replicas)
    async with users(cluster.servers, needs.rules(needed, ["gateway:*"])):
        for server in cluster.servers:
            await server.ask("CONFIG RESETSTAT")
        options = {"read_from": "replica"} if replicas else {}
        url = cluster.url.replace("://", f"://{userinfo(USER, PASSWORD)}")
        node = await gateway({"redis": {"url": url, "max_silence": 0.5, **options}, "plugins": PLUGINS})
        await eventually(lambda: all(link.up for link in node.worker.redis.all_links))
        home = await cluster.home(SESSION)
        await home.ask("HSET", SESSION, *[word for pair in ada().items() for word in pair])
        await home.ask("EXPIRE", SESSION, 600)
        await works(node, http)
        migration = await cluster.migrate(cluster.slot(SESSION))
        await migration.move_all()
        await works(node, http)  # ASK
        await migration.finish()
        await works(node, http)  # MOVED
        await cluster.promote(await cluster.replica_of(migration.target))
        await eventually(lambda: node.worker.redis.up)
        await works(node, http)

        async def all_sent() -> set[str]:
            found = set().union(*[names_of(await one.ask("INFO", "commandstats")) for one in cluster.servers])
            return found if {"cluster|nodes", "cluster|info"} <= found else set()

        sent = await eventually(all_sent)
        allowed = {needs.rule(words) for words in needed}
        assert await refusals(cluster.servers) == []
        assert sent - FREE - BETWEEN <= allowed
        assert {needs.rule(words) for words in needs.CLUSTER} <= sent
        assert ("readonly" in sent) == ("readonly" in allowed) == replicas


async def test_nor_behind_sentinels(
    gateway: StartGateway, upstream: UpstreamServer, http: aiohttp.ClientSession, sentinel: Sentinel
) -> None:
    needed = needs.needed(built_in(), Place("sentinel", db=1))
    servers = [sentinel.primary, sentinel.replica]
    async with (
        users(servers, needs.rules(needed, ["gateway:*"])),
        users(sentinel.sentinels, needs.rules(needs.SENTINELS)),
    ):
        url = sentinel.url.replace("://", f"://{userinfo(USER, PASSWORD)}")
        url += f"?db=1&sentinel_username={quote(USER)}&sentinel_password={quote(PASSWORD, safe='')}"
        node = await gateway({"redis": {"url": url, "read_from": "replica"}, "plugins": PLUGINS})
        await eventually(lambda: all(link.up for link in node.worker.redis.all_links))
        async with redis.asyncio.Redis(port=sentinel.primary.port, db=1) as client:
            await client.hset(SESSION, mapping=ada())
            await client.expire(SESSION, 600)
        await works(node, http)
        assert await refusals(sentinel.servers) == []
        deployment = await asyncio.to_thread(find, url)
        assert [server.role for server in deployment.nodes] == ["primary", "replica"]
        deployment.close()


@pytest.mark.parametrize("kind", ["single", "cluster"])
async def test_each_user_can_do_what_is_its_own(
    kind: Kind, tmp_path: Path, own_valkey: Valkey, cluster: Cluster, gateway: StartGateway, http: aiohttp.ClientSession
) -> None:
    """Workers, operators, and who looks at the server, with the lines of `gateway doctor --acl`."""
    place = Place(kind)
    one = Server(own_valkey.port)
    servers, whole = ([one], one.url) if kind == "single" else (cluster.servers, cluster.url)
    urls = {user: whole.replace("://", f"://{userinfo(user, PASSWORD)}") for user in (USER, DOCTOR)}
    workers, operators, doctors = acl_of(needs.needed(built_in(), place), place, ["gateway:*"], USER)

    async def run(user: str, words: str) -> Done:
        return await command(write_config(tmp_path, urls[user], "http://127.0.0.1:1"), *words.split(), group=())

    async with users(servers, ""), users(servers, "", DOCTOR):
        await enter(servers, workers, doctors)
        node = await gateway({"redis": {"url": urls[USER]}, "plugins": PLUGINS})
        home = one if kind == "single" else await cluster.home(SESSION)
        await home.ask("HSET", SESSION, *[word for pair in ada().items() for word in pair])
        await home.ask("EXPIRE", SESSION, 600)
        await works(node, http)
        assert await refusals(servers) == []
        for words in OPERATORS:  # of the workers' rights alone
            refused = await run(USER, words)
            assert (refused.code, refused.out) == (1, ""), (words, refused)
            assert "may not run CLIENT SETNAME: grant it +client|setname" in refused.err

        await enter(servers, operators)
        await reset(servers)
        for words in LOOKERS:
            done = await run(DOCTOR, words)
            assert done.code == 0 or words.startswith("doctor"), (words, done)
            assert "the user may not look" not in done.out
            assert f"rights            {USER} may do all" in done.out or words == "cache stats", done.out
        assert await refusals(servers) == []
        asked = await sent(servers)
        assert {needs.rule(words) for words in needs.diagnosing(place)} <= asked
        for words in OPERATORS:
            done = await run(DOCTOR, words)
            changes = words.split()[1] in ("purge", "revoke")
            assert not changes or (done.code == 1 and "may not run" in done.err), (words, done)
        assert await home.ask("HGETALL", SESSION) != {}

        await reset(servers)
        for words in OPERATORS:
            done = await run(USER, words)
            assert done.code == 0, (words, done)
        assert await refusals(servers) == []
        assert {needs.rule(words) for words in needs.operating(place)} <= await sent(servers)
        refused = await run(USER, "cache stats")
        assert (refused.code, refused.out) == (1, "")
        assert "`gateway doctor --acl`" in refused.err
        refused = await run(USER, "doctor")
        assert "grant +info to a user for this command: see `gateway doctor --acl`" in refused.out
        async with redis.asyncio.Redis(port=home.port, username=USER, password=PASSWORD) as client:
            for words in SECRETS:
                with pytest.raises(redis.exceptions.NoPermissionError):
                    await client.execute_command(*words.split())


# -- what a gateway does, and what Redis saw of it -----------------------------------------------------

USER, PASSWORD = "gate:way", "s3/cr@t:#?%"
DOCTOR = f"{USER}-doctor"
OPERATORS = ["cache hot", "cache explain http://a.test/", "cache purge --tag one", "token revoke abc --ttl 10"]
OPERATORS += ["token status abc", "session list ada", "session show ada", "session revoke ada"]
OPERATORS += ["session revoke --user ada"]
SECRETS = ["CONFIG GET masterauth", "SCAN 0", "CLIENT LIST", "SLOWLOG GET", "INFO", "DBSIZE", "MEMORY USAGE gateway:a"]
LOOKERS = ["cache stats", f"doctor --user {USER}"]
PLUGINS: dict[str, Any] = {
    "request_id": {},
    "rate_limit": {"limits": ["1000/minute"]},
    "bucket": {"use": "rate_limit", "limits": ["1000/minute"], "algorithm": "token_bucket"},
    "token_blacklist": {},
    "session": {"touch_interval": 0.001, "ttl": 3600},
    "cache": {
        "ttl": 30,
        "credentials": [],
        "purge_from": ["127.0.0.0/8"],
        "purge_rules": ["PUT /{any} -> tag one"],
        "hot_threshold": 1,
    },
}
SESSION = "gateway:session:" + sha256(b"ada").hexdigest()
FREE = {"acl|log", "acl|setuser", "config|resetstat", "hset", "expire", "info", "client|list", "hello", "auth"}
"""What these tests ask, and what needs no right."""
BETWEEN = {"replconf", "psync", "migrate", "restore", "restore-asking", "del", "select", "multi", "exec", "pexpireat"}
BETWEEN |= {"cluster|setslot", "cluster|getkeysinslot", "cluster|myid", "cluster|failover", "client|setinfo"}
"""What servers of a cluster ask of each other, and those who move its slots of them."""


def ada() -> dict[str, str]:
    return {"userId": "ada", "expiresAt": str(int(time.time()) + 600)}


async def works(node: Gateway, http: aiohttp.ClientSession) -> None:
    """All that the plugins do with Redis."""
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
    cache: Any = node.plugins["cache"]
    await cache._hot.report(cache._redis)


@contextlib.asynccontextmanager
async def users(servers: Sequence[Server], rules: str, name: str = USER) -> AsyncIterator[None]:
    """A user with these rights on each server, whose logs of refusals begin anew."""
    for server in servers:
        await server.ask("ACL SETUSER", name, "reset", "on", f">{PASSWORD}", *rules.split())
        await server.ask("ACL LOG", "RESET")
    try:
        yield
    finally:
        for server in servers:
            await server.ask("ACL DELUSER", name)


async def enter(servers: Sequence[Server], *lines: str) -> None:
    """What `gateway doctor --acl` prints, with the password put in."""
    for server in servers:
        for line in lines:
            name, *words = line.removeprefix("ACL SETUSER ").split()
            await server.ask("ACL SETUSER", name, *[f">{PASSWORD}" if word[0] == ">" else word for word in words])


async def reset(servers: Sequence[Server]) -> None:
    """What was sent and refused counts from now on."""
    for server in servers:
        await server.ask("ACL LOG", "RESET")
        await server.ask("CONFIG RESETSTAT")


async def sent(servers: Sequence[Server]) -> set[str]:
    """What was asked of any of them since then."""
    return set().union(*[names_of(await server.ask("INFO", "commandstats")) for server in servers])


async def refusals(servers: Sequence[Server]) -> list[Any]:
    return [entry for server in servers for entry in await server.ask("ACL LOG")]


def names_of(stats: dict[str, Any]) -> set[str]:
    """What was asked of Redis since its counts began anew, scripts included."""
    return {name.removeprefix("cmdstat_") for name in stats}
