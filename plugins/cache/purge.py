"""Purging in one small write: what is purged is not searched for, but made void (see `generations`).

One `Purge` serves the gateway, its admin API, `PURGE` and `gateway cache purge`. Every worker hears of the change by
the mirror's push.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from plugins.cache.generations import Command, Ending
from plugins.cache.keys import everything, of_path, of_route, of_tag, of_url, of_user

if TYPE_CHECKING:
    import redis
    import redis.asyncio

# Of one document: each thing is one command to Redis.
MAX_NAMED: Final = 1000
MAX_TEXT: Final = 8192

_LISTS: Final = ("urls", "users", "tags", "routes")
_KEYS: Final = (*_LISTS, "everything", "soft", "host")


@dataclass(frozen=True, slots=True)
class Purge:
    """What is to be purged: the answers that any of these names."""

    urls: Sequence[tuple[str, str]] = ()
    """Host as clients send it, and target: path and query, byte for byte as clients send them."""
    users: Sequence[str] = ()
    tags: Sequence[str] = ()
    routes: Sequence[str] = ()
    everything: bool = False
    soft: bool = False
    """Answers are not thrown away, but no longer fresh: they may be revalidated, or served in place of an error."""

    @classmethod
    def parse(cls, document: object, *, routes: Collection[str] = ()) -> Purge:
        """What a JSON document asks for, with any of these members:

            {"urls": ["https://api.example.com/a?b"], "host": "api.example.com", "users": ["ada"], "tags": ["one"],
             "routes": ["users"], "everything": false, "soft": true}

        `host` is what clients send in `Host`, for URLs that are only `/path`.

        Args:
            routes: those that there are; of others none may be named. Without them, any may be.

        Raises:
            ValueError: what is wrong, for whoever sent it.
        """
        if not isinstance(document, Mapping):
            raise ValueError('expected an object such as {"tags": ["product:1"], "soft": true}')
        for key in document:
            if key not in _KEYS:
                raise ValueError(f"{str(key)[:100]!r}: unknown; known are {', '.join(_KEYS)}")
        lists = {name: _texts(name, document.get(name, [])) for name in _LISTS}
        all_of_it, soft = (_flag(name, document.get(name, False)) for name in ("everything", "soft"))
        host = document.get("host")
        if host is not None and (not isinstance(host, str) or len(host) > MAX_TEXT):
            raise ValueError("host: expected what clients send in Host")
        if sum(map(len, lists.values())) > MAX_NAMED:
            raise ValueError(f"more than {MAX_NAMED} things: ask several times, or purge a tag, a route or everything")
        for name in lists["routes"]:
            if routes and name not in routes:
                raise ValueError(f"routes: there is no route {name[:100]!r}; the configuration has {', '.join(routes)}")
        made = cls(
            tuple(parse_url(text, None if "://" in text else host) for text in lists["urls"]),
            tuple(lists["users"]),
            tuple(lists["tags"]),
            tuple(lists["routes"]),
            all_of_it,
            soft,
        )
        if not made.named():
            raise ValueError("say what to purge: urls, users, tags, routes or everything")
        return made

    def named(self) -> list[str]:
        """What is purged, in words."""
        return [
            *[f"http://{host}{target}" for host, target in self.urls],
            *[f"user {name}" for name in self.users],
            *[f"tag {name}" for name in self.tags],
            *[f"route {name}" for name in self.routes],
            *(["everything"] if self.everything else []),
        ]

    def endings(self, prefix: str) -> list[Ending]:
        """The generations to end, one for each thing that is named."""
        names = [of(prefix, host, target) for host, target in self.urls for of in (of_url, of_path)]
        names += [of_user(prefix, user) for user in self.users]
        names += [of_route(prefix, route) for route in self.routes]
        if self.everything:
            names.append(everything(prefix))
        return [
            *[Ending(name, self.soft) for name in names],
            *[Ending(of_tag(prefix, tag), self.soft, tag=True) for tag in self.tags],
        ]

    def commands(self, prefix: str) -> list[Command]:
        """What to send to Redis, each on one key."""
        return [ending.command() for ending in self.endings(prefix)]

    def execute_sync(self, client: redis.Redis, prefix: str) -> None:
        """Purge, by a client of redis-py.

        Raises:
            redis.RedisError: some or all of it could not be purged.
        """
        execute: Any = client.execute_command
        for command in self.commands(prefix):
            execute(*command)

    async def execute(self, client: redis.asyncio.Redis, prefix: str) -> None:
        """Purge, by an asyncio client of redis-py.

        Raises:
            redis.RedisError: some or all of it could not be purged.
        """
        execute: Any = client.execute_command
        for command in self.commands(prefix):
            await execute(*command)


def _texts(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) and 0 < len(text) <= MAX_TEXT for text in value):
        raise ValueError(f"{name}: expected a list of texts, none of them empty or longer than {MAX_TEXT} characters")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false")
    return value


def parse_url(text: str, host: str | None = None) -> tuple[str, str]:
    """A URL as clients see it, as host and target.

    Args:
        text: `http://host/path?query`, or `/path?query`.
        host: what clients send in `Host`, where the text does not say.

    Raises:
        ValueError: it is not a URL, or the host is missing or told twice.
    """
    if text.startswith("/"):
        if not host:
            raise ValueError(f"{text}: which host? Give the whole URL, or beside it the host that clients send in Host")
        authority, rest = host, text
    else:
        try:
            parts = urlsplit(text)
        except ValueError as error:
            raise ValueError(f"{text}: expected a URL such as http://example.com/path ({error})") from None
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
            raise ValueError(f"{text}: expected a URL such as http://example.com/path, or /path and a host")
        if host:
            raise ValueError(f"{text} names its host already; another host is only for /path")
        authority, rest = parts.netloc, text.partition("://")[2][len(parts.netloc) :]
    rest = rest.partition("#")[0]
    if not rest.startswith("/"):
        rest = "/" + rest
    # An empty query is no query, as in a request.
    return authority.lower(), rest.removesuffix("?") if rest.count("?") == 1 else rest
