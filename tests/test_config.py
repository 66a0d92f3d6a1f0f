"""What a person who writes a configuration sees: every mistake at once, in words, and never a secret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator

from gateway.config import (
    ENVIRONMENT,
    Config,
    ConfigError,
    Match,
    Network,
    PluginTable,
    RouteTable,
    Server,
    Upstream,
    load,
    parse_size,
    parse_span,
    problems_of,
    redact,
)
from gateway.loader import built_in_classes
from gateway.plugin import PluginConfig

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "config.toml"
UPSTREAM = '[upstreams.default]\nurl = "http://127.0.0.1:9000"\n'


def read(folder: Path, text: str, environment: dict[str, str] | None = None, **overrides: Any) -> Config:
    path = folder / "config.toml"
    path.write_text(text)
    where = {tuple(key.split("__")): value for key, value in overrides.items()}
    return load(path, environment=environment or {}, overrides=where)


def errors(folder: Path, text: str, environment: dict[str, str] | None = None, **overrides: Any) -> dict[str, str]:
    """Each problem's text by its key."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text, environment, **overrides)
    return {problem.key: str(problem) for problem in caught.value.problems}


# -- every mistake at once -----------------------------------------------------------------------


def test_all_mistakes_are_told_at_once_each_with_key_expectation_finding_and_hint(tmp_path: Path) -> None:
    found = errors(
        tmp_path,
        """
        [server]
        listen = "8080"
        workers = "many"
        header_timeot = 2
        trusted_proxies = ["10.0.0.0/99", 3]
        [redis]
        timeout = "soon"
        [upstreams.default]
        url = "ftp://example.com"
        [[routes]]
        match.path = "users"
        """,
    )
    assert set(found) == {
        "server.listen",
        "server.workers",
        "server.header_timeot",
        "server.trusted_proxies[0]",
        "server.trusted_proxies[1]",
        "redis.timeout",
        "upstreams.default.url",
        "routes[0].match.path",
    }
    assert found["server.listen"].startswith("server.listen: expected HOST:PORT")
    assert "found '8080'" in found["server.listen"]
    assert "hint: Address and port to listen on." in found["server.listen"]
    assert "expected a whole number, found 'many'" in found["server.workers"]
    assert "expected a string, found 3" in found["server.trusted_proxies[1]"]
    assert "did you mean 'header_timeout'?" in found["server.header_timeot"]


