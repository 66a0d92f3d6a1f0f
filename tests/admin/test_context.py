"""What plugins' admin routes and commands get to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.app import Admin
from gateway.admin.context import plugins_of, requests_at, requests_in, requests_of, trial
from gateway.config import Config, ConfigError
from gateway.listen import Listeners
from gateway.observe.metrics import Metrics
from gateway.plugin import Plugin, Request
from plugins.cache import Cache
from plugins.session import Session
from tests.admin.test_app import Place, Process, Supervised
from tests.conftest import StartGateway
from tests.harness import free_port, raw_exchange

SEEN = ("method", "host", "path", "query", "target", "scheme", "raw_headers", "version", "params")


class Recorder(Plugin):
    """Remembers the last request."""

    last: Request | None = None

    def check(self, request: Request, reply: Any) -> None:
        Recorder.last = request


TABLES: dict[str, Any] = {
    "plugins": {"recorder": {"use": f"{__name__}:Recorder"}},
    "routes": [
        {"name": "users", "match": {"path": "/users/{id}"}, "plugins": ["recorder"]},
        {"name": "all", "plugins": ["recorder"]},
    ],
    "server": {"trusted_proxies": ["127.0.0.0/8"]},
}


FIELDS = [[], [("Cookie", "a=b")], [("X-Forwarded-Proto", "https"), ("X-A", "1"), ("x-a", "")]]


@pytest.mark.parametrize("target", ["/", "/users/a%2Fb?x=1&x", "//a/../b?", "/users/ada?", "/%61"])
@pytest.mark.parametrize("fields", FIELDS)
async def test_a_request_is_what_a_worker_makes_of_it(
    gateway: StartGateway, target: str, fields: list[tuple[str, str]]
) -> None:
    node = await gateway(TABLES)
    fields = [*fields, ("Connection", "close")]
    lines = [f"{name}: {value}" for name, value in [("Host", "Api.Test:80"), *fields]]
    await raw_exchange(node.port, "\r\n".join([f"GET {target} HTTP/1.1", *lines, "", ""]).encode())
    real = Recorder.last
    assert real is not None
    made = trial(node.worker.config, "GET", f"http://Api.Test:80{target}", fields)
    assert [getattr(made, name) for name in SEEN] == [getattr(real, name) for name in SEEN]
    assert made.route.name == real.route.name


@given(st.text(max_size=40), st.lists(st.tuples(st.text(max_size=10), st.text(max_size=10)), max_size=3))
async def test_whatever_is_given_is_a_request_or_a_value_error(target: str, fields: list[tuple[str, str]]) -> None:
    config = Config.model_validate({"upstreams": {"default": {"url": "http://h"}}, "routes": [{"name": "all"}]})
    try:
        request = trial(config, "GET", f"http://api.test/{target}", fields)
    except ValueError:
        return
    assert request.target.isascii()
    assert len(request.raw_headers) == 1 + len(fields)


def test_plugins_are_found_enabled_or_not_and_what_is_wrong_is_told() -> None:
    tables = {"cache": {"ttl": 5, "enabled": False}, "more": {"use": "cache"}, "session": {"ttl": "never"}}
    config = Config.model_validate({"plugins": tables})
    found = [(plugin.name, plugin.config.ttl) for plugin in plugins_of(config, Path(), Cache)]
    assert found == [("cache", 5), ("more", 0)]
    with pytest.raises(ConfigError, match=r"plugins\.session\.ttl"):
        plugins_of(config, Path(), Session)
    assert [plugin.name for plugin in plugins_of(Config.model_validate({}), Path(), Cache)] == ["cache"]


def counted() -> Metrics:
    metrics = Metrics()
    for route, outcome, status, count in (("a", "hit", "200", 3), ("a", "hit", "404", 1), ("b", "miss", "200", 2)):
        labels = {"route": route, "status": status, "outcome": outcome, "method": "GET"}
        metrics.counter("gateway_requests_total", "Requests.", **labels).value += count
    return metrics


EXPECTED = {"a": {"hit": 4}, "b": {"miss": 2}}


def test_requests_are_added_up_by_route_and_outcome() -> None:
    assert requests_in(counted().snapshot()) == EXPECTED
    assert requests_in({}) == requests_of([]) == {}


@pytest.mark.parametrize("token", ["", "a token"])
async def test_commands_get_them_from_the_listener(token: str) -> None:
    listeners = Listeners("127.0.0.1:0", key="admin.listen")
    table = {"listen": f"127.0.0.1:{listeners.port}", "token": token}
    config = Config.model_validate({"admin": table})
    process = Process(1, snapshot={"metrics": counted().snapshot()})
    admin = Admin(Supervised([Place(0, process)], config=config))
    await admin.start(listeners)
    try:
        assert await requests_at(config.admin) == EXPECTED
        wrong = Config.model_validate({"admin": table | {"token": "another"}})
        assert await requests_at(wrong.admin) == (None if token else EXPECTED)
    finally:
        await admin.stop()
    nobody = Config.model_validate({"admin": {"listen": f"127.0.0.1:{free_port()}"}})
    assert await requests_at(nobody.admin) is None
