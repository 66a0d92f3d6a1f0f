"""Plugins' tables: what an author or a person who writes a configuration got wrong is told before anything starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import aiohttp
import pytest
from redis.asyncio import Redis

import plugins
from gateway.cli import main
from gateway.config import Config, ConfigError
from gateway.loader import built_in_classes, built_in_names, built_in_parts, find, load_all, load_plugins
from gateway.plugin import Plugin
from tests.conftest import StartGateway
from tests.harness import eventually

UPSTREAM = '[upstreams.default]\nurl = "http://127.0.0.1:9000"\n'
PLUGIN = "from gateway.plugin import Plugin, PluginConfig\n\nclass Own(Plugin):\n"


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    """A test's own modules and search path do not reach the next one."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if "pytest-of" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(folder: Path, config: str, **modules: str) -> Path:
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(dedent(text))
    path = folder / "config.toml"
    path.write_text(UPSTREAM + dedent(config))
    return path


def errors(path: Path) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load_all(path, environment={})
    assert caught.value.source == str(path)
    return {problem.key: str(problem) for problem in caught.value.problems}


def own(folder: Path, body: str, table: str = "") -> dict[str, str]:
    """The errors of a configuration with a plugin class of this body."""
    text = PLUGIN + "".join(f"    {line}\n" for line in body.splitlines())
    return errors(write(folder, f'[plugins.own]\nuse = "mine:Own"\n{table}\n', mine=text))


# -- what is told --------------------------------------------------------------------------------