def test_the_message_counts_and_lists_the_problems(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"config\.toml: 2 problems\n  server\.a: unknown key\n .*\n  server\.b: unkn"
    ):
        read(tmp_path, UPSTREAM + "[server]\na = 1\nb = 2\n")


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("sever = 1", "sever", "did you mean 'server'?"),
        ("[server]\nzzz = 1", "server.zzz", "known keys here: backlog, body_timeout"),
        ("[redis.mirror]\nmax_byte = 1", "redis.mirror.max_byte", "did you mean 'max_bytes'?"),
        ("[upstreams.url]\nurl = 'http://a'\nurll = 1", "upstreams.url.urll", "did you mean 'url'?"),
        ("[[routes]]\nmatch.pth = '/a'", "routes[0].match.pth", "did you mean 'path'?"),
    ],
)
def test_an_unknown_key_is_an_error_with_what_was_probably_meant(
    tmp_path: Path, text: str, key: str, expected: str
) -> None:
    text = text if "[upstreams" in text else text + "\n" + UPSTREAM
    found = errors(tmp_path, text)
    assert "unknown key" in found[key]
    assert expected in found[key]


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("server = 3", "server", "expected a table, found 3"),
        ("routes = 3", "routes", "expected a list, found 3"),
        ("upstreams = ['a']", "upstreams", "expected a table, found ['a']"),
        ("[server]\nworkers = 1.5", "server.workers", "expected a whole number, found 1.5"),
        ("[server]\nworkers = 0", "server.workers", "expected 1 or more, found 0"),
        ("[server]\nlisten = true", "server.listen", "expected a string, found true"),
        ("[server]\nlisten = '::1:80'", "server.listen", "brackets"),
        ("[server]\nlisten = 'a:70000'", "server.listen", "expected HOST:PORT"),
        ("[server]\nmax_body = '10 lb'", "server.max_body", 'such as 65536, "64 KiB" or "10 MiB", found \'10 lb\''),
        ("[server]\nmax_body = -1", "server.max_body", "expected 0 bytes or more, found -1"),
        ("[server]\nmax_body = true", "server.max_body", "expected a size such as 65536"),
        ("[server]\nbody_timeout = inf", "server.body_timeout", "finite number, found inf"),
        ("[admin]\nenabled = 'perhaps'", "admin.enabled", "expected true or false, found 'perhaps'"),
        ("[log]\nlevel = 'loud'", "log.level", "expected 'debug', 'info', 'warning' or 'error', found 'loud'"),
        ("[redis]\ntimeout = 0", "redis.timeout", "expected more than 0 s"),
        ("[redis]\ntimeout = true", "redis.timeout", 'expected a time such as 2.5, "250ms"'),
        ("[redis]\nurl = 'localhost:6379'", "redis.url", 'expected "embedded", "redis://host:6379/0"'),
        ("[redis]\nprefix = 'a b'", "redis.prefix", "expected text of the form ^[A-Za-z0-9_.:-]+$, found 'a b'"),
        ("[upstreams.default]\nhost = 3", "upstreams.default.host", "expected a string, found 3"),
        ("[upstreams.default]\nhost = 'a b'", "upstreams.default.host", 'expected "keep", "upstream" or a host name'),
        ("[upstreams.default]\nhost = 'a'", "upstreams.default.url", "missing, and it has no default"),
        ("[upstreams.default]\nurl = 'http://h/?q=1'", "upstreams.default.url", "no user, query or fragment"),
        ("[upstreams.default]\nurl = 'http://h:port'", "upstreams.default.url", "expected a URL such as"),
        ("[plugins.p]\nenabled = 7", "plugins.p.enabled", "expected true or false, found 7"),
        ("[plugins.p]\non_redis_failure = 'fail'", "plugins.p.on_redis_failure", "'pass', 'refuse' or 'local'"),
        ("[[routes]]\nmatch.methods = ['G T']", "routes[0].match.methods", "expected HTTP methods"),
        ("[[routes]]\nmatch.path = '/a*'", "routes[0].match.path", "whole segment"),
        ("[[routes]]\nmatch.path = '/{a'", "routes[0].match.path", "{name}"),
        ("[[routes]]\nmatch.path = '/a//b'", "routes[0].match.path", "empty segment"),
        ("[[routes]]\nmatch.path = '/a?b'", "routes[0].match.path", "no query"),
        ("[[routes]]\nmatch.host = 'a b'", "routes[0].match.host", "found 'a b'"),
    ],
)
def test_a_wrong_value_is_told_in_the_words_of_the_file(tmp_path: Path, line: str, key: str, expected: str) -> None:
    text = line if "upstreams" in line else line + "\n" + UPSTREAM
    assert expected in errors(tmp_path, text)[key]


def test_a_short_value_that_is_not_shown_does_not_garble_the_message() -> None:
    class Keys(PluginConfig):
        key: str

        @field_validator("key")
        @classmethod
        def check(cls, value: str) -> str:
            raise ValueError(f"expected an example, found {value!r}")

    with pytest.raises(ValidationError) as caught:
        Keys(key="x")
    (problem,) = problems_of(caught.value, Keys, {"key": "x"})
    assert problem.expected == "expected an example, found '***'"


def test_a_list_with_one_wrong_member_is_not_said_to_be_empty() -> None:
    class Keys(PluginConfig):
        who: tuple[Network, ...] = Field((), min_length=1)

    def told(data: dict[str, list[str]]) -> list[str]:
        with pytest.raises(ValidationError) as caught:
            Keys.model_validate(data)
        return [f"{problem.key}: {problem.expected}" for problem in problems_of(caught.value, Keys, data)]

    assert [line.partition(":")[0] for line in told({"who": ["nobody"]})] == ["who[0]"]
    assert told({"who": []}) == ["who: expected at least 1"]


def test_names_that_no_table_has(tmp_path: Path) -> None:
    found = errors(
        tmp_path,
        UPSTREAM
        + """
        [plugins.rate_limit]
        limits = ["1/s"]
        [[routes]]
        upstream = "defualt"
        plugins = ["rate_limits", "quite_different", "rate_limit", "rate_limit"]
        """,
    )
    assert "no such upstream, found 'defualt'" in found["routes[0].upstream"]
    assert "did you mean 'default'?" in found["routes[0].upstream"]
    assert "did you mean 'rate_limit'?" in found["routes[0].plugins[0]"]
    assert "there is no [plugins.quite_different] table; known: rate_limit" in found["routes[0].plugins[1]"]
    assert "stands before already" in found["routes[0].plugins[3]"]


