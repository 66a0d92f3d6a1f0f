"""`PURGE /path`, as Varnish and Fastly have it.

    PURGE /path                                        this URL, for all users and variants
    PURGE /, with Surrogate-Key: a b or Cache-Tag: a,b   all answers with one of these tags, and not the URL
    Soft-Purge: 1, or Fastly-Soft-Purge: 1             softly

Tags stand in the fields that upstreams name them in (the key `tags`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

import orjson

from gateway.plugin import RedisError, Request, Response, problem
from plugins.cache.purge import MAX_NAMED, MAX_TEXT, Purge
from plugins.cache.store import Store
from plugins.cache.syntax import tags_of

METHOD: Final = "PURGE"
SOFT_FIELDS: Final = ("Soft-Purge", "Fastly-Soft-Purge")
RETRY_SECONDS: Final = 1


class PurgeMethod:
    """Answers `PURGE` from some networks.

    Args:
        networks: those that may; without one it is a method like any other, and the upstream's business.
        fields: those that name tags.
        prefix: of `[redis]`.
    """

    def __init__(self, networks: Sequence[str], *, fields: Sequence[str], store: Store, prefix: str) -> None:
        self._networks = tuple(ipaddress.ip_network(network, strict=False) for network in networks)
        self._fields = fields
        self._store = store
        self._prefix = prefix

    def takes(self, request: Request) -> bool:
        """Whether the request is answered here, and does not go to the upstream."""
        return request.method == METHOD and bool(self._networks)

    def allows(self, client: str) -> bool:
        """Whether this address may purge."""
        try:
            address = ipaddress.ip_address(client.partition("%")[0])
        except ValueError:
            return False  # a Unix socket's has none
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)

    async def answer(self, request: Request) -> Response:
        """Purge, and say what."""
        if not self.allows(request.client):
            return problem(403, "Forbidden", "PURGE is not allowed from this address.")
        tags = tags_of(request.headers, self._fields)
        if len(tags) > MAX_NAMED:
            return problem(400, "Bad Request", f"A PURGE names at most {MAX_NAMED} tags.")
        soft = any(_yes(request.headers.get(name)) for name in SOFT_FIELDS)
        purge = Purge(tags=tags, soft=soft) if tags else Purge([(request.host, request.target)], soft=soft)
        try:
            await self._store.purge(*purge.endings(self._prefix))
        except RedisError:
            response = problem(
                503, "Service Unavailable", "Redis cannot be reached: it is purged once it can. Or try again."
            )
            response.headers["Retry-After"] = str(RETRY_SECONDS)
            return response
        document = orjson.dumps({"purged": [_shown(name) for name in purge.named()], "soft": soft})
        return Response(200, {"Content-Type": "application/json", "Cache-Control": "no-store"}, document)


def _yes(value: str | None) -> bool:
    return value is not None and value.strip().lower() in ("1", "true", "?1")


def _shown(name: str) -> str:
    # What the client sent may be no UTF-8; a JSON document is.
    return name.encode("utf-8", "backslashreplace").decode()[:MAX_TEXT]
