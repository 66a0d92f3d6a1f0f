"""The plugins' own routes on the admin listener; see `gateway.admin.routes`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import orjson
import redis.exceptions
from aiohttp import web
from redis.asyncio import Redis

from gateway.admin.context import Context, client
from gateway.admin.guard import NOT_STORED, problem
from gateway.admin.routes import AdminRoutes, Change, Document, Reading
from gateway.config import ConfigError, RedisTable
from gateway.loader import built_in_parts
from gateway.store.embedded import running_url

logger = logging.getLogger("gateway.admin")

ANSWER_SECONDS: Final = 10.0
"""An answer takes at most this long; then it is 503."""
BODY_SECONDS: Final = 5.0
REDIS_SECONDS: Final = 1.0
"""One command of an operator may take longer than one of a request, but not for ever."""
MAX_BODY: Final = 64 << 10
MAX_AT_ONCE: Final = 8
"""More requests than these, of all plugins' routes together, are refused: they share a process with health."""

RETRY: Final = {"Retry-After": "1"}

Handle = Callable[[web.Request], Awaitable[web.Response]]


class NoRedis(Exception):
    """There is no Redis to ask; the message says why."""


class RedisClient:
    """One client for all routes, made when one is first needed and again where the configuration names another."""

    def __init__(self) -> None:
        self._url = ""
        self._client: Redis | None = None

    async def get(self, table: RedisTable) -> Redis:
        """A client for the Redis of the configuration.

        Raises:
            NoRedis: the embedded server is not running, or the URL cannot be used.
        """
        # The embedded server's socket is asked, which may block for a moment.
        url = await asyncio.to_thread(running_url, table.state_dir) if table.url == "embedded" else table.url
        if url is None:
            raise NoRedis("the embedded server is not running")
        if self._client is None or url != self._url:
            await self.close()
            try:
                self._client, self._url = client(url, max(table.timeout, REDIS_SECONDS)), url
            except ValueError as error:
                raise NoRedis(f"redis.url: {error}") from None
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            with contextlib.suppress(redis.exceptions.RedisError, OSError):
                await self._client.aclose()
            self._client = None


def plugin_routes() -> Iterable[AdminRoutes]:
    """What the built-in plugins' modules `admin` have."""
    return [module.admin for module in built_in_parts("admin").values()]


def mount(app: web.Application, context: Callable[[], Awaitable[Context]]) -> None:
    """Add the routes of all plugins.

    Args:
        context: what each request's handler gets.
    """
    room = asyncio.Semaphore(MAX_AT_ONCE)
    for routes in plugin_routes():
        for path, reading in routes.readings.items():
            app.router.add_get(path, _bounded(_tell(reading, context), room))
        for path, change in routes.changes.items():
            app.router.add_post(path, _bounded(_change(change, context), room))


def _bounded(handle: Handle, room: asyncio.Semaphore) -> Handle:
    async def handle_if_there_is_room(request: web.Request) -> web.Response:
        if room.locked():
            return problem(503, "Too many at once", "Try again shortly.", RETRY)
        async with room:
            return await handle(request)

    return handle_if_there_is_room


def _tell(reading: Reading, context: Callable[[], Awaitable[Context]]) -> Handle:
    async def handle(request: web.Request) -> web.Response:
        async def work() -> Document:
            return await reading(await context(), {name: request.query[name] for name in request.query})

        return await _answer(work)

    return handle


def _change(change: Change, context: Callable[[], Awaitable[Context]]) -> Handle:
    async def handle(request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
        except TimeoutError:
            return problem(408, "Request timeout", "The body did not arrive in time.")

        async def work() -> Document:
            try:
                document = orjson.loads(body)
            except orjson.JSONDecodeError as error:
                raise ValueError(f"the body is no JSON: {error}") from None
            if not isinstance(document, dict):
                raise ValueError("the body is JSON, but no object")
            return await change(await context(), document)

        return await _answer(work)

    return handle


async def _answer(work: Callable[[], Awaitable[Document]]) -> web.Response:
    """What a plugin returns, or why not."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            document = await work()
    except TimeoutError:
        return problem(503, "Took too long", f"There was no answer within {ANSWER_SECONDS:g} s.", RETRY)
    except (NoRedis, redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        logger.warning("admin: Redis cannot be reached: %s", error)
        return problem(503, "Redis cannot be reached", "Try again shortly; /_gateway/health tells more.", RETRY)
    except redis.exceptions.RedisError as error:
        logger.warning("admin: Redis refused a command: %s", error)
        return problem(502, "Redis refused a command", "The gateway's log says which.")
    except ConfigError as error:
        return problem(409, "The configuration is wrong", str(error))
    except ValueError as error:
        return problem(400, "Bad request", str(error))
    except Exception:  # an author's code may raise anything
        logger.exception("admin: a plugin's route failed")
        return problem(500, "Internal error", "The gateway's log tells more.")
    return web.Response(
        body=orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE),
        content_type="application/json",
        headers=NOT_STORED,
    )