def test_names_are_checked_even_where_something_else_is_wrong(tmp_path: Path) -> None:
    found = errors(tmp_path, UPSTREAM + "[server]\nworkers = 0\n[[routes]]\nplugins = ['gone']\n")
    assert set(found) == {"server.workers", "routes[0].plugins[0]"}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("match.path = '/{a}/b'", "match.path = '/{c}/b'", True),
        ("match.path = '/*/b'", "match.path = '/{c}/b'", True),
        ("match.methods = ['GET', 'PUT']", "match.methods = ['PUT']", True),
        ("match.host = 'A.example'", "match.host = 'a.example'", True),
        ("match.methods = ['GET']", "", False),
        ("match.path = '/a'", "match.path = '/a/*'", False),
        ("match.host = 'a.example'", "", False),
    ],
)
def test_a_route_that_could_never_be_reached_is_an_error(tmp_path: Path, first: str, second: str, same: bool) -> None:
    text = f"{UPSTREAM}[[routes]]\n{first}\n[[routes]]\n{second}\n"
    if same:
        assert "routes[0] matches the same requests already" in errors(tmp_path, text)["routes[1].match"]
    else:
        assert len(read(tmp_path, text).routes) == 2


def test_two_routes_of_one_name(tmp_path: Path) -> None:
    routes = "[[routes]]\nname = 'a'\nmatch.path = '/{0}'\n"
    found = errors(tmp_path, UPSTREAM + routes.replace("{0}", "x") + routes.replace("{0}", "y"))
    assert "routes[0] has this name already, found 'a'" in found["routes[1].name"]


# -- the file itself -----------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no such file\n.*--config"):
        load(tmp_path / "none.toml", environment={})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, environment={})


