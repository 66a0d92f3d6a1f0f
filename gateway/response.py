"""The answer to a request, as plugins see it.

An answer from the upstream or from the mirror carries its header lines as bytes that are
already right for the wire (`head`). Most answers leave as they came, so the lines are only
taken apart when somebody asks for `headers`; `set()` on such an answer stays cheap.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Mapping
from http import HTTPStatus
from typing import Any, Final, Protocol

import orjson
from multidict import CIMultiDict

REASONS: Final = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    414: "URI Too Long",
    422: "Unprocessable Content",
}

# Outcomes: how a request ended, in one word (log, metrics, Cache-Status).
HIT: Final = "hit"
STALE: Final = "stale"
MISS: Final = "miss"
PASS: Final = "pass"
REFUSED: Final = "refused"
FAILED: Final = "failed"
OUTCOMES: Final = (HIT, STALE, MISS, PASS, REFUSED, FAILED)


class Stream(Protocol):
    """A body that is not held whole: pieces as they come, then `aclose()`, always."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None: ...


class Tunnel(Protocol):
    """What follows a 101: both directions are relayed until one side ends."""

    async def run(self, client: Any) -> None: ...

    async def aclose(self) -> None: ...


Body = bytes | Stream | Tunnel

_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Response:
    """Status, headers and body.

    Args:
        status: the status code.
        headers: names and values; `Content-Length`, `Transfer-Encoding` and `Connection` are the
            server's business and are not to be given here.
        body: bytes, or a stream of bytes.
        length: the body's length in bytes where it is known and `body` does not tell: of a stream,
            or of what a HEAD or 304 leaves out.
    """

    __slots__ = ("_added", "_extra", "_head", "_headers", "_names", "body", "length", "outcome", "reason", "status")

    def __init__(
        self,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        *,
        length: int | None = None,
        outcome: str = PASS,
    ) -> None:
        self.status = status
        self.reason: str | None = None
        self.body = body
        self.length = length
        self.outcome = outcome
        self._headers: CIMultiDict[str] | None = None if headers is None else CIMultiDict(headers)
        # Where that is None: whole lines and the names in them, and lines behind those and theirs.
        self._head = b""
        self._names: Collection[bytes] = ()
        self._extra: list[bytes] | None = None
        self._added: list[bytes]  # there once `_extra` is

    @staticmethod
    def prebuilt(
        status: int,
        head: bytes,
        names: Collection[bytes],
        body: Body,
        *,
        length: int | None = None,
        outcome: str = PASS,
        reason: str | None = None,
    ) -> Response:
        """An answer whose header lines are bytes already.

        Args:
            head: whole lines, each `Name: value\\r\\n`, without a hop-by-hop field or `Content-Length`.
            names: the lower-cased names in `head`.
        """
        self = Response(status, None, body, length=length, outcome=outcome)
        self.reason = reason
        self._head = head
        self._names = names
        return self

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.outcome}>"

    @property
    def headers(self) -> CIMultiDict[str]:
        """The header fields, to read and to change. On a prebuilt answer this parses them: see `set`."""
        if self._headers is None:
            self._headers = CIMultiDict(split_head(self.head()))
            self._head, self._names, self._extra = b"", (), None
        return self._headers

    def get(self, name: str) -> str | None:
        """The first value of a field, or None."""
        if self._headers is None and not self.has(name.lower().encode()):
            return None
        return self.headers.get(name)

    def has(self, lower: bytes) -> bool:
        """Whether the field with this lower-cased name is there."""
        if self._headers is not None:
            return lower.decode() in self._headers
        return lower in self._names or (self._extra is not None and lower in self._added)

    def set(self, name: str, value: str) -> None:
        """Set a field, replacing what it was. Cheap on a prebuilt answer that did not have it.

        Raises:
            ValueError: a name or value has a control character (it could end the header).
        """
        if self._headers is not None:
            self._headers[name] = value
        else:
            self.set_line(name.lower().encode(), header_line(name, value))

    def set_line(self, lower: bytes, line: bytes) -> None:
        """`set` for the hot path: the lower-cased name and the whole line, already checked."""
        if self._headers is None and lower not in self._names:
            if self._extra is None:
                self._extra, self._added = [line], [lower]
                return
            if lower not in self._added:
                self._extra.append(line)
                self._added.append(lower)
                return
        ((name, value),) = split_head(line)
        self.headers[name] = value

    def set_lines(self, names: frozenset[bytes], lines: bytes) -> None:
        """`set_line` for several fields at once.

        Args:
            names: the lower-cased names in `lines`.
        """
        if self._headers is None and names.isdisjoint(self._names):
            if self._extra is None:
                self._extra, self._added = [lines], [*names]
                return
            if names.isdisjoint(self._added):
                self._extra.append(lines)
                self._added.extend(names)
                return
        for name, value in split_head(lines):
            self.headers[name] = value

    def remove(self, name: str) -> None:
        """Remove all fields of a name; nothing happens where there is none."""
        if self._headers is not None or self.has(name.lower().encode()):
            self.headers.popall(name, None)

    def lines(self) -> tuple[bytes, ...]:
        """`head` in pieces, for who joins them with more.

        Raises:
            ValueError: as `head`.
        """
        if self._headers is not None:
            return (self.head(),)
        return (self._head,) if self._extra is None else (self._head, *self._extra)

    def head(self) -> bytes:
        """The header lines for the wire, without the final empty line.

        Raises:
            ValueError: a name or value has a control character (it could end the header).
        """
        if self._headers is not None:
            return b"".join([header_line(name, value) for name, value in self._headers.items()])
        return self._head if self._extra is None else b"".join((self._head, *self._extra))


def header_line(name: str, value: str) -> bytes:
    """One header line, with its CRLF.

    Raises:
        ValueError: a name or value has a control character (RFC 9110, section 5.5).
    """
    # isprintable() answers in C for nearly all; a tab and undecodable bytes are legal and are looked at closely.
    if not (name.isprintable() and value.isprintable()) and _CONTROL.search(name + value):
        raise ValueError(f"header {name!r}: a control character in a name or value would split the header")
    return f"{name}: {value}\r\n".encode("utf-8", "surrogateescape")


def split_head(head: bytes) -> list[tuple[str, str]]:
    """Header lines back to names and values: the reverse of `header_line`."""
    lines = head.decode("utf-8", "surrogateescape").split("\r\n")
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines if line)]


def problem(status: int, title: str, detail: str = "", *, kind: str = "about:blank", **more: Any) -> Response:
    """A problem document (RFC 9457), never to be cached by others.

    Args:
        status: the status code.
        title: one line that is the same each time for this kind of problem.
        detail: what this caller can do about it; nothing internal.
        kind: the problem type's URI.
        more: further members.
    """
    document: dict[str, Any] = {"type": kind, "title": title, "status": status}
    if detail:
        document["detail"] = detail
    document.update(more)
    headers = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
    return Response(status, headers, orjson.dumps(document), outcome=FAILED if status >= 500 else REFUSED)
