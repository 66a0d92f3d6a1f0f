"""Whole heads, out and back, made by the rules of `fields.py` and remembered where the same bytes come again.

A client repeats its head from request to request, and an API answers a thousand requests of a second with a handful
of heads. Both are functions of the bytes they are made from, so equal bytes may share one result:

    Outline      of a request: all that its own head tells, with gaps for the peer and for what plugins have set;
                 kept in `request.notes`, which requests with the same head share
    AnswerHead   of an answer: kept by its bytes in `PlainHeads`, once it has come twice
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from aiohttp import hdrs
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpResponseParser

from gateway.remembered import Recurring
from gateway.request import Request
from gateway.upstream.fields import (
    NOTHING_TOLD,
    Told,
    forwarding_lines,
    named_by_connection,
    response_lines,
    sent_changes,
    sent_name,
    without,
)

# Answers' heads of one upstream that are remembered; most change with `Date`, each second.
MAX_REMEMBERED: Final = 512
# Bytes of a head that is remembered.
MAX_REMEMBERED_BYTES: Final = 4096
# Answers with these statuses have no body, whatever their length says.
NO_BODY: Final = frozenset({204, 304})


# -- out -----------------------------------------------------------------------------------------


class Outline(NamedTuple):
    """A request's head but for what depends on its peer and on the values that plugins have set."""

    key: tuple[Any, ...]
    """What it was made from, but for the fields and..."""
    fields: tuple[tuple[bytes, bytes], ...]
    """...the client's fields."""
    start: bytes
    sent: tuple[bytes, ...]
    """The names in `request.changes` whose lines follow."""
    forwarding: bool
    """Whether there are forwarding fields among the changes."""
    told: Told


class RequestHeads:
    """Makes the heads of the requests to one upstream.

    Args:
        prefix: put in front of each path; without a slash at its end.
        host: the `Host` line to send; None: the client's.
        default_host: the line for a client that sent no `Host` (HTTP/1.0).
        via: this gateway's name in `Via`.
    """

    def __init__(self, *, prefix: str, host: bytes | None, default_host: bytes, via: str) -> None:
        self._prefix = prefix
        self._host = host
        self._default_host = default_host
        self._via = via

    def head(self, request: Request, upgrade: bytes | None = None) -> bytes:
        """A request's head, to its empty line.

        Args:
            upgrade: the `Upgrade` field to send; None: the request stays HTTP.
        """
        changes = request.changes
        trusted = "trusted" in request.state
        # A plugin may have changed any of these.
        key = (request.method, request.target, trusted, *changes)
        plain = request.body is None and upgrade is None
        outline: Outline | None = request.notes.get(self) if plain else None
        if outline is None or outline.key != key or outline.fields is not request.raw_headers:
            outline = self._outline(key, request, trusted, upgrade)
            if plain and request.host and b"host" not in changes and len(outline.start) <= MAX_REMEMBERED_BYTES:
                request.notes[self] = outline
        _, _, start, names, rewritten, told = outline
        peer = request.state["peer"] if trusted else request.client
        forwarding = forwarding_lines(peer, request.scheme, request.host, self._via, told)
        if rewritten:
            forwarding = without(forwarding, changes)
        lines = [start]
        for name in names:
            line = changes[name]
            if line is not None:
                lines.append(line)
        lines += (forwarding, b"\r\n")
        return b"".join(lines)

    def _outline(self, key: tuple[Any, ...], request: Request, trusted: bool, upgrade: bytes | None) -> Outline:
        changes = request.changes
        named = named_by_connection(request.headers)
        prefix = self._prefix if request.target[:1] == "/" else ""
        lines = [f"{request.method} {prefix}{request.target} HTTP/1.1\r\n".encode("utf-8", "surrogateescape")]
        dropped = {None, *changes, *named}
        host = self._host
        if host is None and (host := changes.get(b"host")) is None and not request.host:
            host = self._default_host
        if host is not None:
            lines.append(host)
            dropped.add(b"host")
        for name, value in request.raw_headers:
            if sent_name(name, trusted) not in dropped:
                lines += (name, b": ", value, b"\r\n")
        body = request.body
        if body is not None:
            length = body.length
            lines.append(b"Transfer-Encoding: chunked\r\n" if length is None else b"Content-Length: %d\r\n" % length)
        elif request.method != "GET" and hdrs.CONTENT_LENGTH in request.headers:
            # Some servers answer 411 to a POST that does not say that it is empty.
            lines.append(b"Content-Length: 0\r\n")
        if upgrade is not None:
            lines += (b"Connection: Upgrade\r\nUpgrade: ", upgrade, b"\r\n")
        told = Told.by(request.headers) if trusted else NOTHING_TOLD
        return Outline(key, request.raw_headers, b"".join(lines), *sent_changes(tuple(changes)), told)


