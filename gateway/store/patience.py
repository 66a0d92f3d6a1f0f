"""How long one request waits for Redis, all its questions together.

Each question ends within `redis.timeout`. A request may wait for several, one after the other: then it waits for all of
them no longer than that. What it still waits for when its patience is at its end counts as not answered, for this
request; the reply itself goes its way, to others who wait for it too.

It belongs to the task that answers the request. A task that works for the request's client has it by `share_patience`;
any other one, whoever started it, is in no hurry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any, Final
from weakref import ref

# Weak: the task holds its context, and would be held by it until the collector comes by, with all that it has fetched.
_CURRENT: Final[ContextVar[tuple[Patience, ref[asyncio.Task[Any]]] | None]] = ContextVar("patience", default=None)


class Patience:
    """What is left of it, in seconds."""

    __slots__ = ("left",)

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def __repr__(self) -> str:
        return f"<Patience {self.left:.3f} s>"

    def wait(self, future: asyncio.Future[None]) -> Generator[Any, None, None]:
        """Until the future is done, or nothing is left."""
        if self.left <= 0:
            return
        loop = future.get_loop()
        began = loop.time()
        timer = loop.call_later(self.left, finish, future)
        try:
            yield from future
        finally:
            timer.cancel()
            self.left -= loop.time() - began


def have_patience(seconds: float) -> None:
    """From now on the current task waits for Redis no longer than this, all in all."""
    _belongs(Patience(seconds))


def share_patience() -> None:
    """The current task has the patience of the one that started it, and both use it up."""
    current = _CURRENT.get()
    if current is not None:
        _belongs(current[0])


def end_patience() -> None:
    """The client has its answer: what the current task still does is in no hurry."""
    _CURRENT.set(None)


def patience() -> Patience | None:
    """The current task's; None: it is in no hurry."""
    current = _CURRENT.get()
    return current[0] if current is not None and current[1]() is asyncio.current_task() else None


def _belongs(patience: Patience) -> None:
    task = asyncio.current_task()
    _CURRENT.set(None if task is None else (patience, ref(task)))


def finish(future: asyncio.Future[None]) -> None:
    """Have whoever awaits it go on."""
    if not future.done():
        future.set_result(None)
