"""`PURGE`, from where it is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from plugins.cache.config import CacheConfig
from plugins.cache.purge_method import PurgeMethod
from tests.conftest import StartGateway
from tests.harness import UpstreamServer, Valkey
from tests.plugins.cache.conftest import Client

Say = Callable[..., None]

LOCAL: dict[str, Any] = {"plugins": {"cache": {"purge_from": ["127.0.0.0/8"], "stale_if_error": 60}}}


async def test_a_url_is_purged_for_all(gateway: StartGateway, ask: Client, say: Say, upstream: UpstreamServer) -> None:
    say("/a", Vary="Accept")
    nodes = [await gateway(LOCAL) for _ in range(2)]
    everyone: list[dict[str, str]] = [{}, {"Accept": "x/y"}, {"X-Api-Key": "ada"}]
    for headers in everyone:
        await ask(nodes[0], headers=headers)
    await ask(nodes[0], "/a?b")
    got = await ask(nodes[1], method="PURGE")
    assert (got.status, json.loads(got.body)) == (200, {"purged": ["http://api.test/a"], "soft": False})
    assert [(await ask(nodes[1], headers=headers)).cache for headers in everyone] == ["MISS"] * 3
    assert (await ask(nodes[1], "/a?b")).cache == "HIT"
    assert "PURGE" not in {request.method for request in upstream.requests}


@pytest.mark.parametrize("field", ["Soft-Purge", "Fastly-Soft-Purge"])
async def test_softly(gateway: StartGateway, ask: Client, say: Say, field: str) -> None:
    say("/a")
    node = await gateway(LOCAL)
    await ask(node)
    assert json.loads((await ask(node, method="PURGE", headers={field: "1"})).body)["soft"] is True
    say("/a", status=500)
    assert (await ask(node)).cache == "STALE"
    assert (await ask(node, method="PURGE", headers={field: "0"})).status == 200
    assert (await ask(node)).status == 500


@pytest.mark.parametrize(("field", "value"), [("Surrogate-Key", "one three"), ("Cache-Tag", "one,three")])
async def test_tags_are_named_as_the_upstream_names_them(
    gateway: StartGateway, ask: Client, say: Say, field: str, value: str
) -> None:
    say("/a", Cache_Tag="one, two")
    say("/b", Cache_Tag="two")
    node = await gateway(LOCAL)
    for path in ("/a", "/b"):
        await ask(node, path)
    got = await ask(node, "/b", method="PURGE", headers={field: value})
    assert json.loads(got.body)["purged"] == ["tag one", "tag three"]
    assert [(await ask(node, path)).cache for path in ("/a", "/b")] == ["MISS", "HIT"]


async def test_from_elsewhere_it_is_refused(gateway: StartGateway, ask: Client, say: Say) -> None:
    say("/a")
    trusting = {"server": {"trusted_proxies": ["127.0.0.1"]}}
    node = await gateway({**trusting, "plugins": {"cache": {"purge_from": ["10.0.0.0/8"]}}})
    await ask(node)
    for client in ("192.0.2.1", "10.0.0.1, 192.0.2.1", "::1", "what"):
        got = await ask(node, method="PURGE", headers={"X-Forwarded-For": client})
        assert got.status == 403
        assert got.headers["Content-Type"] == "application/problem+json"
    assert (await ask(node)).cache == "HIT"
    assert (await ask(node, method="PURGE", headers={"X-Forwarded-For": "10.1.2.3"})).status == 200
    assert (await ask(node)).cache == "MISS"


async def test_where_nobody_may_it_is_the_upstreams_business(
    gateway: StartGateway, ask: Client, say: Say, upstream: UpstreamServer
) -> None:
    say("/a")
    node = await gateway({"plugins": {"cache": {}}})
    assert (await ask(node, method="PURGE")).body == b"/a 1"
    assert upstream.requests[-1].method == "PURGE"


async def test_too_many_tags(gateway: StartGateway, ask: Client) -> None:
    node = await gateway(LOCAL)
    got = await ask(node, method="PURGE", headers={"Surrogate-Key": " ".join(str(number) for number in range(1001))})
    assert (got.status, json.loads(got.body)["detail"]) == (400, "A PURGE names at most 1000 tags.")


async def test_without_redis_it_says_so(gateway: StartGateway, own_valkey: Valkey, ask: Client) -> None:
    node = await gateway({**LOCAL, "redis": {"url": own_valkey.url, "timeout": 0.2}})
    own_valkey.kill()
    got = await ask(node, method="PURGE")
    assert (got.status, got.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize(
    ("client", "allowed"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("fe80::1%eth0", True),
        ("11.0.0.1", False),
        ("", False),
        ("unix:", False),
    ],
)
def test_addresses(client: str, allowed: bool) -> None:
    nothing: Any = None
    method = PurgeMethod(["10.0.0.0/8", "fe80::/10"], fields=(), store=nothing, prefix="gateway")
    assert method.allows(client) is allowed


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an address or network"):
        CacheConfig(purge_from=("everywhere",))
