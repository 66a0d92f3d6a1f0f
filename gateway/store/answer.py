"""What a question to Redis gives back, and how it can fail.

RedisError                  Redis answered with an error (wrong type, out of memory, a script's error)
└── RedisDown               Redis did not answer: the link is down, or its queue is full
    └── RedisTimeout        the reply did not come within `redis.timeout`
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any

Answer = Awaitable[Any]
"""A reply that is awaited once: a future that will have it, or a `Known` that has it."""


class RedisError(Exception):
    """Redis answered with an error; its text is the message."""


class RedisDown(RedisError):
    """Redis did not answer: nothing is known about what it holds."""


class RedisTimeout(RedisDown):
    """The reply did not come in time; the command may have been carried out."""


class Known:
    """An answer that is already there: awaiting it does not suspend."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()  # makes this a generator, as __await__ must give an iterator
        return self.value

    def __repr__(self) -> str:
        return f"Known({self.value!r})"
