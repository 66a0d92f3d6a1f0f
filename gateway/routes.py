"""Request -> route.

A path is looked up segment by segment in a tree, so the time does not grow with the number of routes. The most
specific match wins: a literal segment before a `{name}` or `*`, those before a trailing `/*`; an exact host before
`*.example.com`, that before any host.

What is matched is the path as the upstream would read it: dot segments resolved, unreserved characters decoded,
slashes merged. Otherwise `//admin` or `/%61dmin` could take a route with fewer checks. What is *forwarded* stays as
the client sent it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from gateway.chain import Chain
from gateway.config import RouteTable

NO_PARAMS: Final[Mapping[str, str]] = {}
MAX_SEGMENTS: Final = 256
MAX_REMEMBERED: Final = 4096
MAX_SHORT: Final = 256

_SUSPICIOUS: Final = re.compile(r"//|/\.|%|\\")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


@dataclass(eq=False, slots=True)
class Route:
    """One `[[routes]]` table with its folded chain."""

    name: str
    table: RouteTable
    chain: Chain

    def __repr__(self) -> str:
        return f"<Route {self.name}>"


class MethodNotAllowed(Exception):
    """The path has routes, but none for this method; `allowed` lists the methods that have one."""

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(", ".join(allowed))
        self.allowed = tuple(allowed)


@dataclass(slots=True)
class _Leaf:
    """The routes that end at one place of the tree."""

    by_method: dict[str, tuple[Route, tuple[str, ...]]] = field(default_factory=dict)
    any_method: tuple[Route, tuple[str, ...]] | None = None

    def add(self, route: Route, names: tuple[str, ...]) -> None:
        if not route.table.match.methods:
            self.any_method = self.any_method or (route, names)
        for method in route.table.match.methods:
            self.by_method.setdefault(method, (route, names))


@dataclass(slots=True)
class _Node:
    literal: dict[str, _Node] = field(default_factory=dict)
    one: _Node | None = None  # `*` or `{name}`
    exact: _Leaf | None = None  # a route ends here
    below: _Leaf | None = None  # a route ends here with a trailing `*`


class Routes:
    """All routes, frozen.

    Args:
        routes: in the configuration's order; of two with the same match the first counts.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self.all = tuple(routes)
        self._exact: dict[str, _Node] = {}
        self._wildcard: dict[str, _Node] = {}
        self._any = _Node()
        for route in routes:
            self._add(route)
        self._remembered = lru_cache(MAX_REMEMBERED)(self._search)

    def _add(self, route: Route) -> None:
        host = route.table.match.host
        if host is None:
            node = self._any
        elif host.startswith("*."):
            node = self._wildcard.setdefault(host[2:].lower(), _Node())
        else:
            node = self._exact.setdefault(host.lower(), _Node())
        names: list[str] = []
        segments = route.table.match.path[1:].split("/")
        for position, segment in enumerate(segments):
            last = position == len(segments) - 1
            if segment == "*" and last:
                node.below = node.below or _Leaf()
                node.below.add(route, tuple(names))
                return
            if segment == "*" or segment.startswith("{"):
                names.append(segment[1:-1])
                node.one = node.one or _Node()
                node = node.one
            else:
                node = node.literal.setdefault(segment, _Node())
        node.exact = node.exact or _Leaf()
        node.exact.add(route, tuple(names))

    def find(self, host: str, path: str, method: str) -> tuple[Route, Mapping[str, str]] | None:
        """The route and what its named segments matched; None where no route has this host and path.

        Raises:
            MethodNotAllowed: routes match, but not with this method.
        """
        # Most requests ask for what was asked for before: 0.2 µs instead of 2. Long paths are not worth the memory.
        return self._remembered(host, path, method) if len(path) <= MAX_SHORT else self._search(host, path, method)

    def _search(self, host: str, path: str, method: str) -> tuple[Route, Mapping[str, str]] | None:
        segments = matched_path(path)[1:].split("/", MAX_SEGMENTS)
        allowed: list[str] = []
        if self._exact or self._wildcard:
            name = host_name(host)
            if (tree := self._exact.get(name)) and (found := _search(tree, segments, method, allowed)):
                return found
            if self._wildcard:
                rest = name
                while "." in rest:
                    rest = rest.partition(".")[2]
                    if (tree := self._wildcard.get(rest)) and (found := _search(tree, segments, method, allowed)):
                        return found
        found = _search(self._any, segments, method, allowed)
        if found is None and allowed:
            raise MethodNotAllowed(sorted(set(allowed)))
        return found


def _search(
    tree: _Node, segments: list[str], method: str, allowed: list[str]
) -> tuple[Route, Mapping[str, str]] | None:
    """Depth first, the most specific branch first. The branches tried are at most the routes that match so far."""
    # (node, how many segments are used, what `*` and `{name}` took), the best choice on top
    stack: list[tuple[_Node, int, tuple[str, ...]]] = [(tree, 0, ())]
    fallbacks: list[tuple[int, _Leaf, tuple[str, ...]]] = []
    count = len(segments)
    while stack:
        node, used, taken = stack.pop()
        if node.below is not None and used <= count:
            fallbacks.append((used, node.below, taken))
        if used == count:
            if node.exact is not None and (found := _pick(node.exact, method, taken, allowed)):
                return found
            continue
        segment = segments[used]
        if node.one is not None and segment:
            stack.append((node.one, used + 1, (*taken, segment)))
        child = node.literal.get(segment)
        if child is not None:
            stack.append((child, used + 1, taken))
    # `max` is stable: of equally deep ones the more literal was met first.
    while fallbacks:
        best = max(fallbacks, key=lambda entry: entry[0])
        if found := _pick(best[1], method, best[2], allowed):
            return found
        fallbacks.remove(best)
    return None


def _pick(
    leaf: _Leaf, method: str, taken: tuple[str, ...], allowed: list[str]
) -> tuple[Route, Mapping[str, str]] | None:
    choice = leaf.by_method.get(method) or leaf.any_method
    if choice is None and method == "HEAD":
        choice = leaf.by_method.get("GET")
    if choice is None:
        allowed.extend(leaf.by_method)
        return None
    route, names = choice
    if not taken:
        return route, NO_PARAMS
    return route, {name: value for name, value in zip(names, taken, strict=True) if name}


def host_name(host: str) -> str:
    """A `Host` without its port and final dot, lower-cased."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].rstrip(".").lower()


def matched_path(path: str) -> str:
    """The path as it is matched: unreserved characters decoded, slashes merged, dot segments resolved."""
    if not _SUSPICIOUS.search(path):
        return path

    def decode(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if character in _UNRESERVED else match[0].upper()

    path = re.sub(r"/{2,}", "/", _ESCAPE.sub(decode, path).replace("\\", "/"))
    result: list[str] = []
    segments = path[1:].split("/")
    for segment in segments:
        if segment == "..":
            if result:
                result.pop()
        elif segment != ".":
            result.append(segment)
    if segments[-1] in (".", ".."):
        result.append("")
    return "/" + "/".join(result)
