"""The embedded server: a real process, its data, its lock and its deaths."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio

from gateway.store.embedded import Embedded, EmbeddedError, command, running_url, socket_path, state_folder, url_of
from tests.harness import eventually


@contextlib.asynccontextmanager
async def running(state_dir: Path) -> AsyncIterator[tuple[Embedded, redis.asyncio.Redis]]:
    server = Embedded(str(state_dir))
    client = redis.asyncio.Redis.from_url(await server.start())
    try:
        yield server, client
    finally:
        await client.aclose()
        await server.stop()


async def test_data_outlives_a_restart_and_a_kill(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, client):
        await client.set("kept", "1")
    async with running(tmp_path) as (server, client):
        assert await client.get("kept") == b"1"
        await client.set("also", "2")
        # appendfsync everysec: what the process has written survives its death, if not the machine's.
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await eventually(lambda: server.restarts == 1 and running_url(str(tmp_path)))
        assert await client.mget("kept", "also") == [b"1", b"2"]


async def test_only_its_user_can_reach_it(tmp_path: Path) -> None:
    async with running(tmp_path / "new" / "dir") as (server, client):
        assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((server.folder / "valkey.sock").stat().st_mode) == 0o700
        config = await client.config_get("port", "appendonly", "maxmemory", "maxmemory-policy")
        assert config == {
            "port": "0",
            "appendonly": "yes",
            "maxmemory": str(256 << 20),
            "maxmemory-policy": "allkeys-lfu",
        }


async def test_a_directory_in_use_is_an_error_that_says_whose_and_what_to_do(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, client):
        with pytest.raises(EmbeddedError) as caught:
            await Embedded(str(tmp_path)).start()
        text = str(caught.value)
        assert f"pid {os.getpid()}" in text
        assert f"--redis unix://{tmp_path}/valkey/valkey.sock" in text
        assert "redis.state_dir" in text
        assert await client.ping()  # and the other's server was left alone


async def test_the_url_that_the_command_line_finds(tmp_path: Path) -> None:
    assert running_url(str(tmp_path)) is None
    async with running(tmp_path) as (_, client):
        url = running_url(str(tmp_path))
        assert url is not None
        other = redis.asyncio.Redis.from_url(url)
        await other.set("from", "outside")
        await other.aclose()
        assert await client.get("from") == b"outside"
    assert running_url(str(tmp_path)) is None


async def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y y%" * 10)
    async with running(deep) as (server, client):
        await client.set("kept", "1")
        there = socket_path(server.folder)
        assert len(str(there)) < 100
        assert stat.S_IMODE(there.parent.stat().st_mode) == 0o700
        assert running_url(str(deep)) == url_of(there)
    assert not there.parent.exists()
    async with running(deep) as (_, client):
        assert await client.get("kept") == b"1"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(EmbeddedError, match=r"closed.*GATEWAY_STATE_DIR"):
        await Embedded(str(tmp_path / "closed")).start()


async def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match=r"file/valkey.*GATEWAY_STATE_DIR"):
        await Embedded(str(tmp_path / "file")).start()


async def test_broken_data_is_an_error_in_the_servers_words(tmp_path: Path) -> None:
    async with running(tmp_path) as (server, client):
        await client.set("kept", "1")
    (manifest,) = (server.folder / "appendonlydir").glob("*.manifest")
    manifest.write_text("garbage\n")
    with pytest.raises(EmbeddedError, match=r"ended at once.*manifest.*its data is in"):
        await Embedded(str(tmp_path)).start()
    manifest.unlink()
    async with running(tmp_path):  # the failed start has left no lock behind
        pass


GATEWAY = """
import asyncio, sys
from gateway.store.embedded import Embedded
async def main():
    server = Embedded(sys.argv[1])
    await server.start()
    print(server.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_killed_gateway_takes_its_server_along_or_the_next_one_does(tmp_path: Path) -> None:
    gateway = subprocess.Popen([sys.executable, "-c", GATEWAY, str(tmp_path)], stdout=subprocess.PIPE)
    assert gateway.stdout is not None
    pid = int(await asyncio.to_thread(gateway.stdout.readline))
    gateway.kill()
    gateway.wait()
    gateway.stdout.close()
    async with running(tmp_path) as (server, client):
        assert server.pid != pid
        assert (await client.info("server"))["process_id"] == server.pid
    if sys.platform == "linux":
        assert not alive(pid)


async def test_a_server_left_behind_is_shut_down_and_its_data_taken_over(tmp_path: Path) -> None:
    """What happens where the kernel does not end children: here a server that nobody owns."""
    async with running(tmp_path) as (server, _):
        words = server._command()
    orphan = subprocess.Popen(words[words.index(str(server._binary)) :], stdout=subprocess.DEVNULL)
    path = socket_path(state_folder(str(tmp_path)))
    await eventually(lambda: path.exists() and command(path, "PING") == b"+PONG\r\n")
    command(path, "SET", "kept", "1")
    async with running(tmp_path) as (_, client):
        assert await client.get("kept") == b"1"
    assert orphan.wait(5) == 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert state_folder() == Path("/home/me/.local/state/gateway/valkey")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_folder() == Path("/home/me/.local/state/gateway/valkey")
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert state_folder() == Path("/var/state/gateway/valkey")
    assert state_folder("~/data") == Path("/home/me/data/valkey")