def test_a_file_that_is_not_toml_is_told_with_its_line(tmp_path: Path) -> None:
    assert "at line 2" in errors(tmp_path, "[server]\nlisten 3")["file"]
    (tmp_path / "config.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "config.toml", environment={})


def test_an_empty_file_says_what_is_needed(tmp_path: Path) -> None:
    found = errors(tmp_path, "")
    assert "no upstream is configured" in found["upstreams"]
    assert "--upstream URL" in found["upstreams"]


# -- the environment and the command line --------------------------------------------------------


def test_variables_are_put_into_every_string(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
        [server]
        workers = "${WORKERS}"
        listen = "${HOST:-127.0.0.1}:${PORT:-8000}"
        trusted_proxies = ["${PROXIES:-10.0.0.0/8}"]
        [upstreams.default]
        url = "http://${API}/v1"
        [plugins.headers]
        response.set = { X-Region = "${REGION:-}" }
        """,
        {"WORKERS": "3", "API": "api.internal", "PORT": "81"},
    )
    assert config.server.workers == 3
    assert config.server.listen == "127.0.0.1:81"
    assert config.server.trusted_proxies == ("10.0.0.0/8",)
    assert config.upstreams["default"].url == "http://api.internal/v1"
    assert config.plugins["headers"].model_extra == {"response": {"set": {"X-Region": ""}}}


def test_a_missing_variable_is_told_once_and_with_a_remedy(tmp_path: Path) -> None:
    found = errors(tmp_path, "[upstreams.default]\nurl = '${API_URL}'\n")
    assert list(found) == ["upstreams.default.url"]
    assert "the environment has no variable API_URL" in found["upstreams.default.url"]
    assert "${API_URL:-default}" in found["upstreams.default.url"]


def test_a_value_of_the_environment_is_shown_as_it_is_written(tmp_path: Path) -> None:
    found = errors(tmp_path, UPSTREAM + "[server]\nlisten = '${WHERE}'\n", {"WHERE": "s3cr3t"})
    assert "found the value of ${WHERE}" in found["server.listen"]
    assert "s3cr3t" not in found["server.listen"]


def test_the_environment_overrides_the_file_and_the_command_line_overrides_both(tmp_path: Path) -> None:
    text = UPSTREAM + "[server]\nworkers = 1\nlisten = '127.0.0.1:1'\n"
    environment = {
        "GATEWAY_WORKERS": "2",
        "GATEWAY_LISTEN": "127.0.0.1:2",
        "GATEWAY_REDIS_URL": "redis://there",
        "GATEWAY_UPSTREAM": "http://there",
        "GATEWAY_ADMIN_LISTEN": "127.0.0.1:3",
        "GATEWAY_STATE_DIR": "/var/lib/state",
    }
    config = read(tmp_path, text, environment, server__listen="127.0.0.1:4")
    assert (config.server.workers, config.server.listen) == (2, "127.0.0.1:4")
    assert (config.redis.url, config.redis.state_dir) == ("redis://there", "/var/lib/state")
    assert (config.upstreams["default"].url, config.admin.listen) == ("http://there", "127.0.0.1:3")
    assert set(environment) == set(ENVIRONMENT)


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    found = errors(tmp_path, UPSTREAM, {"GATEWAY_WORKERS": "many"})
    assert "expected a whole number, found the value of GATEWAY_WORKERS" in found["server.workers"]


def test_an_empty_variable_overrides_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, UPSTREAM, {"GATEWAY_WORKERS": ""}).server.workers == 1


def test_the_upstream_alone_is_enough() -> None:
    config = load(environment={"GATEWAY_UPSTREAM": "http://127.0.0.1:3000"})
    (route,) = config.routes
    assert config.upstreams[route.upstream].url == "http://127.0.0.1:3000"
    assert route.plugins == ("request_id", "rate_limit", "cache")


def test_the_only_upstream_takes_the_url_whatever_its_name(tmp_path: Path) -> None:
    text = "[upstreams.api]\nurl = 'http://a'\nhost = 'upstream'\n"
    config = read(tmp_path, text, upstreams__default__url="http://b")
    assert list(config.upstreams) == ["api"]
    assert (config.upstreams["api"].url, config.upstreams["api"].host) == ("http://b", "upstream")


def test_of_several_upstreams_none_of_which_is_the_default_none_is_chosen(tmp_path: Path) -> None:
    text = "[upstreams.a]\nurl = 'http://a'\n[upstreams.b]\nurl = 'http://b'\n"
    found = errors(tmp_path, text, upstreams__default__url="http://c")
    assert "--upstream is for the upstream called default" in found["upstreams"]
    assert "a, b" in found["upstreams"]


def test_an_override_of_a_table_that_is_none_is_told_as_such(tmp_path: Path) -> None:
    found = errors(tmp_path, "server = 3\n" + UPSTREAM, {"GATEWAY_WORKERS": "2"})
    assert "expected a table" in found["server"]


def test_without_routes_everything_goes_through_all_plugins(tmp_path: Path) -> None:
    config = read(tmp_path, UPSTREAM + "[plugins.b]\n[plugins.a]\n")
    assert [(route.match.path, route.plugins) for route in config.routes] == [("/*", ("b", "a"))]


# -- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[redis]\nurl = 'reds://:hunter2@h'",
        "[redis]\nurl = 'redis://:hun/ter2hunter2@h:x'",
        "[redis]\nurl = 'redis:/:hunter2@h'",
        "[redis]\nurl = ['redis://:hunter2@h']",
        "[redis]\nurl = 'foo://h?password=hunter2&db=1'",
        "redis = 'redis://:hunter2@h'",
        "[redis]\npassword = 'hunter2'",
        "[redis]\nurl = '${REDIS_URL}'",
        "[redis]\nprefix = 'a ${REDIS_URL}'",
        "[redis]\nbackoff_max = 'hunter2@h'",
        "[upstreams.default]\nurl = 'http://ada:hunter2@h'",
        "[upstreams.default]\nurl = 'http://ada:hunter2/x@h'",
        "[upstreams.default]\nurl = 'http://h'\nclient_secret = 'hunter2'",
    ],
)
def test_no_error_shows_a_password(tmp_path: Path, text: str) -> None:
    text = text if "[upstreams" in text else text + "\n" + UPSTREAM
    found = errors(tmp_path, text, {"REDIS_URL": "rediss//:hunter2@h"})
    assert found
    assert "hunter2" not in str(found)


class Keyring(BaseModel):
    signing_key: int = 0
    secrets: list[int] = Field(default_factory=list)
    pin: SecretStr = Field(SecretStr("0000"), max_length=4)
    salt: str = ""
    token: str = ""

    @field_validator("token")
    @classmethod
    def _quotes_its_value(cls, value: str) -> str:
        raise ValueError(f"{value!r} is not good enough")


@pytest.mark.parametrize(
    "data",
    [
        {"signing_key": "hunter2"},
        {"secrets": ["hunter2"]},
        {"secrets": "hunter2"},
        {"pin": "hunter2"},
        {"salt": ["a@hunter2@b"]},
        {"token": "hunter2"},
    ],
)
def test_no_error_shows_a_plugins_secret(data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Keyring.model_validate(data)
    (problem,) = problems_of(caught.value, Keyring, data, ("plugins", "keyring"))
    assert problem.key.startswith(f"plugins.keyring.{next(iter(data))}")
    assert "hunter2" not in str(problem)


def test_the_name_of_a_table_hides_nothing() -> None:
    """`token_blacklist` and `session_secret` are names; what stands in the tables may be told."""
    data = {"salt": 5}
    with pytest.raises(ValidationError) as caught:
        Keyring.model_validate(data)
    (problem,) = problems_of(caught.value, Keyring, data, ("plugins", "token_blacklist"))
    assert "found 5" in str(problem)


def test_the_branches_of_a_union_are_one_problem() -> None:
    class Either(BaseModel):
        by: int | list[int] = 0

    with pytest.raises(ValidationError) as caught:
        Either.model_validate({"by": "x"})
    (problem,) = problems_of(caught.value, Either, {"by": "x"})
    assert str(problem) == "by: expected a whole number or a list, found 'x'"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:pw@localhost", "redis://***@localhost"),
        ("rediss://user:p@w@localhost:1/2", "rediss://***@localhost:1/2"),
        ("unix:///run/redis.sock?db=1&password=pw&x=2", "unix:///run/redis.sock?db=1&password=***&x=2"),
        ("embedded", "embedded"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert redact(url) == shown


@given(st.text(st.characters(exclude_characters="@", exclude_categories=["Cs"]), min_size=1), st.booleans())
def test_no_password_survives_redaction(secret: str, malformed: bool) -> None:
    marked = f"<{secret}>"
    scheme = "redis:/" if malformed else "redis://"
    assert marked not in redact(f"{scheme}user:{marked}@host:6379/0")


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("64 KiB", 65536), ("1.5MB", 1_500_000), (" 2GiB ", 2 << 30), (7, 7)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("2.5", 2.5), ("30 s", 30), ("10m", 600), ("24h", 86400), (3, 3)]
)
def test_times(text: str | float, seconds: float) -> None:
    assert parse_span(text) == seconds


# -- the shipped file ----------------------------------------------------------------------------


def models() -> list[tuple[str, type[BaseModel]]]:
    """Every model that a table is read into, with the table's pattern in the file."""
    core = [("server", Server), ("upstreams.default", Upstream), ("routes", RouteTable), ("match", Match)]
    core += [(name, type(getattr(Config(), name))) for name in ("redis", "admin", "log")]
    core += [("redis.mirror", type(Config().redis.mirror)), ("plugins", PluginTable)]
    return core + [(f"plugins.{name}", plugin.Config) for name, plugin in built_in_classes().items()]


@pytest.mark.parametrize(("table", "model"), models(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_key_stands_in_the_shipped_file(table: str, model: type[BaseModel]) -> None:
    """A key that nobody can find is not there."""
    text = SHIPPED.read_text()
    if table in ("routes", "match", "plugins"):
        section = text  # their keys are told in comments above the tables
    else:
        section = re.split(r"^\[", text.split(f"\n[{table}]", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) and table != "plugins":
            assert re.search(rf"^(# +)?(\[{table}\.)?{key}[\].]", text, re.MULTILINE), f"{table}.{key}"
        else:
            assert re.search(rf"^(# +)?(match\.)?{key} *= .*\S", section, re.MULTILINE), f"{table}.{key}"


def test_the_shipped_file_has_the_defaults() -> None:
    config = load(SHIPPED, environment={})
    assert (config.server, config.redis, config.admin, config.log) == (
        (Config().server, Config().redis, Config().admin, Config().log)
    )
    default = Upstream(url=config.upstreams["default"].url)
    assert config.upstreams["default"] == default


def test_a_plugins_keys_in_the_shipped_file_are_its_defaults_or_say_so() -> None:
    text = SHIPPED.read_text()
    config = load(SHIPPED, environment={})
    for name, plugin in built_in_classes().items():
        keys = config.plugins[name].model_extra or {}
        own = plugin.Config.model_validate(keys)
        for key in keys:
            field = plugin.Config.model_fields[key]
            if getattr(own, key) != field.get_default(call_default_factory=True, validated_data={}):
                section = text.split(f"\n[plugins.{name}]", 1)[1]
                line = next(line for line in section.splitlines() if line.startswith(key))
                assert "efault:" in line or "No default" in line, f"{name}.{key}"


def test_every_key_has_a_description() -> None:
    for table, model in models():
        for key, field in model.model_fields.items():
            nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            assert field.description or nested, f"{table}.{key}"
