"""What the gateway's commands need of its user (ACL).

It is read from the code that sends them, so there is no list of it that could be forgotten: the commands that a plugin
gives to `ask`, `tell`, `read` and `Read`, and those in its Lua scripts, as Redis asks for the same rights there.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, ValuesView
from types import ModuleType
from typing import Any, Final

from gateway.fleet import BEAT
from gateway.loader import BUILT_IN
from gateway.plugin import Plugin, Script
from gateway.store.url import Place

Words = tuple[str, ...]
"""A command in lower case: its name, and its subcommand if it has any."""

LINKS: Final[Mapping[Words, Words]] = {
    ("ping",): (),
    ("script", "load"): ("return 1",),
    ("evalsha",): ("0" * 40, "0"),
    ("eval",): ("return 1", "0"),
    ("eval_ro",): ("return 1", "0"),
    ("mget",): (),
}
"""What the links send by themselves (`gateway.store`), with arguments by which a command does nothing."""
MIRROR: Final[Mapping[Words, Words]] = {("client", "tracking"): ("off",), ("client", "caching"): ("yes",)}
DATABASE: Final[Mapping[Words, Words]] = {("select",): ("0",)}
CLUSTER: Final[Mapping[Words, Words]] = {
    ("cluster", "slots"): (),
    ("cluster", "nodes"): (),
    ("cluster", "info"): (),
    ("asking",): (),
}
REPLICAS: Final[Mapping[Words, Words]] = {("readonly",): ()}
"""Of a cluster, if they are read from."""
CORE: Final[Mapping[Words, Words]] = {**LINKS, **MIRROR, **DATABASE, **CLUSTER, **REPLICAS}

SENTINELS: Final[tuple[Words, ...]] = (("sentinel", "masters"), ("sentinel", "slaves"))
"""What Sentinels are asked: by their own user, who is another than the servers'."""

OPERATING: Final[tuple[Words, ...]] = (
    ("ping",),
    ("client", "setname"),
    ("eval",),
    ("exists",),
    ("get",),
    ("hgetall",),
    ("hmget",),
    ("pttl",),
    ("set",),
    ("unlink",),
    ("zcard",),
    ("zrange",),
    ("zrem",),
    ("zrevrange",),
)
"""What the plugins' commands and their routes on the admin listener ask: all of it of keys below the prefix."""
LOOKING: Final[tuple[Words, ...]] = (
    ("acl", "dryrun"),
    ("client", "list"),
    ("config", "get"),
    ("dbsize",),
    ("info",),
    ("memory", "usage"),
    ("ping",),
    ("pttl",),
    ("scan",),
    ("slowlog", "get"),
    ("time",),
)
"""What `gateway doctor` asks."""
COUNTING: Final[tuple[Words, ...]] = (("client", "setname"), ("getrange",), ("hmget",), ("zrevrange",))
"""What those that count keys (`gateway cache stats`) ask besides."""
CLUSTER_OPERATING: Final[tuple[Words, ...]] = (("cluster", "slots"), ("command",))
"""And in a cluster, where their client must know which words of a command are keys."""

ASKS: Final = frozenset({"ask", "tell", "read", "Read"})
_CALLED: Final = re.compile(rb"""redis\.p?call\(\s*['"](\w+)['"]""")


def scripts_of(plugins: Sequence[Plugin]) -> list[Script]:
    """The scripts of the plugins: of their modules, of the classes in them, and their own."""
    owners: list[Any] = [*_modules(plugins), *plugins]
    owners += [value for module in _modules(plugins) for value in vars(module).values() if isinstance(value, type)]
    found: dict[bytes, Script] = {}
    for owner in owners:
        for value in vars(owner).values():
            several = value.values() if isinstance(value, dict) else value
            for item in several if isinstance(several, list | tuple | ValuesView) else (value,):
                if isinstance(item, Script):
                    found.setdefault(item.sha, item)
    return list(found.values())


def needed(plugins: Sequence[Plugin], place: Place, *, mirror: bool = True, replicas: bool = False) -> list[Words]:
    """All commands that the workers of a gateway with these plugins send to its Redis.

    Args:
        mirror: whether it has one.
        replicas: whether it reads from replicas.
    """
    found = {
        *LINKS,
        *(MIRROR if mirror else ()),
        *(DATABASE if place.db else ()),
        *(CLUSTER if place.kind == "cluster" else ()),
        *(REPLICAS if place.kind == "cluster" and replicas else ()),
    }
    found |= commands_of([BEAT, *scripts_of(plugins)])
    for module in _modules(plugins):
        found |= set(_asked(module))
    return sorted(found)


def operating(place: Place) -> list[Words]:
    """All commands that an operator has sent by the plugins' commands and the admin listener, but for `diagnosing`."""
    return [*_reaching(place), *OPERATING]


def diagnosing(place: Place) -> list[Words]:
    """All commands of those that look at the server, and at the names of all its keys: what neither workers nor other
    commands need, and what tells more than theirs.
    """
    return [*_reaching(place), *LOOKING, *COUNTING]


def _reaching(place: Place) -> list[Words]:
    return [*(DATABASE if place.db else ()), *(CLUSTER_OPERATING if place.kind == "cluster" else ())]


def commands_of(scripts: Iterable[Script]) -> set[Words]:
    """The commands in scripts."""
    return {(name.decode().lower(),) for script in scripts for name in _CALLED.findall(script.source)}


def rule(words: Words) -> str:
    """A command as ACL SETUSER names it."""
    return "|".join(words)


def rules(commands: Iterable[Words], patterns: Iterable[str] = (), *, keys: str = "~") -> str:
    """Commands and patterns of keys as ACL SETUSER grants them.

    Args:
        keys: what stands before each pattern: `%R~` for keys that are only read.
    """
    return " ".join([*(f"{keys}{pattern}" for pattern in patterns), *(f"+{rule(words)}" for words in commands)])


def key_templates(plugins: Iterable[Plugin], prefix: str) -> list[str]:
    """Names of keys that the configuration chose for itself, with `{id}` in them, that are not below the prefix."""
    values = [
        value.replace("{prefix}", prefix)
        for plugin in plugins
        for value in (dict(plugin.config).values() if plugin.config is not None else ())
        if isinstance(value, str) and value.count("{id}") == 1
    ]
    return sorted({value for value in values if not value.startswith(f"{prefix}:")})


def _modules(plugins: Iterable[Plugin]) -> list[ModuleType]:
    """The modules a plugin is made of: its class' own, its bases', and those of their packages."""
    names: set[str] = set()
    for plugin in plugins:
        for one in type(plugin).__mro__:
            if issubclass(one, Plugin) and one is not Plugin:
                package = getattr(sys.modules.get(one.__module__), "__package__", "") or ""
                names.add(one.__module__ if package in ("", BUILT_IN) else package)
    return [
        module
        for name, module in sorted(sys.modules.items())
        if module is not None and any(name == one or name.startswith(f"{one}.") for one in names)
    ]


def _asked(module: ModuleType) -> Iterator[Words]:
    """The commands that stand in a module's questions."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):  # no source: it is not told
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called, first = node.func, node.args[0].value
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in ASKS and isinstance(first, str) and first.isalpha() and first.isupper():
                yield (first.lower(),)
