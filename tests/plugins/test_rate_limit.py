"""Rate limits as clients, operators and Redis see them."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio
from aiohttp import web
from redis.crc import key_slot

from gateway.config import Config, ConfigError
from gateway.loader import load_plugins
from plugins.rate_limit.limits import parse_limit
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, Valkey, eventually

TRUSTED = {"trusted_proxies": ["127.0.0.1"]}


def limited(*limits: str, **keys: Any) -> dict[str, Any]:
    return {"server": TRUSTED, "plugins": {"api": {"use": "rate_limit", "limits": list(limits), **keys}}}


async def status(http: aiohttp.ClientSession, node: Gateway, path: str = "/", **headers: str) -> int:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.get(node.url + path, headers=names) as response:
        return response.status


# -- what a client sees --------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sliding_window", "token_bucket"])
async def test_answers_tell_the_client_where_it_stands(
    gateway: StartGateway, http: aiohttp.ClientSession, algorithm: str
) -> None:
    node = await gateway(limited("3/hour", algorithm=algorithm))
    remaining = []
    for _ in range(3):
        async with http.get(node.url) as response:
            assert response.status == 200
            assert response.headers["X-RateLimit-Limit"] == "3"
            remaining.append(response.headers["X-RateLimit-Remaining"])
            assert "Retry-After" not in response.headers
    assert remaining == ["2", "1", "0"]
    async with http.get(node.url) as response:
        assert response.status == 429
        assert response.content_type == "application/problem+json"
        assert response.headers["X-RateLimit-Remaining"] == "0"
        most = 3600 if algorithm == "sliding_window" else 1200
        assert most - 5 <= int(response.headers["Retry-After"]) <= most
        assert response.headers["X-RateLimit-Reset"] == response.headers["Retry-After"]
        document = await response.json()
        assert document["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
        assert document["status"] == 429
        assert document["violated-policies"] == ["3/hour"]


async def test_refused_requests_do_not_reach_the_upstream(
    gateway: StartGateway, http: aiohttp.ClientSession, upstream: UpstreamServer
) -> None:
    node = await gateway(limited("2/hour"))
    assert [await status(http, node) for _ in range(5)] == [200, 200, 429, 429, 429]
    assert len(upstream.requests) == 2


async def test_a_client_that_waits_as_told_passes(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway(limited("2/second"))
    clock = asyncio.get_running_loop().time
    await asyncio.gather(status(http, node), status(http, node))
    async with http.get(node.url) as response:
        assert response.status == 429
        told = clock() + int(response.headers["Retry-After"])

    async def passes() -> bool:
        return await status(http, node) == 200

    await eventually(passes, within=1.5)
    assert clock() <= told + 0.2


async def test_several_limits_are_one_decision(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway(limited("5/hour", "2/minute"))
    for remaining in ("1", "0"):
        async with http.get(node.url) as response:
            assert (response.status, response.headers["X-RateLimit-Limit"]) == (200, "2")
            assert response.headers["X-RateLimit-Remaining"] == remaining
            assert int(response.headers["X-RateLimit-Reset"]) <= 60
    for _ in range(5):
        async with http.get(node.url) as response:
            assert response.status == 429
            assert (await response.json())["violated-policies"] == ["2/minute"]
    # What the minute's limit refused was not counted for the hour.
    redis_client = redis.asyncio.Redis.from_url(node.worker.config.redis.url)
    assert await redis_client.llen("gateway:rate:{api|127.0.0.1}:3600000") == 2
    await redis_client.aclose()


async def test_a_token_bucket_holds_its_burst(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway(limited("1/hour", algorithm="token_bucket", burst=4))
    async with http.get(node.url) as response:
        assert response.headers["X-RateLimit-Limit"] == "4"
        assert response.headers["X-RateLimit-Remaining"] == "3"
    assert [await status(http, node) for _ in range(4)] == [200, 200, 200, 429]


async def test_headers_can_be_left_out(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway(limited("1/hour", headers=False))
    for expected in (200, 429):
        async with http.get(node.url) as response:
            assert response.status == expected
            assert not [name for name in response.headers if name.lower().startswith("x-ratelimit")]
    assert response.headers["Retry-After"]


async def test_the_upstreams_own_fields_are_replaced(
    gateway: StartGateway, http: aiohttp.ClientSession, upstream: UpstreamServer
) -> None:
    upstream.answer("/", lambda request: web.Response(headers={"x-ratelimit-remaining": "999", "X-Other": "kept"}))
    node = await gateway(limited("7/hour"))
    async with http.get(node.url) as response:
        assert response.headers.getall("X-RateLimit-Remaining") == ["6"]
        assert response.headers["X-Other"] == "kept"


@pytest.mark.parametrize("order", [["wide", "narrow"], ["narrow", "wide"]])
async def test_of_two_rate_limits_the_tightest_tells(
    gateway: StartGateway, http: aiohttp.ClientSession, order: list[str]
) -> None:
    tables = {
        "wide": {"use": "rate_limit", "limits": ["100/minute"]},
        "narrow": {"use": "rate_limit", "limits": ["2/hour"]},
    }
    node = await gateway({"plugins": {name: tables[name] for name in order}})
    seen = []
    for _ in range(3):
        async with http.get(node.url) as response:
            seen.append((response.status, *(response.headers[f"X-RateLimit-{n}"] for n in ("Limit", "Remaining"))))
    assert seen == [(200, "2", "1"), (200, "2", "0"), (429, "2", "0")]


# -- all nodes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sliding_window", "token_bucket"])
async def test_two_nodes_let_exactly_the_limit_pass(
    gateway: StartGateway, http: aiohttp.ClientSession, algorithm: str
) -> None:
    nodes = [await gateway(limited("100/day", algorithm=algorithm)) for _ in range(2)]
    answers = await asyncio.gather(*(status(http, nodes[number % 2]) for number in range(300)))
    assert Counter(answers) == {200: 100, 429: 200}


async def test_a_decision_is_one_question(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway(limited("100/minute", "1000/hour", "5000/day", by=["ip", "route"]))
    before = node.worker.redis.asked
    for _ in range(10):
        assert await status(http, node) == 200
    assert node.worker.redis.asked - before == 10


async def test_a_forgotten_script_is_loaded_again(
    gateway: StartGateway, http: aiohttp.ClientSession, redis_client: redis.asyncio.Redis
) -> None:
    node = await gateway(limited("2/hour"))
    assert await status(http, node) == 200
    await redis_client.script_flush()
    assert [await status(http, node) for _ in range(2)] == [200, 429]


# -- who is counted -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("1.2.3.4", "1.2.3.4", True),
        ("1.2.3.4", "1.2.3.5", False),
        ("1.2.3.4", "::ffff:1.2.3.4", True),
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8::1", "2001:DB8:0:0:1::", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
async def test_by_ip(gateway: StartGateway, http: aiohttp.ClientSession, first: str, second: str, same: bool) -> None:
    node = await gateway(limited("1/hour"))
    assert await status(http, node, X_Forwarded_For=first) == 200
    assert await status(http, node, X_Forwarded_For=second) == (429 if same else 200)


async def test_ipv6_networks_can_be_larger(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway(limited("1/hour", ipv6_prefix=48))
    assert await status(http, node, X_Forwarded_For="2001:db8:0:1::1") == 200
    assert await status(http, node, X_Forwarded_For="2001:db8:0:2::1") == 429
    assert await status(http, node, X_Forwarded_For="2001:db8:1::1") == 200


def two_routes(by: Any) -> dict[str, Any]:
    return {
        **limited("1/hour", by=by),
        "routes": [
            {"match": {"path": "/users/{id}"}, "plugins": ["api"]},
            {"match": {"path": "/*"}, "plugins": ["api"]},
        ],
    }


async def test_by_route_counts_all_clients_of_it(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway(two_routes("route"))
    assert await status(http, node, "/users/1", X_Forwarded_For="1.1.1.1") == 200
    assert await status(http, node, "/users/2", X_Forwarded_For="2.2.2.2") == 429
    assert await status(http, node, "/", X_Forwarded_For="1.1.1.1") == 200


async def test_by_ip_and_route(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway(two_routes(["ip", "route"]))
    assert await status(http, node, "/users/1", X_Forwarded_For="1.1.1.1") == 200
    assert await status(http, node, "/users/1", X_Forwarded_For="1.1.1.1") == 429
    assert await status(http, node, "/users/1", X_Forwarded_For="2.2.2.2") == 200
    assert await status(http, node, "/", X_Forwarded_For="1.1.1.1") == 200


async def test_by_header_or_else_by_ip(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway(limited("1/hour", by="header:X-Api-Key"))
    assert await status(http, node, X_Api_Key="a") == 200
    assert await status(http, node, x_api_key="a") == 429
    assert await status(http, node, X_Api_Key="b") == 200
    assert await status(http, node) == 200
    assert await status(http, node, X_Api_Key="") == 429
    assert await status(http, node, X_Forwarded_For="9.9.9.9") == 200


async def test_by_token_or_else_by_ip(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway(limited("1/hour", by="token"))
    assert await status(http, node, Authorization="Bearer one") == 200
    assert await status(http, node, Authorization="bearer one") == 429
    assert await status(http, node, Authorization="Bearer two") == 200
    assert await status(http, node, Authorization="Basic one") == 200
    assert await status(http, node) == 429


KNOWN_AT_ONCE = """
from gateway.plugin import Plugin
class Who(Plugin):
    def ask(self, request, redis):
        request.user = request.headers.get("X-Test-User")
