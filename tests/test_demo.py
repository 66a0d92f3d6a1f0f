"""The demo: what it prints works by copy and paste."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

import aiohttp
import jwt
import pytest
from redis.asyncio import Redis

from gateway import demo
from gateway.cli import gateway_command
from gateway.config import load
from tests.test_cli import ANYWHERE, ROOT, environment, running

needs_curl = pytest.mark.skipif(not (shutil.which("bash") and shutil.which("curl")), reason="needs bash and curl")


def lines_in(banner: str) -> list[str]:
    """The commands: each stands below its comment."""
    lines = banner.splitlines()
    return [lines[number + 1] for number, line in enumerate(lines) if line.startswith("# ")]


async def bash(script: str, folder: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        script,
        cwd=folder,
        env=environment(TMPDIR=str(folder)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await asyncio.wait_for(process.communicate(), 30)
    assert error == b"", error.decode()
    return out.decode()


@needs_curl
async def test_each_of_the_five_lines_shows_what_it_says(tmp_path: Path, redis_url: str) -> None:
    async with running(tmp_path, "demo", "--redis", redis_url, *ANYWHERE) as node:
        commands = lines_in(node.banner)
        assert len(commands) == 5
        out = await bash("\necho ----\n".join(commands), tmp_path)
    cached, limited, session, revoked, headers = out.split("----\n")
    assert cached.split() == ["X-Cache:", "MISS", "X-Cache:", "HIT"]
    assert limited.split() == ["200"] * 5 + ["429"] * 2
    assert json.loads(session) == {"user": "ada"}
    said, answer = revoked.strip().splitlines()
    assert said.startswith("Revoked until")
    assert json.loads(answer)["status"] == 401
    for name in ("X-Request-Id: ", "X-Content-Type-Options: nosniff", "X-RateLimit-Remaining: ", "Via: "):
        assert name in headers


async def test_with_an_upstream_of_ones_own_the_demos_api_stays_away(tmp_path: Path, redis_url: str) -> None:
    async with running(tmp_path, "demo", "--upstream", "http://127.0.0.1:1", "--redis", redis_url, *ANYWHERE) as node:
        assert "http://127.0.0.1:1 (default)" in node.banner
        assert lines_in(node.banner) == []


async def test_the_api_by_itself(redis_url: str, redis_client: Redis, http: aiohttp.ClientSession) -> None:
    listening, url = demo.bind()
    async with demo.serve(listening, lambda: redis_url, "gateway"):
        async with http.get(f"{url}/products/2") as response:
            assert (await response.json())["name"] == "Kettle"
            assert response.headers["Cache-Control"] == "public, max-age=60"
            assert response.headers["Cache-Tag"] == "products product-2"
        for path, status in (("/products", 200), ("/products/9", 404), ("/search?q=tea", 200), ("/me", 401)):
            async with http.get(url + path) as response:
                assert response.status == status, path
        async with http.get(f"{url}/me", headers={"X-User-Id": "ada"}) as response:
            assert await response.json() == {"user": "ada"}
        async with http.post(f"{url}/login", data={"user": "ada"}) as response:
            claims = jwt.decode(await response.text(), options={"verify_signature": False})
            assert claims["sub"] == "ada"
            assert {"jti", "exp"} <= set(claims)
            assert response.cookies["session"]["httponly"]
        assert len([key async for key in redis_client.scan_iter("gateway:session:*")]) == 1
        for user in ("", "x" * 65, "a\nb"):
            async with http.post(f"{url}/login", data={"user": user}) as response:
                assert response.status == 400


async def test_a_login_without_redis_says_so(http: aiohttp.ClientSession) -> None:
    for redis_url in (None, "redis://127.0.0.1:1/0"):
        listening, url = demo.bind()
        async with (
            demo.serve(listening, lambda found=redis_url: found, "gateway"),
            http.post(f"{url}/login", data={"user": "ada"}) as response,
        ):
            assert response.status == 503
            assert "try again" in await response.text()


@pytest.mark.parametrize(
    ("redis", "expected"),
    [
        ("redis://localhost:6379/0", "{} --redis redis://localhost:6379/0"),
        ("redis://:hunter2@localhost", '{} --redis "$GATEWAY_REDIS_URL"'),
        ("embedded", "GATEWAY_STATE_DIR='/var/my state' {}"),
    ],
)
def test_the_printed_command_finds_the_same_redis_and_tells_no_password(
    monkeypatch: pytest.MonkeyPatch, redis: str, expected: str
) -> None:
    overrides = {("redis", "url"): redis, ("redis", "state_dir"): "/var/my state"}
    config = load(ROOT / "config.toml", environment={}, overrides=overrides)
    monkeypatch.setattr(sys, "argv", ["/opt/my gateway/bin/gateway"])
    assert gateway_command(config) == expected.replace("{}", "'/opt/my gateway/bin/gateway'")
