"""The configuration: a TOML file, the environment and the command line, read into validated models.

Every error names the key's path, what was expected, what was found, and what to do; all errors come at once.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

FILE_NAME: Final = "config.toml"


# -- values that people write ------------------------------------------------------------------

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|KiB|MiB|GiB)?")
_SIZE_UNITS: Final = {
    None: 1,
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_SPAN_UNITS: Final = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(value: Any) -> Any:
    """`"10 MiB"` or a number of bytes, as bytes."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError('expected a size such as 65536, "64 KiB" or "10 MiB"')
        return int(float(match[1]) * _SIZE_UNITS[match[2]])
    return value


def parse_span(value: Any) -> Any:
    """`"250ms"`, `"5s"`, `"10m"`, `"24h"` or a number of seconds, as seconds."""
    if isinstance(value, str):
        match = _SPAN.fullmatch(value.strip())
        if match is None:
            raise ValueError('expected a time such as 2.5, "250ms", "30s", "10m" or "24h"')
        return float(match[1]) * _SPAN_UNITS[match[2]]
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Seconds = Annotated[float, BeforeValidator(parse_span), Field(ge=0, allow_inf_nan=False)]


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError('expected HOST:PORT, such as "127.0.0.1:8080", "[::1]:8080" or ":8080" for all addresses')
    if host.count(":") and not (host.startswith("[") and host.endswith("]")):
        raise ValueError('an IPv6 address stands in brackets, such as "[::1]:8080"')
    return value


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError('expected a URL such as "http://127.0.0.1:9000"')
    if parts.query or parts.fragment or parts.username:
        raise ValueError("an upstream's URL has no user, query or fragment")
    _ = parts.port  # raises ValueError for a port out of range
    return value


def _network(value: str) -> str:
    ipaddress.ip_network(value, strict=False)
    return value


REDIS_SCHEMES: Final = ("redis", "rediss", "unix")


def _redis_url(value: str) -> str:
    if value != "embedded" and urlsplit(value).scheme not in REDIS_SCHEMES:
        raise ValueError('expected "embedded", "redis://host:6379/0", "rediss://..." (TLS) or "unix:///path/to/socket"')
    return value


Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_network)]


class Table(BaseModel):
    """A TOML table: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(Table):
    """How clients reach the gateway."""

    listen: Address = Field("127.0.0.1:8080", description="Address and port to listen on.")
    workers: int = Field(1, ge=1, le=256, description="Worker processes; one per core is usual.")
    backlog: int = Field(2048, ge=1, description="Connections the kernel may queue before they are accepted.")
    trusted_proxies: tuple[Network, ...] = Field(
        (), description="Networks of proxies in front whose X-Forwarded-For, -Proto and -Host are believed."
    )
    keepalive_timeout: Seconds = Field(75.0, description="An idle connection is closed after this time.")
    header_timeout: Seconds = Field(10.0, description="A request's line and headers must arrive within this time.")
    body_timeout: Seconds = Field(30.0, description="Longest pause between two pieces of a request's body.")
    send_timeout: Seconds = Field(60.0, description="Longest time a client may refuse to take what is sent to it.")
    drain_timeout: Seconds = Field(30.0, description="At the end, requests in flight get this time to finish.")
    max_request_line: Size = Field(8190, description="Longest request target; beyond it 414.")
    max_header: Size = Field(8190, description="Longest single header line; beyond it 431.")
    max_headers: int = Field(100, ge=1, description="Most header lines of a request; beyond it 431.")
    max_body: Size = Field(100 << 20, description="Longest request body; beyond it 413.")
    max_connections: int = Field(20_000, ge=1, description="Most client connections of a worker; more are closed.")


class MirrorTable(Table):
    """The copy of Redis in each worker's memory, which Redis itself keeps true."""

    max_bytes: Size = Field(64 << 20, description="Bound of the copy in each worker; 0 turns it off.")