"""
KNOWN_LATER = """
from gateway.plugin import Plugin
class Who(Plugin):
    def ask(self, request, redis):
        request.identity_pending = True
        return redis.ask("GET", "nothing")
    async def __call__(self, request, call_next):
        await request.answers[self]
        request.identity_pending = False
        request.user = request.headers.get("X-Test-User")
        return await call_next(request)
"""


@pytest.mark.parametrize("known", ["at_once", "later"])
async def test_by_user_or_else_by_ip(
    gateway: StartGateway, http: aiohttp.ClientSession, tmp_path: Path, known: str
) -> None:
    module = f"rate_limit_who_{known}"
    (tmp_path / f"{module}.py").write_text(KNOWN_AT_ONCE if known == "at_once" else KNOWN_LATER)
    config = limited("1/hour", by="user")
    config["plugins"] = {"who": {"use": f"{module}:Who"}, **config["plugins"]}
    node = await gateway(config, folder=tmp_path)
    assert await status(http, node, X_Test_User="ann") == 200
    assert await status(http, node, X_Test_User="ann", X_Forwarded_For="9.9.9.9") == 429
    assert await status(http, node, X_Test_User="bob") == 200
    assert await status(http, node) == 200
    assert await status(http, node, X_Test_User="127.0.0.1") == 200, "a user called like an address is not that client"
    assert await status(http, node) == 429


# -- Redis --------------------------------------------------------------------------------------------


async def test_keys_have_one_slot_an_end_and_no_secret(
    gateway: StartGateway, http: aiohttp.ClientSession, redis_client: redis.asyncio.Redis
) -> None:
    config = limited("100/minute", "1000/hour", by=["ip", "route", "token", "header:X-Key"])
    config["routes"] = [{"name": "r}{|\n" + "é" * 300, "plugins": ["api"]}]
    node = await gateway(config)
    headers = {"X_Key": "hunter2" * 100, "X_Forwarded_For": "2001:db8::1"}
    assert await status(http, node, Authorization="Bearer s3cret", **headers) == 200
    keys = [key.decode() async for key in redis_client.scan_iter("*:rate:*")]
    assert len(keys) == 2
    shape = r"gateway:rate:\{api\|2001:db8::/64\|route:#[0-9a-f]{32}\|token:[0-9a-f]{32}\|x-key:[0-9a-f]{32}\}:"
    assert all(re.fullmatch(shape + r"(60000|3600000)", key) for key in keys), keys
    assert len({key_slot(key.encode()) for key in keys}) == 1
    for key in keys:
        assert 0 < await redis_client.pttl(key) <= int(key.rpartition(":")[2]) + 1000


async def test_the_keys_begin_with_the_prefix(
    gateway: StartGateway, http: aiohttp.ClientSession, redis_client: redis.asyncio.Redis
) -> None:
    node = await gateway({**limited("1/minute"), "redis": {"prefix": "shop"}})
    await status(http, node)
    assert await redis_client.keys("*:rate:*") == [b"shop:rate:{api|127.0.0.1}:60000"]


@pytest.mark.parametrize("algorithm", ["sliding_window", "token_bucket"])
async def test_garbage_in_redis_is_no_error(
    gateway: StartGateway, http: aiohttp.ClientSession, redis_client: redis.asyncio.Redis, algorithm: str
) -> None:
    node = await gateway(limited("2/hour", algorithm=algorithm))
    key = "gateway:rate:{api|127.0.0.1}:3600000" + (":bucket" if algorithm == "token_bucket" else "")
    await redis_client.hset(key, "garbage", "here")
    assert [await status(http, node) for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize("algorithm", ["sliding_window", "token_bucket"])
async def test_without_redis_this_process_counts(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, algorithm: str
) -> None:
    node = await gateway({**limited("3/hour", algorithm=algorithm), "redis": {"url": own_valkey.url}})
    assert await status(http, node) == 200
    own_valkey.kill()
    await eventually(lambda: not node.worker.redis.up)
    seen = []
    for _ in range(5):
        async with http.get(node.url) as response:
            seen.append((response.status, response.headers["X-RateLimit-Remaining"]))
    assert seen == [(200, "2"), (200, "1"), (200, "0"), (429, "0"), (429, "0")]
    assert response.headers["Retry-After"] in {"3600", "1200"}
    own_valkey.start()
    await eventually(lambda: node.worker.redis.up)
    assert await status(http, node) == 429, "Redis is told of what passed without it"


@pytest.mark.parametrize(("choice", "expected"), [("pass", 200), ("refuse", 503)])
async def test_without_redis_the_table_may_say_otherwise(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, choice: str, expected: int
) -> None:
    config = {**limited("1/hour", on_redis_failure=choice), "redis": {"url": own_valkey.url}}
    node = await gateway(config)
    own_valkey.kill()
    await eventually(lambda: not node.worker.redis.up)
    assert [await status(http, node) for _ in range(3)] == [expected] * 3


# -- the table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count", "seconds"),
    [
        ("100/minute", 100, 60),
        ("1/second", 1, 1),
        ("5/10s", 5, 10),
        ("5 per 10 seconds", 5, 10),
        ("1000 per hour", 1000, 3600),
        ("7 / 2 days", 7, 172800),
        ("3/m", 3, 60),
        ("20 Per 5 Min", 20, 300),
    ],
)
def test_limits_as_people_write_them(text: str, count: int, seconds: int) -> None:
    limit = parse_limit(text)
    assert (limit.count, limit.period) == (count, seconds * 1_000_000)
    assert str(limit) == text


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({}, "plugins.api.limits", "missing"),
        ({"limits": []}, "plugins.api.limits", "at least 1"),
        ({"limits": ["100"]}, "plugins.api.limits[0]", '"100/minute"'),
        ({"limits": ["1/minute", "ten/hour"]}, "plugins.api.limits[1]", "expected a limit such as"),
        ({"limits": ["-1/minute"]}, "plugins.api.limits[0]", "expected a limit such as"),
        ({"limits": ["5perhour"]}, "plugins.api.limits[0]", "expected a limit such as"),
        ({"limits": ["0/minute"]}, "plugins.api.limits[0]", "at least 1 request"),
        ({"limits": ["5/0s"]}, "plugins.api.limits[0]", "between 1 second and 31 days"),
        ({"limits": ["5/32 days"]}, "plugins.api.limits[0]", "between 1 second and 31 days"),
        ({"limits": [100]}, "plugins.api.limits[0]", "expected a limit such as"),
        ({"limits": ["1/minute", "2/60s"]}, "plugins.api", "different periods"),
        ({"limits": ["1000000/day"]}, "plugins.api", "token_bucket"),
        ({"limits": ["1/minute"], "burst": 5}, "plugins.api", "token_bucket"),
        ({"limits": ["1/s", "2/m"], "burst": 5, "algorithm": "token_bucket"}, "plugins.api", "single limit"),
        ({"limits": ["1/day"], "burst": 10**9, "algorithm": "token_bucket"}, "plugins.api", "smaller burst"),
        ({"limits": ["1/minute"], "by": "cookie"}, "plugins.api.by", '"header:NAME"'),
        ({"limits": ["1/minute"], "by": []}, "plugins.api.by", '"header:NAME"'),
        ({"limits": ["1/minute"], "by": ["ip", "ip"]}, "plugins.api.by", "once"),
        ({"limits": ["1/minute"], "by": "header:X Y"}, "plugins.api.by", '"header:NAME"'),
        ({"limits": ["1/minute"], "algorithm": "leaky"}, "plugins.api.algorithm", "sliding_window"),
        ({"limits": ["1/minute"], "ipv6_prefix": 0}, "plugins.api.ipv6_prefix", "1"),
        ({"limit": ["1/minute"]}, "plugins.api.limit", "did you mean 'limits'"),
    ],
)
def test_a_wrong_table_is_explained(keys: dict[str, Any], key: str, words: str) -> None:
    config = Config.model_validate({"plugins": {"api": {"use": "rate_limit", **keys}}})
    with pytest.raises(ConfigError) as caught:
        load_plugins(config, Path.cwd())
    assert any(problem.key == key and words in str(problem) for problem in caught.value.problems), str(caught.value)