# -- back ----------------------------------------------------------------------------------------


class AnswerHead:
    """What the head of an answer says, and its lines as they are passed on.

    Attributes:
        reason: None where it is not one that can be passed on.
        length: the body's, in bytes; None where the head does not tell it.
        size: the same; 0 where it does not.
        should_close: the connection serves no other request.
        lines, names: of the fields that are passed on, the names in lower case.
    """

    __slots__ = ("length", "lines", "names", "reason", "should_close", "size", "status")

    def __init__(self, message: Any, via_line: bytes) -> None:
        """Read the parser's message.

        Raises:
            ValueError: it cannot be passed on: a control character, or a transfer coding that was not asked for.
        """
        headers = message.headers
        self.status: int = message.code
        self.reason: str | None = message.reason if message.reason.isprintable() else None
        self.should_close: bool = message.should_close
        self.lines, self.names = response_lines(message.raw_headers, headers, self.status, via_line)
        length = headers.get(hdrs.CONTENT_LENGTH)
        self.size = int(length) if length is not None else 0
        self.length: int | None = self.size if length is not None else None
        coding = headers.get(hdrs.TRANSFER_ENCODING)
        if coding is not None and (not message.chunked or coding.strip().lower() != "chunked"):
            raise ValueError("a transfer coding that was not asked for")


class PlainHeads:
    """Reads the heads of plain answers: final ones with a body of so many bytes, as nearly all are.

    What it reads is a whole head, apart from the body and from the connection: a function of its bytes.

    Args:
        via_line: added to each.
        limits: of the parser.
    """

    def __init__(self, via_line: bytes, limits: Mapping[str, Any], loop: asyncio.AbstractEventLoop) -> None:
        self._via_line = via_line
        self._parser: HttpResponseParser
        self._new_parser = partial(
            HttpResponseParser, BaseProtocol(loop), loop, 0, response_with_body=False, auto_decompress=False, **limits
        )
        self._parser = self._new_parser()
        # Each newcomer is taken in: those of the last second do not come again.
        self._known: Recurring[AnswerHead] = Recurring(MAX_REMEMBERED, MAX_REMEMBERED_BYTES, admitted=1)

    def read(self, head: bytes) -> AnswerHead | None:
        """The head of a plain answer; None if it is anything else, which the connection's own parser has to tell.

        Args:
            head: the answer's bytes to the first empty line.
        """
        known = self._known.get(head)
        if known is not None or b"chunked" in head:
            return known
        found = self._parse(head)
        if found is None or found.should_close:
            self._parser = self._new_parser()  # it may expect anything now
        if found is not None:
            self._known.put(head, found)
        return found

    def _parse(self, head: bytes) -> AnswerHead | None:
        try:
            messages, upgraded, _ = self._parser.feed_data(head)
            if len(messages) != 1 or upgraded or self._parser.feed_eof() is not None:
                return None
            message = messages[0][0]
            if (
                message.code < 200
                or message.code in NO_BODY
                or message.upgrade
                # The parser takes a bare LF for the end of a line: then the head may have ended before.
                or head.count(b"\n") != len(message.raw_headers) + 2
            ):
                return None
            found = AnswerHead(message, self._via_line)
        except Exception:
            return None
        return found if found.length is not None and not message.chunked else None
