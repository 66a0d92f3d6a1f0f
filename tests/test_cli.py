"""The command line, as a person uses it: in a process of its own, in a folder of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from gateway.cli import main
from gateway.console import settings
from gateway.loader import built_in_names
from tests.harness import UpstreamServer

ROOT = Path(__file__).parents[1]
ANYWHERE = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")


def environment(**more: str) -> dict[str, str]:
    """Ours without the gateway's variables, so that a person's own settings do not decide tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def in_a_process(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=30,
    )


@dataclass
class Done:
    """What a command has come to."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs a command in this process, in a folder of its own: for those that end by themselves."""
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **variables: str) -> Done:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, error = capsys.readouterr()
        return Done(int(caught.value.code or 0), out, error)

    yield run
    settings.config = settings.redis = None


class Running:
    """A gateway in a process of its own, after it has told where it listens."""

    def __init__(self, process: asyncio.subprocess.Process, banner: str) -> None:
        self.process = process
        self.banner = banner
        found = re.search(r"listens on (http://\S+)", banner)
        assert found, banner
        self.url = found[1]

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 15)


@asynccontextmanager
async def running(folder: Path, *arguments: str, **variables: str) -> AsyncIterator[Running]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments),
        cwd=folder,
        env=environment(**variables),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            banner = ""
            while "Ctrl-C" not in banner:
                line = await process.stderr.readline()
                assert line, f"it ended with {await process.wait()}: {banner}"
                banner += line.decode()
        reading = asyncio.create_task(process.stderr.read())
        yield Running(process, banner)
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), 15)
    await reading


# -- check ---------------------------------------------------------------------------------------


