from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.harness import Gateway
from tests.upstream.raw import RawUpstream, Talk, raw_upstream

Front = Callable[..., Awaitable[tuple[Gateway, RawUpstream]]]


@pytest.fixture
async def front(gateway: StartGateway) -> AsyncIterator[Front]:
    """Starts a raw upstream with a gateway in front of it; `upstream` is its table, the rest the configuration."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(talk: Talk, *, tls: Any = None, upstream: dict[str, Any] | None = None, **config: Any) -> Any:
            options = config.pop("options", {})
            raw = await stack.enter_async_context(raw_upstream(talk, tls=tls))
            config["upstreams"] = {"default": {"url": raw.url, **(upstream or {})}}
            return await gateway(config, **options), raw

        yield start
