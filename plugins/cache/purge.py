"""Purging in one small write: what is purged is not searched for, but made void (see `store`, generations).

The same commands serve the gateway and `gateway cache purge`. Every worker hears of the change by the mirror's push.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from gateway.plugin import Script
from plugins.cache.keys import everything, of_route, of_tag, of_url, of_user
from plugins.cache.store import GENERATION_SECONDS, milliseconds

PURGE_TAG: Final = Script.beside(__file__, "purge_tag.lua")

Command = tuple[bytes | str | int, ...]


@dataclass(frozen=True, slots=True)
class Purge:
    """What is to be purged: the answers that any of these names."""

    urls: Sequence[tuple[str, str]] = ()
    """Host as clients send it, and target: path and query, byte for byte as clients send them."""
    users: Sequence[str] = ()
    tags: Sequence[str] = ()
    routes: Sequence[str] = ()
    everything: bool = False

    def commands(self, prefix: str) -> list[Command]:
        """What to send to Redis: one command for each thing that is named."""
        ended = [of_url(prefix, host, target) for host, target in self.urls]
        ended += [of_user(prefix, user) for user in self.users]
        ended += [of_route(prefix, route) for route in self.routes]
        if self.everything:
            ended.append(everything(prefix))
        commands: list[Command] = [("UNLINK", name) for name in ended]
        # A tag is only known once an answer is there: one that was asked for before must be able to tell.
        lasting = milliseconds(GENERATION_SECONDS)
        commands += [("EVAL", PURGE_TAG.source, 1, of_tag(prefix, tag), lasting) for tag in self.tags]
        return commands


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
            raise ValueError(f"{text}: which host? Give the whole URL, or --host with what clients send in Host")
        authority, rest = host, text
    else:
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
            raise ValueError(f"{text}: expected a URL such as http://example.com/path, or /path with --host")
        if host:
            raise ValueError(f"{text} names its host already; --host is for /path")
        authority, rest = parts.netloc, text.partition("://")[2][len(parts.netloc) :]
    rest = rest.partition("#")[0]
    if not rest.startswith("/"):
        rest = "/" + rest
    # An empty query is no query, as in a request.
    return authority.lower(), rest.removesuffix("?") if rest.count("?") == 1 else rest