class RedisTable(Table):
    """The shared store."""

    url: Annotated[str, AfterValidator(_redis_url)] = Field(
        "embedded", description='"embedded" (a Valkey server started here), redis://, rediss:// or unix://.'
    )
    prefix: str = Field("gateway", pattern=r"^[A-Za-z0-9_.:-]+$", description="What the names of all keys begin with.")
    state_dir: str = Field("", description='Where the embedded server keeps its data; empty: "~/.local/state/gateway".')
    timeout: Seconds = Field(0.25, gt=0, description="Longest time a request waits for a reply of Redis.")
    max_silence: Seconds = Field(
        3.0, gt=0, description="A connection without a word for this long counts as lost (it is pinged before that)."
    )
    max_queue: int = Field(10_000, ge=1, description="Most replies a link may be waiting for; past it Redis is down.")
    backoff_base: Seconds = Field(0.05, gt=0, description="First pause before reconnecting; it doubles, with jitter.")
    backoff_max: Seconds = Field(2.0, gt=0, description="Longest pause before reconnecting.")
    mirror: MirrorTable = MirrorTable()


class Admin(Table):
    """Health and metrics, on a listener of their own."""

    listen: Address = Field("127.0.0.1:9090", description="Address and port of /_gateway/health and /_gateway/metrics.")
    enabled: bool = Field(True, description="Whether to listen at all.")


class Log(Table):
    """What is written to standard output and standard error."""

    access: bool = Field(True, description="One JSON line per request on standard output.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Of the gateway's own messages.")
    max_buffer: Size = Field(
        4 << 20, description="Access log lines waiting for a slow reader; past it lines are dropped."
    )


class Upstream(Table):
    """An API that answers for real."""

    url: Annotated[str, AfterValidator(_http_url)] = Field(
        description="Where it is; a path is put in front of each request's."
    )
    host: Literal["keep", "upstream"] | str = Field(
        "keep", description='The Host it sees: "keep" the client\'s, "upstream" the URL\'s, or a name.'
    )
    connect_timeout: Seconds = Field(5.0, gt=0, description="To open a connection; beyond it 504.")
    read_timeout: Seconds = Field(60.0, gt=0, description="Longest silence while it answers; beyond it 504.")
    max_connections: int = Field(1000, ge=1, description="Most connections of a worker; more requests wait.")
    keepalive_timeout: Seconds = Field(15.0, description="An idle connection is kept this long for the next request.")
    max_header: Size = Field(16384, description="Longest header line of an answer; beyond it 502.")
    verify_tls: bool = Field(True, description="Whether an https upstream's certificate must be valid.")


