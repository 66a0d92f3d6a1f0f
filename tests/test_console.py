from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import typer

from gateway.config import Seconds
from gateway.console import open_console, read_secret, settings
from gateway.plugin import Plugin, PluginConfig
from plugins.session import Session
from plugins.token_blacklist import TokenBlacklist
from tests.harness import free_port, running_valkey


class Demanding(Plugin):
    class Config(PluginConfig):
        pause: Seconds


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration but the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "config", None)
    monkeypatch.setattr(settings, "redis", None)
    for name in ("GATEWAY_REDIS_URL", "GATEWAY_UPSTREAM"):
        monkeypatch.delenv(name, raising=False)


def refused(capsys: pytest.CaptureFixture[str], code: int, config: Path | None = None) -> str:
    """What standard error says about a console that cannot be opened."""
    with pytest.raises(typer.Exit) as caught, open_console(config):
        pytest.fail("there is no such Redis")
    assert caught.value.exit_code == code
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize("way", ["option", "environment", "file"])
async def test_finds_redis(redis_url, redis_client, monkeypatch, tmp_path, way):
    if way == "option":
        monkeypatch.setattr(settings, "redis", redis_url)
        monkeypatch.setenv("GATEWAY_REDIS_URL", "redis://127.0.0.1:1")
    elif way == "environment":
        monkeypatch.setenv("GATEWAY_REDIS_URL", redis_url)
    else:
        (tmp_path / "config.toml").write_text(f'[redis]\nurl = "{redis_url}"\nprefix = "shop"\n')
    await redis_client.set("k", "v")
    with open_console() as console:
        assert console.redis.get("k") == b"v"
        assert console.prefix == ("shop" if way == "file" else "gateway")


def test_has_the_plugins_of_the_configuration(redis_url, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(settings, "redis", redis_url)
    path = tmp_path / "other.toml"
    path.write_text(
        """
        [plugins.session]
        ttl = "1h"
        [plugins.partners]
        use = "session"
        ttl = "2h"
        enabled = false
        [plugins.token_blacklist]
        key = "nonsense"
        [plugins.broken]
        use = "no_such_module:Plugin"
        """
    )
    monkeypatch.setattr(settings, "config", path)
    with open_console() as console:
        assert [plugin.config.ttl for plugin in console.plugins(Session)] == [3600, 7200]
        with pytest.raises(typer.Exit) as caught:
            console.plugins(TokenBlacklist)
        assert caught.value.exit_code == 2
        error = capsys.readouterr().err
        assert "other.toml: 1 problem" in error
        assert "plugins.token_blacklist.key" in error


def test_makes_a_plugin_up_where_the_configuration_has_none(redis_url, monkeypatch, capsys):
    monkeypatch.setattr(settings, "redis", redis_url)
    with open_console() as console:
        assert [plugin.config.required for plugin in console.plugins(Session)] == [True]
        with pytest.raises(typer.Exit):
            console.plugins(Demanding)
    assert "has no Demanding" in capsys.readouterr().err


def test_redis_is_away(monkeypatch, capsys):
    port = free_port()
    monkeypatch.setattr(settings, "redis", f"redis://user:letmein@127.0.0.1:{port}/0?password=letmein")
    error = refused(capsys, 1)
    assert error.count("\n") == 1
    assert f"127.0.0.1:{port}" in error
    assert "refused" in error
    assert "letmein" not in error


def test_a_url_that_redis_py_cannot_use(monkeypatch, capsys):
    monkeypatch.setenv("GATEWAY_REDIS_URL", "redis://:letmein@127.0.0.1?db=letmein")
    error = refused(capsys, 2)
    assert "db in the URL: expected a number" in error
    assert "letmein" not in error


def test_a_wrong_password_is_told_and_not_shown(monkeypatch, capsys):
    with running_valkey("--requirepass", "right") as server:
        monkeypatch.setattr(settings, "redis", f"redis://:letmein@127.0.0.1:{server.port}/0")
        error = refused(capsys, 1)
    assert "password" in error
    assert "letmein" not in error
    assert error.count("\n") == 1


def test_the_embedded_server_is_not_running(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("GATEWAY_STATE_DIR", str(tmp_path / "state"))
    error = refused(capsys, 1)
    assert error == "gateway: the embedded server is not running; start the gateway first or give --redis URL\n"


def test_a_wrong_configuration(monkeypatch, capsys, tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text("[redis]\nprefx = 1\n")
    error = refused(capsys, 2, path)
    assert "redis.prefx: unknown key" in error
    assert "upstream" not in error, "a command needs none"
    assert "no such file" in refused(capsys, 2, tmp_path / "missing.toml")


async def test_what_redis_refuses_ends_the_command(redis_url, redis_client, monkeypatch, capsys):
    monkeypatch.setattr(settings, "redis", redis_url)
    await redis_client.set("k", "v")
    with pytest.raises(typer.Exit) as caught, open_console() as console:
        console.redis.lpush("k", "v")
    assert caught.value.exit_code == 1
    assert "WRONGTYPE" in capsys.readouterr().err


def test_prints_what_comes_from_redis_as_it_is(redis_url, monkeypatch, capsys):
    monkeypatch.setattr(settings, "redis", redis_url)
    with open_console() as console:
        console.print("[red]:smile: [/nonsense]")
    assert capsys.readouterr().out == "[red]:smile: [/nonsense]\n"


def test_a_secret_may_come_from_standard_input(monkeypatch: Any):
    monkeypatch.setattr("sys.stdin", io.StringIO(" secret \nmore"))
    assert read_secret("-") == "secret"
    assert read_secret("given") == "given"
