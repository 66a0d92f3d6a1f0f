"""File, environment and command line -> models.

Later ones win: the built-in defaults or the file, then the environment, then the command line.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from gateway.config.errors import ConfigError, Problem, did_you_mean, problems_of
from gateway.config.models import Config, PluginTable, RouteTable
from gateway.config.values import Substituted

FILE_NAME: Final = "config.toml"
BUILT_IN: Final = "built-in configuration"

UPSTREAM_URL: Final = ("upstreams", "default", "url")
ENVIRONMENT: Final = {
    "GATEWAY_LISTEN": ("server", "listen"),
    "GATEWAY_WORKERS": ("server", "workers"),
    "GATEWAY_REDIS_URL": ("redis", "url"),
    "GATEWAY_UPSTREAM": UPSTREAM_URL,
    "GATEWAY_ADMIN_LISTEN": ("admin", "listen"),
    "GATEWAY_STATE_DIR": ("redis", "state_dir"),
}

# Without a file: what is right in front of any API. Sessions and tokens need to know the application.
DEFAULTS: Final[Mapping[str, Any]] = {
    "plugins": {
        "request_id": {},
        "rate_limit": {"limits": ["6000/minute"]},
        "cache": {},
    }
}

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

T = TypeVar("T", bound=BaseModel)
Overrides = Mapping[tuple[str, ...], Any]


@dataclass(slots=True)
class Draft:
    """What was read, not validated yet, and what is wrong with it so far."""

    source: str
    """What errors name."""
    folder: Path
    """Where `module:Class` is looked for first."""
    tables: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)

    def fail(self) -> None:
        """Raise ConfigError if there is any problem."""
        if self.problems:
            raise ConfigError(self.source, self.problems)


def load(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Overrides | None = None,
) -> Config:
    """Read the file (or the built-in defaults), then the environment, then the command line's overrides.

    Raises:
        ConfigError: with everything that is wrong with the core's own keys. Plugins check theirs when they are
            loaded (`gateway.loader`).
    """
    draft = read(path, environment=environment, overrides=overrides)
    config = validate(draft)
    draft.fail()
    assert config is not None
    return config


def read(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Overrides | None = None,
) -> Draft:
    """The tables of all sources, one over the other.

    Raises:
        ConfigError: the file is not there, cannot be read, or is not TOML.
    """
    environment = os.environ if environment is None else environment
    tables = read_toml(path) if path else deepcopy(dict(DEFAULTS))
    draft = Draft(str(path) if path else BUILT_IN, path.absolute().parent if path else Path.cwd(), tables)
    draft.tables = substitute(tables, environment, draft.problems)
    for name, where in ENVIRONMENT.items():
        if environment.get(name):
            _put(draft, where, Substituted(environment[name], name), name)
    for where, value in (overrides or {}).items():
        _put(draft, where, value, f"--{where[0].rstrip('s')}")
    _add_route(draft.tables)
    return draft


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables.

    Raises:
        ConfigError: it is not there, cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        hint = "give another with --config, or --upstream URL alone"
        problem = Problem(key="file", expected="there is no such file", hint=hint)
    except OSError as error:
        problem = Problem(key="file", expected=f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        problem = Problem(key="file", expected=f"not valid TOML: byte {error.start} is not UTF-8")
    except tomllib.TOMLDecodeError as error:
        problem = Problem(key="file", expected=f"not valid TOML: {error}")
    raise ConfigError(str(path), [problem])


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
            expected = f"the environment has no variable {name}"
            problems.append(Problem(key=key, expected=expected, hint=f"set it, or write ${{{name}:-default}}"))
            return ""
        return str(default)

    text, count = _VARIABLE.subn(replace, value)
    return Substituted(text, value) if count else value


def validate(draft: Draft) -> Config | None:
    """The core's models; None, and more in `draft.problems`, where something is wrong."""
    # A key whose variable is missing is wrong already: what its validator says besides would only confuse.
    known = {problem.key for problem in draft.problems}
    config = None
    try:
        config = Config.model_validate(draft.tables)
    except ValidationError as error:
        problems = problems_of(error, Config, draft.tables)
        draft.problems += [problem for problem in problems if problem.key not in known]
    draft.problems += check_names(draft.tables)
    return None if draft.problems else config


