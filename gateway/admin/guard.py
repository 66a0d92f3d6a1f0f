"""Who may use the admin listener, and from where.

It is meant for a network that only operators reach; by default it listens on this machine alone. A browser on such a
machine runs other people's pages, though, and these must not purge a cache or read what is in it:

- what changes something needs `Content-Type: application/json`, which no form of another site can send;
- a request with an `Origin` other than the listener's own is refused;
- a listener on a loopback address is only asked by its address or as `localhost`, so that a name that was made to point
  here (DNS rebinding) is of no use.

With `admin.token` everything but health needs it as a bearer token; no page knows it, so any name may be asked by.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
from aiohttp import web
from aiohttp.typedefs import Middleware

HEALTH: Final = "/_gateway/health"
JSON: Final = "application/json"
NOT_STORED: Final = {"Cache-Control": "no-store"}
SAFE: Final = frozenset({"GET", "HEAD"})
SCHEME: Final = "bearer "

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def problem(status: int, title: str, detail: str = "", headers: dict[str, str] | None = None) -> web.Response:
    """A problem document (RFC 9457)."""
    document: dict[str, Any] = {"type": "about:blank", "title": title, "status": status}
    if detail:
        document["detail"] = detail
    return web.Response(
        status=status,
        body=orjson.dumps(document),
        content_type="application/problem+json",
        headers=NOT_STORED | (headers or {}),
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """aiohttp's refusals as problem documents."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        allowed = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        return problem(error.status, error.reason, headers=allowed)


def guard(token: Callable[[], str], loopback: Callable[[], bool]) -> Middleware:
    """Refuses what the module's head says.

    Args:
        token: `admin.token` as it is now; empty: none is needed.
        loopback: whether the listener can only be reached from this machine.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path != HEALTH:
            needed = token()
            if needed and not has_token(request.headers.get("Authorization", ""), needed):
                detail = "Send Authorization: Bearer with the admin.token of the configuration."
                return problem(401, "Unauthorized", detail, {"WWW-Authenticate": 'Bearer realm="gateway admin"'})
            origin = request.headers.get("Origin")
            if (origin is not None and origin.lower() != f"http://{request.host.lower()}") or (
                (origin is not None or (loopback() and not needed)) and not is_address(request.host)
            ):
                return problem(403, "Forbidden", "Ask by the listener's own address; pages of other sites may not.")
        known = request.match_info.http_exception is None
        if known and request.method not in SAFE and request.content_type != JSON:
            return problem(415, "Unsupported media type", f"Send the body as Content-Type: {JSON}.")
        return await handler(request)

    return check


def has_token(field: str, needed: str) -> bool:
    """Whether an `Authorization` field has this bearer token; how long it takes does not tell how near it is."""
    given = field[len(SCHEME) :].strip() if field[: len(SCHEME)].lower() == SCHEME else ""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), needed.encode("utf-8", "surrogateescape"))


def is_address(authority: str) -> bool:
    """Whether a `Host` is an IP address or `localhost`: no name that somebody else's DNS can point here."""
    host = authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]
    return host.lower() == "localhost" or is_ip(host)


def is_ip(host: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether an IP address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
