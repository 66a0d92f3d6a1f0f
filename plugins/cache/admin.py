"""The cache on the admin listener.

    POST /_gateway/cache/purge                 what `Purge.parse` takes
    GET  /_gateway/cache/stats?max_keys=N      keys, bytes, hit ratio by route, memory
    GET  /_gateway/cache/hot?limit=N           the ranking of the keys that are read most
    GET  /_gateway/cache/explain?url=URL       what is stored for a request; also `method=` and `user=`

`explain` takes no header fields: a URL is written to logs on its way, and they may hold credentials. The command does.
"""

from __future__ import annotations

from typing import Final

from gateway.console import AdminRoutes, Context, Document, Query
from plugins.cache.explain import Asked, explain
from plugins.cache.purge import Purge
from plugins.cache.ranked import hottest
from plugins.cache.stats import MAX_KEYS, stats

MAX_LIMIT: Final = 1000
LIMIT: Final = 20

admin = AdminRoutes("cache")


@admin.post("purge")
async def purge(context: Context, document: Document) -> Document:
    """Purge on all nodes, at once."""
    what = Purge.parse(document, routes=[table.label for table in context.config.routes])
    await what.execute(context.redis, context.prefix)
    return {"purged": what.named(), "soft": what.soft}


@admin.get("stats")
async def tell_stats(context: Context, query: Query) -> Document:
    """See `stats.stats`."""
    return await stats(context, max_keys=number(query, "max_keys", MAX_KEYS, MAX_KEYS))


@admin.get("hot")
async def hot(context: Context, query: Query) -> Document:
    """See `ranked.hottest`."""
    return await hottest(context, number(query, "limit", LIMIT, MAX_LIMIT))


@admin.get("explain")
async def tell(context: Context, query: Query) -> Document:
    """See `explain.explain`."""
    known(query, "url", "method", "user")
    if not (url := query.get("url")):
        raise ValueError("which URL? Ask with ?url=http://example.com/path, percent-encoded")
    return await explain(context, Asked(url, query.get("method", "GET"), user=query.get("user")))


def number(query: Query, name: str, default: int, most: int) -> int:
    """A parameter that is a whole number.

    Raises:
        ValueError: it is none, or out of range, or there is another parameter.
    """
    known(query, name)
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most):
        raise ValueError(f"{name}: expected a whole number from 1 to {most}")
    return int(text)


def known(query: Query, *names: str) -> None:
    """Raises ValueError for a parameter that would be overlooked."""
    if more := sorted(set(query) - set(names)):
        raise ValueError(f"there is no parameter {more[0]!r}; this takes {', '.join(names)}")