def test_check_shows_routes_and_chains(gateway: Command, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        """
        [redis]
        url = "redis://:hunter2@cache.internal:6379/0"
        [upstreams.default]
        url = "http://api.internal"
        [plugins.request_id]
        [plugins.headers]
        enabled = false
        [plugins.unused]
        use = "headers"
        [[routes]]
        name = "reads"
        match.host = "api.example.com"
        match.methods = ["GET", "HEAD"]
        match.path = "/users/{id}"
        plugins = ["request_id", "headers"]
        """
    )
    done = gateway("check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "config.toml: no problems" in done.stdout
    assert "http://api.internal (default)" in done.stdout
    assert "redis://***@cache.internal:6379/0" in done.stdout
    assert "GET,HEAD api.example.com/users/{id}" in done.stdout
    assert "request_id → (headers is off) → default" in done.stdout
    assert "no route uses plugins.unused" in done.stdout


def test_check_tells_all_mistakes_and_no_secret(gateway: Command, tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text(
        """
        [server]
        wrkers = 1
        [redis]
        url = "foo://:hunter2@h"
        [upstreams.default]
        url = "http://a"
        [plugins.token_blacklist]
        secret = 5
        [plugins.rate_limit]
        limits = []
        [[routes]]
        plugins = ["rate_limt"]
        """
    )
    done = gateway("check", "--config", "other.toml")
    assert done.returncode == 2
    assert done.stdout == ""
    for key in (
        "server.wrkers",
        "redis.url",
        "plugins.token_blacklist.secret",
        "plugins.rate_limit.limits",
        "routes[0].plugins[0]",
    ):
        assert f"  {key}: " in done.stderr
    assert "did you mean 'workers'?" in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_check_of_the_shipped_configuration() -> None:
    done = in_a_process(ROOT, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "note:" not in done.stdout


def test_a_configuration_that_is_not_there(gateway: Command) -> None:
    done = gateway("run", "--config", "none.toml")
    assert done.returncode == 2
    assert "none.toml" in done.stderr
    assert "there is no such file" in done.stderr


def test_without_anything_it_says_what_is_needed(gateway: Command) -> None:
    done = gateway("run")
    assert done.returncode == 2
    assert "--upstream URL" in done.stderr


@pytest.mark.parametrize("arguments", [("run", "--workers", "many"), ("rum",), ("run", "--lisen", "x")])
def test_a_wrong_command_line(gateway: Command, arguments: tuple[str, ...]) -> None:
    done = gateway(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_wrong_option_is_told_like_a_wrong_key(gateway: Command) -> None:
    done = gateway("run", "--upstream", "localhost:3000", "--listen", "8080")
    assert done.returncode == 2
    assert "upstreams.default.url: expected a URL" in done.stderr
    assert "server.listen: expected HOST:PORT" in done.stderr


# -- schema --------------------------------------------------------------------------------------


def test_the_schema_knows_the_core_and_every_plugin(gateway: Command) -> None:
    done = gateway("schema")
    assert done.returncode == 0
    schema = json.loads(done.stdout)
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {"server", "redis", "admin", "log", "upstreams", "plugins", "routes"}
    plugins = schema["properties"]["plugins"]
    assert set(plugins["properties"]) == set(built_in_names())
    for name in built_in_names():
        table = schema["$defs"][f"plugin_{name}"]
        assert {"use", "enabled", "on_redis_failure"} <= set(table["properties"])
        assert table["additionalProperties"] is False
    assert {"limits", "by"} <= set(schema["$defs"]["plugin_rate_limit"]["properties"])
    assert schema["$defs"]["plugin_rate_limit"]["required"] == ["limits"]
    for place in re.findall(r'"#/\$defs/([^"]+)"', done.stdout):
        assert place in schema["$defs"]


# -- the plugins' own commands -------------------------------------------------------------------


def test_the_plugins_commands_use_the_redis_that_is_named(gateway: Command, redis_url: str) -> None:
    done = gateway("--redis", redis_url, "token", "revoke", "--ttl", "1h", "opaque-token")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Revoked" in done.stdout
    done = gateway("token", "status", "opaque-token", GATEWAY_REDIS_URL=redis_url)
    assert done.returncode == 0
    assert "revoked" in done.stdout.lower()


def test_help_lists_the_commands_of_core_and_plugins(gateway: Command) -> None:
    done = gateway("--help")
    assert done.returncode == 0
    for command in ("run", "check", "schema", "demo", "session", "token"):
        assert re.search(rf"^\W*{command}\s", done.stdout, re.MULTILINE), command


# -- run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_with_the_upstream_alone(
    tmp_path: Path,
    redis_url: str,
    upstream: UpstreamServer,
    http: aiohttp.ClientSession,
    number: signal.Signals,
) -> None:
    async with running(tmp_path, "run", "--upstream", upstream.url, "--redis", redis_url, *ANYWHERE) as node:
        assert f"{upstream.url} (default)" in node.banner
        assert redis_url in node.banner
        assert "request_id → rate_limit → cache → default" in node.banner
        async with http.get(f"{node.url}/x?y=1") as response:
            assert response.status == 200
            assert response.headers["X-Request-Id"]
        assert upstream.requests[-1].target == "/x?y=1"
        assert await node.end(number) == 0


async def test_of_a_file_the_upstream_option_changes_the_url_only(
    tmp_path: Path, redis_url: str, upstream: UpstreamServer, http: aiohttp.ClientSession
) -> None:
    (tmp_path / "config.toml").write_text(
        """
        [upstreams.default]
        url = "http://127.0.0.1:1"
        host = "api.example.com"
        [plugins.headers]
        response.set = { X-From = "file" }
        """
    )
    arguments = ("run", "--upstream", upstream.url, "--workers", "2", *ANYWHERE)
    async with running(tmp_path, *arguments, GATEWAY_REDIS_URL=redis_url) as node:
        assert "2 workers" in node.banner
        async with http.get(f"{node.url}/x") as response:
            assert response.headers["X-From"] == "file"
    assert upstream.requests[-1].headers["Host"] == "api.example.com"


async def test_a_file_in_the_folder_can_be_left_aside(tmp_path: Path, redis_url: str, upstream: UpstreamServer) -> None:
    """What `make run UPSTREAM=...` does: the demo's routes are nothing for somebody else's API."""
    (tmp_path / "config.toml").write_text("this is not even TOML")
    arguments = ("run", "--no-config", "--upstream", upstream.url, "--redis", redis_url, *ANYWHERE)
    async with running(tmp_path, *arguments) as node:
        assert "request_id → rate_limit → cache → default" in node.banner


def test_a_busy_port_is_one_message_and_no_traceback(tmp_path: Path, redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ("run", "--upstream", "http://127.0.0.1:1", "--redis", redis_url, "--admin", "127.0.0.1:0")
        done = in_a_process(tmp_path, *arguments, "--listen", address)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "in use" in done.stderr
    assert "--listen" in done.stderr


def test_an_embedded_server_that_cannot_be_had_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a directory should be")
    done = in_a_process(
        tmp_path, "run", "--upstream", "http://127.0.0.1:1", *ANYWHERE, GATEWAY_STATE_DIR=str(tmp_path / "state")
    )
    assert done.returncode == 1
    assert "redis.state_dir" in done.stderr
    assert "Traceback" not in done.stderr
