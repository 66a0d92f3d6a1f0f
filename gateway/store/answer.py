"""What a question to Redis gives back, and how it can fail.

RedisError                  Redis answered with an error (wrong type, out of memory, a script's error)
└── RedisDown               Redis did not answer: the link is down, or its queue is full
    └── RedisTimeout        the reply did not come within `redis.timeout`

Answer
├── Known                   there already: from the mirror, or from this process' own state
├── Down                    will not come
└── Reply                   will come, or fail, within `redis.timeout`
    └── All                 several as one

A `Reply` is lighter than a future: nothing is scheduled for one that nobody awaits, and who has registered with `then`
is called straight from the read that brought the reply.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gateway.store.link import Link

from mypy_extensions import mypyc_attr

from gateway.store.patience import finish, patience

logger = logging.getLogger("gateway.redis")


class RedisError(Exception):
    """Redis answered with an error; its text is the message."""


class RedisDown(RedisError):
    """Redis did not answer: nothing is known about what it holds."""


class RedisTimeout(RedisDown):
    """The reply did not come in time; the command may have been carried out."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Answer:
    """An answer to a question. Await it, any number of times, for its value.

    Attributes:
        ready: whether `value` or `error` tell already.
        value: the reply; None as long as there is none.
        error: why there is none; awaiting the answer raises it.
        bulky: it may be large, and come long after others.
    """

    __slots__ = ("error", "ready", "value")

    bulky = False

    def __init__(self, value: Any = None, error: RedisError | None = None, *, ready: bool = True) -> None:
        self.ready = ready
        self.value: Any = value
        self.error: RedisError | None = error

    def then(self, callback: Callable[[Answer], None]) -> None:
        """Call this once the answer is ready: at once, or from the read that brings it."""
        callback(self)

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()  # makes this a generator, as __await__ must give an iterator
        if self.error is not None:
            raise self.error
        return self.value


class Known(Answer):
    """An answer that is already there: awaiting it does not suspend."""

    __slots__ = ()

    def __init__(self, value: Any) -> None:
        self.ready = True
        self.value = value
        self.error = None

    def __repr__(self) -> str:
        return f"Known({self.value!r})"


class Down(Answer):
    """An answer that will not come: awaiting it raises."""

    __slots__ = ()

    def __init__(self, error: RedisError) -> None:
        super().__init__(None, error)


class _Several:
    """Callbacks as one: most replies have one asker, a read may have many."""

    __slots__ = ("callbacks",)

    def __init__(self, *callbacks: Callable[[Answer], None]) -> None:
        self.callbacks = [*callbacks]

    def __call__(self, answer: Answer) -> None:
        for callback in self.callbacks:
            try:
                callback(answer)
            except Exception:
                logger.exception("redis: handling a reply failed")


class Waiting(Protocol):
    """Whoever waits for a reply; see `Reply`."""

    def settle(self, reply: Any) -> None: ...
    def refuse(self, error: str, link: Link, deadline: float) -> None: ...
    def fail(self, error: RedisDown) -> bool: ...


@mypyc_attr(allow_interpreted_subclasses=True)
class Reply(Answer):
    """A reply that is on its way. A link calls `settle`, `refuse` or `fail`; what comes late is dropped."""

    __slots__ = ("_callback",)

    def __init__(self) -> None:
        super().__init__(ready=False)
        self._callback: Callable[[Answer], None] | None = None

    def __repr__(self) -> str:
        state = "pending" if not self.ready else repr(self.error or self.value)
        return f"<{type(self).__name__} {state}>"

    def settle(self, reply: Any) -> None:
        """The server's reply has come."""
        if not self.ready:
            self.value = reply
            self._arrived()

    def refuse(self, error: str, link: Link, deadline: float) -> None:
        """The server's reply has come, and it is an error.

        Args:
            link: whence it came; who asks once more may have to ask there.
            deadline: until when, by the loop's clock, whoever waits is to be told something.
        """
        if not self.ready:
            self.error = RedisError(error)
            self._arrived()

    def fail(self, error: RedisDown) -> bool:
        """No reply will come; whether anybody still waited for one."""
        if self.ready:
            return False
        self.error = error
        self._arrived()
        return True

    def _arrived(self) -> None:
        self.ready = True
        callback, self._callback = self._callback, None
        if callback is not None:
            try:
                callback(self)
            except Exception:
                # Whatever an asker does wrong, the replies behind this one belong to others.
                logger.exception("redis: handling a reply failed")

    def then(self, callback: Callable[[Answer], None]) -> None:
        if self.ready:
            callback(self)
        elif self._callback is None:
            self._callback = callback
        elif type(self._callback) is _Several:
            self._callback.callbacks.append(callback)
        else:
            self._callback = _Several(self._callback, callback)

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.ready:
            hurry = patience()
            if hurry is None:
                yield from self._arrival()
            else:
                yield from hurry.wait(self._arrival())
                if not self.ready:
                    raise RedisTimeout("Redis has taken too long for all that this request wants to know")
        if self.error is not None:
            raise self.error
        return self.value

    def _arrival(self) -> asyncio.Future[None]:
        """A future that is done once this is ready."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.then(lambda _: finish(future))
        return future


class Within(Reply):
    """Another answer, waited for no longer than so many seconds; ready in any case then, while that one may not be."""

    __slots__ = ("_timer",)

    def __init__(self, answer: Answer, seconds: float) -> None:
        super().__init__()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._come)
        answer.then(self._come)

    def _come(self, answer: Answer | None = None) -> None:
        if not self.ready:
            self._timer.cancel()
            self._arrived()


class All(Reply):
    """Several answers as one: the list of their values, or the first error among them."""

    __slots__ = ("_answers", "_left")

    bulky = True

    def __init__(self, answers: Sequence[Answer]) -> None:
        super().__init__()
        self._answers = answers
        pending = [answer for answer in answers if not answer.ready]
        self._left = len(pending)
        for answer in pending:
            answer.then(self._one)
        if not pending:
            self._complete()

    def _one(self, answer: Answer) -> None:
        self._left -= 1
        if not self._left:
            self._complete()

    def _complete(self) -> None:
        for answer in self._answers:
            if answer.error is not None:
                self.error = answer.error
                break
        else:
            self.value = [answer.value for answer in self._answers]
        self._arrived()
