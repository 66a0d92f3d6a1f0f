"""What a successful change purges: `POST|PUT|PATCH|DELETE /products/{id} -> tag product:{path.id}, url /products`.

    rule     METHOD|METHOD PATH -> TARGET, TARGET      (or with an arrow, \u2192)
    PATH     as a route's: `{name}` and `*` are one segment, a final `*` is everything below
    TARGET   tag NAME | url /PATH | route NAME | user | all, with `soft` in front for a soft purge

`user` is whom the request speaks for; `url` is on the request's host. Names and paths may have placeholders (see
`tags`). A target whose placeholder stands for nothing in a request is left out of it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote

from gateway.plugin import Request, users_of
from plugins.cache.purge import Purge
from plugins.cache.tags import Missing, Template, Unusable, Values, decoded, segments_of

logger = logging.getLogger("gateway.cache")

MAX_RULES: Final = 200
MAX_RULE: Final = 2000
EXAMPLE: Final = "PUT|DELETE /products/{id} -> tag product:{path.id}"

# RFC 9110, section 9.2.1, and QUERY: they change nothing.
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})

_ARROW: Final = re.compile("->|\u2192")
_METHODS: Final = re.compile(r"[A-Z][A-Z-]*(\|[A-Z][A-Z-]*)*")
_NAMED: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_KINDS: Final = ("tag", "url", "route", "user", "all")
_WITH_NAME: Final = ("tag", "url", "route")


def quoted(value: str) -> str:
    """A value as a part of a URL: it stays within its segment or parameter."""
    return quote(value, safe="!$'()*,:;@", errors="surrogateescape")


class Pattern:
    """A path as a route has it.

    Raises:
        ValueError: what is wrong with it.
    """

    __slots__ = ("_below", "_segments", "names")

    def __init__(self, text: str) -> None:
        if not text.startswith("/") or "?" in text or "#" in text:
            raise ValueError(f'{text}: a path starts with "/" and has no query, such as /products/{{id}}')
        segments = [segment for segment in text.split("/") if segment]
        self._below = bool(segments) and segments[-1] == "*"
        # A literal, or the name of what stands there; None: anything.
        self._segments: list[tuple[str | None, str | None]] = []
        for segment in segments[:-1] if self._below else segments:
            if match := _NAMED.fullmatch(segment):
                self._segments.append((None, match[1]))
            elif segment == "*":
                self._segments.append((None, None))
            elif set(segment) & set("{}*"):
                raise ValueError(f'{text}: {segment!r} is neither a literal nor "*" nor "{{name}}"')
            else:
                self._segments.append((decoded(segment), None))
        self.names = frozenset(name for _, name in self._segments if name is not None)

    def match(self, segments: Sequence[str]) -> dict[str, str] | None:
        """What the named segments are in a path; None if the path is another one."""
        wanted = self._segments
        if len(segments) < len(wanted) or (len(segments) > len(wanted) and not self._below):
            return None
        found = {}
        for (literal, name), segment in zip(wanted, segments, strict=False):
            if literal is not None and literal != segment:
                return None
            if name is not None:
                found[name] = segment
        return found


class Target:
    """One thing that a rule purges.

    Raises:
        ValueError: what is wrong with it.
    """

    __slots__ = ("kind", "name", "soft")

    def __init__(self, text: str) -> None:
        words = text.split()
        self.soft = words[:1] == ["soft"]
        kind, *rest = words[self.soft :] or [""]
        if kind not in _KINDS:
            raise ValueError(f"{text.strip()!r}: expected tag NAME, url /PATH, route NAME, user or all")
        if len(rest) != (kind in _WITH_NAME):
            raise ValueError(
                f"{text.strip()!r}: {kind} is followed by {'one name' if kind in _WITH_NAME else 'nothing'}"
            )
        self.kind = kind
        self.name = Template(rest[0]) if rest else None
        if self.name is None:
            return
        if kind == "url" and not self.name.text.startswith("/"):
            raise ValueError(f'{text.strip()!r}: a url is a path on the request\'s own host and starts with "/"')
        if kind == "route" and self.name.placeholders:
            raise ValueError(f"{text.strip()!r}: a route's name has no placeholders")


class Rule:
    """One text of the key `rules`.

    Raises:
        ValueError: which rule is wrong, and why.
    """

    __slots__ = ("methods", "pattern", "targets", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            if len(text) > MAX_RULE:
                raise ValueError(f"longer than {MAX_RULE} characters")
            left, *right = _ARROW.split(text)
            words = left.split()
            if len(right) != 1 or len(words) != 2:
                raise ValueError(f"expected METHODS PATH -> TARGETS, such as {EXAMPLE!r}")
            if not _METHODS.fullmatch(words[0]):
                raise ValueError(f"{words[0]}: expected methods such as POST|PUT|PATCH|DELETE")
            self.methods = tuple(dict.fromkeys(words[0].split("|")))
            if safe := SAFE.intersection(self.methods):
                raise ValueError(f"{', '.join(sorted(safe))}: changes nothing, so there is nothing to purge after it")
            self.pattern = Pattern(words[1])
            self.targets = tuple(Target(part) for part in right[0].split(","))
        except ValueError as error:
            raise ValueError(f"rule {text[:200]!r}: {error}") from None

    def __repr__(self) -> str:
        return f"<Rule {self.text}>"


class PurgeRules:
    """The key `rules`.

    Raises:
        ValueError: which rule is wrong, and why.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        if len(texts) > MAX_RULES:
            raise ValueError(f"more than {MAX_RULES} rules")
        self.all = tuple(Rule(text) for text in texts)
        self._by_method: dict[str, list[Rule]] = {}
        for rule in self.all:
            for method in rule.methods:
                self._by_method.setdefault(method, []).append(rule)

    def check(self, routes: Mapping[str, str]) -> None:
        """Look for what no request could fill in and what there is not.

        Args:
            routes: the paths of all routes that a request can come by, by their names.

        Raises:
            ValueError: which rule is wrong, and why.
        """
        known = {name for path in routes.values() for name in _NAMED.findall(path)}
        for rule in self.all:
            for target in rule.targets:
                if target.name is None:
                    continue
                if target.kind == "route" and target.name.text not in routes:
                    raise ValueError(
                        f"rule {rule.text!r}: there is no route {target.name.text!r}; known: {', '.join(routes)}"
                    )
                for source, name in target.name.placeholders:
                    if source == "path" and not name.isdigit() and name not in rule.pattern.names | known:
                        raise ValueError(
                            f"rule {rule.text!r}: neither its path nor a route has a segment {{{name}}};"
                            f" name it there, or take {{path.2}} for the second segment"
                        )

    def after(self, request: Request) -> list[Purge]:
        """What a request that has succeeded purges: at most one hard and one soft purge."""
        rules = self._by_method.get(request.method)
        if not rules:
            return []
        segments = segments_of(request.path)
        named: dict[tuple[str, bool], list[str]] = {}
        for rule in rules:
            values = rule.pattern.match(segments)
            if values is None:
                continue
            for target in rule.targets:
                try:
                    names = _names(target, request, Values(request, values))
                except (Missing, Unusable) as error:
                    logger.debug("cache: rule %r: a target is left out: %s", rule.text, error)
                    continue
                named.setdefault((target.kind, target.soft), []).extend(names)
        return [
            Purge(
                tuple((request.host, target) for target in named.get(("url", soft), ())),
                tuple(named.get(("user", soft), ())),
                tuple(named.get(("tag", soft), ())),
                tuple(named.get(("route", soft), ())),
                ("all", soft) in named,
                soft,
            )
            for soft in (False, True)
            if any(part[1] == soft for part in named)
        ]


def _names(target: Target, request: Request, values: Values) -> list[str]:
    """What a target names for one request.

    Raises:
        Missing, Unusable: it names nothing here.
    """
    if target.name is not None:
        return [target.name.expand(values, quoted if target.kind == "url" else str)]
    if target.kind == "all":
        return []
    if request.identity is None:
        raise Missing("the request speaks for nobody")
    return users_of(request.identity)
