"""A request that was sent without waiting for anything, and whose answer is told by a callback.

Most requests have no body, meet a kept connection, and get a small plain answer. They need no task: `Upstream.begin`
sends one, the read that brings its answer makes the response of it and calls whoever waits. Whatever turns out
otherwise is taken over by `Upstream.__call__`, in a task.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from gateway.request import Request
from gateway.response import Body, Response
from gateway.store.answer import Reply
from gateway.upstream.connection import UpstreamConnection
from gateway.upstream.heads import AnswerHead


class Asked(Reply):
    """What becomes of the request: a response as its value, or None where somebody must take over.

    Attributes:
        connection: on which it was sent; given back, closed, or taken over: one of these happens always.
        head: as it was sent.
        started: `time.monotonic()`.
    """

    __slots__ = ("_request", "connection", "head", "started")
    __deletable__ = ("_request",)

    def __init__(self, request: Request, connection: UpstreamConnection, head: bytes) -> None:
        super().__init__()
        self._request = request
        self.connection = connection
        self.head = head
        self.started = time.monotonic()  # the loop's clock has whole milliseconds
        connection.begin(without_body=request.method == "HEAD")
        connection.answered = self._answered

    def _answered(self, head: AnswerHead | None, body: bytes) -> None:
        if head is not None:
            self.connection.release()
            self._request.upstream_seconds = time.monotonic() - self.started
            self.value = answered(head, body)
            del self._request  # a circle that only the garbage collector would find
        self._arrived()

    def abandon(self) -> None:
        """Nobody waits any more."""
        if self.value is None:
            self._request.upstream_seconds = time.monotonic() - self.started
            self.connection.discard()

    def __await__(self) -> Generator[Any, None, Response | None]:
        try:
            if not self.ready:
                yield from self._arrival()
        except BaseException:
            self.abandon()
            raise
        response: Response | None = self.value
        return response


def answered(head: AnswerHead, body: Body) -> Response:
    """The upstream's answer as plugins see it."""
    return Response.prebuilt(head.status, head.lines, head.names, body, length=head.length, reason=head.reason)