class PluginTable(BaseModel):
    """The keys every plugin has; its own keys stand beside them and are checked by the plugin's `Config`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    use: str = Field(
        "",
        description="A built-in plugin's name, or \"module:Class\" of a file beside the configuration; empty: the table's name.",
    )
    enabled: bool = Field(True, description="false takes it out of every chain.")
    on_redis_failure: Literal["pass", "refuse", "local"] | None = Field(
        None, description="What happens to a request while Redis is down; the plugin has its own default."
    )


_METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _methods(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not _METHOD.fullmatch(value):
            raise ValueError(f"{value!r} is not an HTTP method")
    return tuple(value.upper() for value in values)


def _path_pattern(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError('a path starts with "/", such as "/users/*", "/users/{id}" or "/health"')
    if "?" in value or "#" in value:
        raise ValueError("a path has no query or fragment")
    for position, segment in enumerate(segments := value[1:].split("/")):
        if "*" in segment and segment != "*":
            raise ValueError(f'{segment!r}: "*" stands for a whole segment, and at the end for everything below')
        if ("{" in segment or "}" in segment) and not re.fullmatch(r"\{[A-Za-z_][A-Za-z0-9_]*\}", segment):
            raise ValueError(f'{segment!r}: a named segment is written "{{name}}"')
        if segment == "" and position < len(segments) - 1:
            raise ValueError("a path has no empty segment")
    return value


class Match(Table):
    """Which requests a route is for; what is not given matches everything."""

    host: str | None = Field(
        None,
        pattern=r"^(\*\.)?[A-Za-z0-9._:\[\]-]+$",
        description='A host name, or "*.example.com" for all names below it.',
    )
    path: Annotated[str, AfterValidator(_path_pattern)] = Field(
        "/*",
        description='"/health" exactly; "/users/{id}" and "/users/*/posts" with any one segment; "/api/*" and below.',
    )
    methods: Annotated[tuple[str, ...], AfterValidator(_methods)] = Field((), description="Methods; none: all.")


class RouteTable(Table):
    """Which requests go through which plugins to which upstream."""

    name: str = Field("", description="For logs, metrics and per-route limits; empty: the path.")
    match: Match = Match()
    upstream: str = Field("default", description="The name of an [upstreams.NAME] table.")
    plugins: tuple[str, ...] = Field((), description="Names of [plugins.NAME] tables, in their order.")


class Config(Table):
    """Everything."""

    server: Server = Server()
    redis: RedisTable = RedisTable()
    admin: Admin = Admin()
    log: Log = Log()
    upstreams: dict[str, Upstream] = Field(default_factory=dict, description="Upstreams by name.")
    plugins: dict[str, PluginTable] = Field(default_factory=dict, description="Plugins by name.")
    routes: tuple[RouteTable, ...] = Field((), description="Routes; the most specific match wins, not the first.")


# -- errors ------------------------------------------------------------------------------------


class Problem(BaseModel):
    """One thing wrong with the configuration."""

    key: str
    expected: str
    found: str = ""
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.key}: {self.expected}"
        if self.found:
            text += f", found {self.found}"
        if self.hint:
            text += f"\n    hint: {self.hint}"
        return text


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has all that is wrong with it."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) != 1 else "")
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {problem}" for problem in self.problems))


SECRET_KEY: Final = re.compile(r"password|secret|token|credential|private|api_?key|(^|_)url$", re.IGNORECASE)


def show(key: str, value: Any) -> str:
    """A value for an error message; one that may be secret is not shown."""
    if SECRET_KEY.search(key.rpartition(".")[2]):
        return "a value that is not shown"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def problems_of(error: ValidationError, model: type[BaseModel], prefix: tuple[str | int, ...] = ()) -> list[Problem]:
    """pydantic's errors in our words."""
    found = []
    for item in error.errors(include_url=False):
        loc = (*prefix, *item["loc"])
        key = path_of(loc)
        kind, value = item["type"], item.get("input")
        if kind == "extra_forbidden":
            known = _fields_at(model, item["loc"][:-1])
            close = difflib.get_close_matches(str(loc[-1]), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys here: {', '.join(sorted(known)) or 'none'}"
            found.append(Problem(key=key, expected="unknown key", hint=hint))
        elif kind == "missing":
            found.append(Problem(key=key, expected="missing, and it has no default", hint=_hint(model, item["loc"])))
        else:
            text = item["msg"].removeprefix("Value error, ")
            text = text.replace("Input should be", "expected")
            found.append(Problem(key=key, expected=text, found=show(key, value), hint=_hint(model, item["loc"])))
    return found


def path_of(loc: Sequence[str | int]) -> str:
    """`plugins.rate_limit.limits[0]`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _field_at(model: Any, loc: Sequence[str | int]) -> Any:
    from pydantic.fields import FieldInfo

    field: FieldInfo | None = None
    for part in loc:
        if isinstance(part, int) or not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        field = model.model_fields.get(part)
        if field is None:
            continue
        model = next((m for m in _models_in(field.annotation)), field.annotation)
    return field, model


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]


def _fields_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    _, at = _field_at(model, loc)
    return list(at.model_fields) if isinstance(at, type) and issubclass(at, BaseModel) else []


def _hint(model: type[BaseModel], loc: Sequence[str | int]) -> str:
    field, _ = _field_at(model, loc)
    return (field.description or "") if field is not None else ""


# -- reading -----------------------------------------------------------------------------------

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

ENVIRONMENT: Final = {
    "GATEWAY_LISTEN": ("server", "listen"),
    "GATEWAY_WORKERS": ("server", "workers"),
    "GATEWAY_REDIS_URL": ("redis", "url"),
    "GATEWAY_UPSTREAM": ("upstreams", "default", "url"),
    "GATEWAY_ADMIN_LISTEN": ("admin", "listen"),
    "GATEWAY_STATE_DIR": ("redis", "state_dir"),
}


def substitute(value: Any, environment: Mapping[str, str], problems: list[Problem], key: str = "") -> Any:
    """`${NAME}` and `${NAME:-default}` in every string, replaced from the environment."""
    if isinstance(value, dict):
        return {k: substitute(v, environment, problems, f"{key}.{k}" if key else k) for k, v in value.items()}
    if isinstance(value, list):
        return [substitute(v, environment, problems, f"{key}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if name in environment:
            return environment[name]
        if default is None:
            problems.append(
                Problem(
                    key=key,
                    expected=f"the environment has no variable {name}",
                    hint=f"set it, or write ${{{name}:-default}}",
                )
            )
            return ""
        return default

    return _VARIABLE.sub(replace, value)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdigit() else value


def load(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[tuple[str, ...], Any] | None = None,
) -> Config:
    """Read the file (or the built-in defaults), then the environment, then the command line's overrides.

    Raises:
        ConfigError: with everything that is wrong with the core's own keys. Plugins check theirs when they are
            loaded (`gateway.loader`).
    """
    environment = os.environ if environment is None else environment
    source = str(path) if path else "built-in configuration"
    raw = read_toml(path) if path else {}
    problems: list[Problem] = []
    raw = substitute(raw, environment, problems)
    values: dict[tuple[str, ...], Any] = {}
    for name, where in ENVIRONMENT.items():
        if environment.get(name):
            values[where] = environment[name]
    values.update(overrides or {})
    for where, value in values.items():
        table = raw
        for part in where[:-1]:
            table = table.setdefault(part, {})
        table[where[-1]] = _number(value) if where[-1] == "workers" else value
    if not raw.get("routes") and raw.get("upstreams"):
        raw["routes"] = [{"name": "all", "upstream": next(iter(raw["upstreams"]))}]
    config = None
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        problems += problems_of(error, Config)
    if config is not None:
        problems += check_names(config)
    if problems or config is None:
        raise ConfigError(source, problems)
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables.

    Raises:
        ConfigError: it is not there, cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        problem = Problem(
            key="file", expected="no such file", hint="give another with --config, or --upstream URL alone"
        )
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem(key="file", expected=f"cannot be read: {error}")
    except tomllib.TOMLDecodeError as error:
        problem = Problem(key="file", expected=f"not valid TOML: {error}")
    raise ConfigError(str(path), [problem])


def check_names(config: Config) -> list[Problem]:
    """Names that one table uses and another must have."""
    problems = []
    if not config.upstreams:
        problems.append(
            Problem(
                key="upstreams",
                expected="no upstream is configured",
                hint='add [upstreams.default] with url = "http://...", or start with --upstream URL',
            )
        )
    names: dict[str, int] = {}
    for number, route in enumerate(config.routes):
        where = f"routes[{number}]"
        if config.upstreams and route.upstream not in config.upstreams:
            problems.append(_unknown(f"{where}.upstream", "upstream", route.upstream, list(config.upstreams)))
        for index, name in enumerate(route.plugins):
            if name not in config.plugins:
                problems.append(_unknown(f"{where}.plugins[{index}]", "plugin", name, list(config.plugins)))
        if len(set(route.plugins)) < len(route.plugins):
            problems.append(Problem(key=f"{where}.plugins", expected="a plugin is named twice"))
        label = route.name or route.match.path
        if label in names and route.name:
            problems.append(
                Problem(
                    key=f"{where}.name", expected=f"routes[{names[label]}] has this name already", found=repr(label)
                )
            )
        names.setdefault(label, number)
    return problems


def _unknown(key: str, kind: str, name: str, known: Sequence[str]) -> Problem:
    close = difflib.get_close_matches(name, known, n=1)
    hint = (
        f"did you mean {close[0]!r}?"
        if close
        else f"there is no [{kind}s.{name}] table; known: {', '.join(known) or 'none'}"
    )
    return Problem(key=key, expected=f"no such {kind}", found=repr(name), hint=hint)


def redact(url: str) -> str:
    """A URL without its password."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", url)