def test_errors_of_the_core_and_of_all_plugins_come_together(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [server]
        workers = 0
        [plugins.rate_limit]
        limts = ["1/s"]
        [plugins.request_id]
        trust = "perhaps"
        [plugins.sesion]
        [plugins.mine]
        use = "nowhere:Own"
        [[routes]]
        plugins = ["session"]
        """,
    )
    found = errors(path)
    assert set(found) == {
        "server.workers",
        "plugins.rate_limit.limts",
        "plugins.rate_limit.limits",
        "plugins.request_id.trust",
        "plugins.sesion",
        "plugins.mine.use",
        "routes[0].plugins[0]",
    }
    assert "did you mean 'limits'?" in found["plugins.rate_limit.limts"]
    assert "missing, and it has no default" in found["plugins.rate_limit.limits"]
    assert "expected true or false, found 'perhaps'" in found["plugins.request_id.trust"]
    assert "did you mean 'session'?" in found["plugins.sesion"]


def test_a_disabled_plugin_is_checked_too_and_is_in_no_chain(tmp_path: Path) -> None:
    off = "[plugins.headers]\nenabled = false\n"
    _, plugins = load_all(write(tmp_path, off), environment={})
    assert plugins == {}
    assert "plugins.headers.zzz" in errors(write(tmp_path, off + "zzz = 1\n"))


def test_a_missing_variable_of_a_plugin_is_told_once(tmp_path: Path) -> None:
    found = errors(write(tmp_path, "[plugins.request_id]\nheader = '${NAME}'\n"))
    assert list(found) == ["plugins.request_id.header"]
    assert "the environment has no variable NAME" in found["plugins.request_id.header"]


def test_no_error_of_a_plugin_shows_a_secret(tmp_path: Path) -> None:
    path = write(
        tmp_path, "[plugins.token_blacklist]\nsecret = 5\nalgorithms = ['hunter2@x']\npublic_key = ['hunter2']\n"
    )
    found = errors(path)
    assert {"plugins.token_blacklist.secret", "plugins.token_blacklist.public_key"} <= set(found)
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ("rate_limits", "no built-in plugin 'rate_limits'; did you mean 'rate_limit'?"),
        ("zzz", "built in: "),
        (":Own", 'is not "module:Class"'),
        ("nowhere:Own", "no module 'nowhere' in "),
        ("mine:Onw", "module 'mine' has no class 'Onw'; did you mean 'Own'?"),
        ("mine:Other", "is not a subclass of gateway.plugin.Plugin"),
        ("needy:Own", "importing 'needy' failed: No module named 'not_installed'"),
        ("broken:Own", "importing 'broken' failed: ZeroDivisionError"),
        ("wrong:Own", "importing 'wrong' failed: SyntaxError"),
    ],
)
def test_a_plugin_that_cannot_be_had(tmp_path: Path, use: str, expected: str) -> None:
    path = write(
        tmp_path,
        f"[plugins.own]\nuse = '{use}'\n",
        mine=PLUGIN + "    pass\n\nOther = 3\n",
        needy="import not_installed",
        broken="1 / 0",
        wrong="def",
    )
    assert expected in errors(path)["plugins.own.use"]


@pytest.mark.parametrize(
    ("body", "expected", "found"),
    [
        ("async def ask(self, request, redis): ...", "def ask(self, request, redis)", "async def ask("),
        ("def ask(self, request): ...", "def ask(self, request, redis)", "def ask(self, request)"),
        (
            "def __call__(self, request, call_next): ...",
            "async def __call__(self, request, call_next)",
            "def __call__(",
        ),
        ("async def __call__(self, request): ...", "async def __call__(self, request, call_next)", "(self, request)"),
        ("async def start(self): ...", "async def start(self, worker)", "async def start(self)"),
        ("def stop(self): ...", "async def stop(self)", "def stop(self)"),
    ],
)
def test_a_method_of_the_wrong_shape_is_told_with_the_right_one(
    tmp_path: Path, body: str, expected: str, found: str
) -> None:
    told = own(tmp_path, body)["plugins.own"]
    assert f"expected `{expected}`" in told
    assert found in told.split("found", 1)[1]


def test_names_and_annotations_of_arguments_are_the_authors_own(tmp_path: Path) -> None:
    text = PLUGIN + "    async def __call__(self, req: object, following=None) -> object:\n        ...\n"
    _, plugins = load_all(write(tmp_path, "[plugins.own]\nuse = 'mine:Own'\n", mine=text), environment={})
    assert repr(plugins["own"]) == "<Own own>"


@pytest.mark.parametrize(
    ("body", "table", "key", "expected"),
    [
        ("Config = dict", "", "plugins.own", "Own.Config must be a subclass of gateway.plugin.PluginConfig"),
        ("", "on_redis_failure = 'local'", "plugins.own.on_redis_failure", "'pass' or 'refuse', found 'local'"),
        ("def __init__(self, config, name): 1 / 0", "", "plugins.own", "could not be made: ZeroDivisionError"),
        ("class Config(PluginConfig):\n    size: int = 1", "size = 'x'", "plugins.own.size", "expected a whole number"),
    ],
)
def test_a_class_or_table_that_would_fail_later(tmp_path: Path, body: str, table: str, key: str, expected: str) -> None:
    assert expected in own(tmp_path, body or "pass", table)[key]


# -- what is loaded ------------------------------------------------------------------------------


def test_each_table_is_a_plugin_of_its_own_with_its_own_choice_for_a_redis_that_is_down() -> None:
    config = Config.model_validate(
        {
            "plugins": {
                "session": {"on_redis_failure": "pass"},
                "member": {"use": "session", "required": False},
            }
        }
    )
    plugins = load_plugins(config, Path.cwd())
    assert type(plugins["session"]) is type(plugins["member"])
    assert (plugins["session"].on_redis_failure, plugins["member"].on_redis_failure) == ("pass", "refuse")
    assert (plugins["session"].config.required, plugins["member"].config.required) == (True, False)


def test_every_built_in_module_has_one_plugin() -> None:
    classes = built_in_classes()
    assert list(classes) == built_in_names()
    assert {"rate_limit", "session", "token_blacklist", "request_id", "headers"} <= set(classes)
    assert all(issubclass(plugin, Plugin) for plugin in classes.values())


def test_a_worker_does_without_what_is_for_operators() -> None:
    """Commands, admin routes and what prints them would take 3 MiB of each worker."""
    program = """
        import sys
        import gateway.worker_main
        from gateway.loader import built_in_classes
        built_in_classes()
        print(*sys.modules)
    """
    shown = subprocess.run([sys.executable, "-c", dedent(program)], capture_output=True, check=True, text=True).stdout
    imported = set(shown.split())
    assert {"plugins.cache.plugin", "plugins.session.plugin", "plugins.token_blacklist.plugin"} <= imported
    assert imported.isdisjoint({"typer", "rich", "gateway.console", "gateway.admin.context", "plugins.cache.commands"})


def test_operators_get_what_plugins_have_for_them() -> None:
    assert {"cache", "session", "token_blacklist"} <= set(built_in_parts("commands"))
    assert list(built_in_parts("admin")) == ["cache"]


@pytest.mark.parametrize("part", ["commands", "admin"])
def test_a_built_in_plugin_without_what_operators_look_for_is_named(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "__init__.py").write_text(PLUGIN + "    pass\n")
    (tmp_path / "odd" / f"{part}.py").write_text("app = None\n")
    monkeypatch.setattr(plugins, "__path__", [*plugins.__path__, str(tmp_path)])
    with pytest.raises(LookupError, match=rf"plugins\.odd\.{part} has no `{part}`"):
        built_in_parts(part)
    if part == "commands":
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert ended.value.code == 1
        assert capsys.readouterr().err.startswith("gateway: plugins.odd.commands has no `commands`: see ")


def test_two_configurations_may_have_modules_of_one_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(PLUGIN + f"    place = {name!r}\n")
    assert [find("mine:Own", tmp_path / name).place for name in ("one", "two", "one")] == ["one", "two", "one"]  # type: ignore[attr-defined]


def test_a_plugin_may_be_a_package_and_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "deep.py").write_text("from neighbour import BASE\n\nclass Own(BASE):\n    pass\n")
    (tmp_path / "neighbour.py").write_text("from gateway.plugin import Plugin as BASE\n")
    assert issubclass(find("mine.deep:Own", tmp_path), Plugin)


# -- the README -------------------------------------------------------------------------


def readme_blocks(language: str, heading: str = "## A plugin of your own") -> list[str]:
    """The code in one section of the README."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    section = text.split(heading, 1)[1].split("\n## ", 1)[0]
    return [block.split("```", 1)[0] for block in section.split(f"```{language}\n")[1:]]


def test_the_readmes_configuration_is_right(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(readme_blocks("toml", "## Setting it up")[0])
    config, plugins = load_all(tmp_path / "config.toml", environment={})
    assert [route.match.path for route in config.routes] == ["/public/*", "/*"]
    assert set(plugins) == {"rate_limit", "session", "cache"}


async def test_the_readmes_plugin_works_as_it_stands(
    tmp_path: Path, gateway: StartGateway, http: aiohttp.ClientSession
) -> None:
    code, (table,) = readme_blocks("python")[0], readme_blocks("toml")
    assert len(code.splitlines()) <= 15
    config, _ = load_all(write(tmp_path, table, my_plugin=code), environment={})
    tables = {name: plugin.model_dump(exclude_none=True) for name, plugin in config.plugins.items()}
    node = await gateway({"plugins": tables}, tmp_path)
    async with http.get(f"{node.url}/x") as response:
        assert response.status == 200
        assert response.headers["X-Hello"] == "world"


async def test_the_readmes_plugin_with_redis_works_as_it_stands(
    tmp_path: Path, gateway: StartGateway, http: aiohttp.ClientSession, redis_client: Redis
) -> None:
    (tmp_path / "my_plugin.py").write_text(readme_blocks("python")[1])
    node = await gateway({"plugins": {"closed": {"use": "my_plugin:Maintenance"}}}, tmp_path)

    async def status() -> int:
        async with http.get(f"{node.url}/x") as response:
            return response.status

    async def closed() -> bool:
        return await status() == 503

    assert await status() == 200
    await redis_client.set("maintenance", "1")
    await eventually(closed)