def plugin_tables(draft: Draft) -> dict[str, PluginTable]:
    """The plugins' tables that are right as far as the core can tell, whatever is wrong elsewhere."""
    return {name: table for name, table in _each(draft.tables.get("plugins"), PluginTable) if isinstance(name, str)}


def check_names(tables: Mapping[str, Any]) -> list[Problem]:
    """Names that one table uses and another must have, in every route that is right otherwise."""
    upstreams, plugins = tables.get("upstreams"), tables.get("plugins")
    problems = []
    if not upstreams:
        hint = 'add [upstreams.default] with url = "http://...", or start with --upstream URL'
        problems.append(Problem(key="upstreams", expected="no upstream is configured", hint=hint))
    names: dict[str, int | str] = {}
    matches: dict[tuple[str | None, str, str], int | str] = {}
    for number, route in _each(tables.get("routes"), RouteTable):
        where = f"routes[{number}]"
        if isinstance(upstreams, dict) and upstreams and route.upstream not in upstreams:
            problems.append(_unknown(f"{where}.upstream", "upstream", route.upstream, list(upstreams)))
        known = list(plugins) if isinstance(plugins, dict) else []
        for index, name in enumerate(route.plugins):
            if name not in known:
                problems.append(_unknown(f"{where}.plugins[{index}]", "plugin", name, known))
            elif name in route.plugins[:index]:
                problems.append(Problem(key=f"{where}.plugins[{index}]", expected="this plugin stands before already"))
        if route.name and route.name in names:
            expected = f"routes[{names[route.name]}] has this name already"
            problems.append(Problem(key=f"{where}.name", expected=expected, found=repr(route.name)))
        names.setdefault(route.name, number)
        shape = re.sub(r"\{\w+\}(?=/|$)|\*(?=/)", "{}", route.match.path)
        host = route.match.host and route.match.host.lower()
        for method in route.match.methods or ("",):
            if (host, shape, method) in matches:
                expected = f"routes[{matches[host, shape, method]}] matches the same requests already"
                problems.append(Problem(key=f"{where}.match", expected=expected, hint="put the two together"))
                break
            matches[host, shape, method] = number
    return problems


def _unknown(key: str, kind: str, name: str, known: Sequence[str]) -> Problem:
    hint = did_you_mean(name, known, f"there is no [{kind}s.{name}] table; known: {', '.join(known) or 'none'}")
    return Problem(key=key, expected=f"no such {kind}", found=repr(name), hint=hint)


def _each(tables: Any, model: type[T]) -> Iterator[tuple[int | str, T]]:
    """Those of a table's or a list's members that the model accepts, each with its key."""
    members: Any = ()
    if isinstance(tables, dict):
        members = tables.items()
    elif isinstance(tables, list):
        members = enumerate(tables)
    for key, member in members:
        try:
            yield key, model.model_validate(member)
        except ValidationError:
            continue  # told by `validate`


def _put(draft: Draft, where: tuple[str, ...], value: Any, name: str) -> None:
    """One value over what the file says."""
    upstreams = draft.tables.get("upstreams")
    if where == UPSTREAM_URL and isinstance(upstreams, dict) and upstreams and "default" not in upstreams:
        if len(upstreams) > 1:
            hint = f"call one of them default: {', '.join(upstreams)}"
            expected = f"{name} is for the upstream called default, and there is none"
            draft.problems.append(Problem(key="upstreams", expected=expected, hint=hint))
            return
        where = ("upstreams", next(iter(upstreams)), "url")
    table: Any = draft.tables
    for part in where[:-1]:
        if not isinstance(table, dict):
            return  # validation says so
        table = table.setdefault(part, {})
    if isinstance(table, dict):
        table[where[-1]] = value


def _add_route(tables: dict[str, Any]) -> None:
    """Without any route: one for everything, to the first upstream, through all plugins in their order."""
    upstreams, plugins = tables.get("upstreams"), tables.get("plugins", {})
    if not tables.get("routes") and isinstance(upstreams, dict) and upstreams and isinstance(plugins, dict):
        tables["routes"] = [{"name": "all", "upstream": next(iter(upstreams)), "plugins": list(plugins)}]
