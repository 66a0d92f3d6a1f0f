"""Requests without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from multidict import CIMultiDict, CIMultiDictProxy

from gateway.request import Head, Request
from gateway.store import Redis
from gateway.store.link import LinkOptions

Fields = Mapping[str, str] | tuple[tuple[bytes, bytes], ...]


async def _never_connected() -> Redis:
    return Redis(LinkOptions("redis://127.0.0.1:1"))


NEVER_CONNECTED = asyncio.run(_never_connected())


def bare_request(method: str = "GET", target: str = "/", headers: Fields = (), **known: Any) -> Request:
    """A request as the server makes it.

    Args:
        known: what else is known of it, as attributes.
    """
    head = Head()
    head.method, head.version, head.target = method, (1, 1), target
    head.path, _, head.query = target.partition("?")
    if isinstance(headers, tuple):
        head.raw_headers = headers
        headers = CIMultiDict((name.decode(), value.decode("utf-8", "surrogateescape")) for name, value in headers)
    else:
        head.raw_headers = ()
    head.headers = CIMultiDictProxy(CIMultiDict(headers))
    head.host, head.host_line = head.headers.get("Host", "").lower(), None
    head.should_close, head.params, head.notes = False, {}, {}
    nothing: Any = None
    head.route = nothing
    request = Request(head, NEVER_CONNECTED, "n-1", 0.0, "192.0.2.1")
    for name, value in known.items():
        setattr(request, name, value)
    return request
