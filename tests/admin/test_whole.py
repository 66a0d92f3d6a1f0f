"""`gateway run` as a whole: a plugin's routes on its admin listener, with the configuration's token."""

from __future__ import annotations

import re
from pathlib import Path

import aiohttp
import pytest

from tests.harness import UpstreamServer, free_port
from tests.plugins.cache.console import command
from tests.test_cli import running

CONFIG = """
[redis]
url = "{redis}"
[server]
listen = "127.0.0.1:{port}"
[admin]
listen = "127.0.0.1:{admin}"
token = "${{ADMIN_TOKEN}}"
[upstreams.default]
url = "{upstream}"
[plugins.cache]
ttl = 60
"""


async def test_warm_look_and_purge(
    tmp_path: Path,
    redis_url: str,
    upstream: UpstreamServer,
    http: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tmp_path / "config.toml"
    port, admin = free_port(), free_port()
    config.write_text(CONFIG.format(redis=redis_url, upstream=upstream.url, port=port, admin=admin))
    monkeypatch.setenv("ADMIN_TOKEN", "letmein")
    url = f"http://127.0.0.1:{port}/a?b"
    (tmp_path / "urls").write_text(url)
    async with running(tmp_path, "run", ADMIN_TOKEN="letmein") as node:
        assert re.search(r"admin +http://127\.0\.0\.1:\d+/_gateway/health", node.banner)
        assert "letmein" not in node.banner
        assert (await command(config, "warm", "--file", str(tmp_path / "urls"), "--json")).json()["stored"] == 1
        assert (await command(config, "explain", url)).out.startswith("HIT")
        (route,) = (await command(config, "stats", "--json")).json()["routes"]
        assert (route["route"], route["miss"], route["hit"]) == ("all", 1, 0)
        base = f"http://127.0.0.1:{admin}/_gateway"
        async with http.post(f"{base}/cache/purge", json={"urls": [url]}) as answer:
            assert answer.status == 401
        given = {"Authorization": "Bearer letmein"}
        async with http.post(f"{base}/cache/purge", json={"urls": [url]}, headers=given) as answer:
            assert (answer.status, await answer.json()) == (200, {"purged": [url], "soft": False})
        async with http.get(url) as answer:
            assert answer.headers["X-Cache"] == "MISS"
        async with http.get(f"{base}/cache/stats", headers=given) as answer:
            assert [route["miss"] for route in (await answer.json())["routes"]] == [2]
