"""The body of a request as a part of the key, for searches that are sent by POST or QUERY (RFC 10008, section 2.7).

A JSON document has one key in all its spellings: white space, the order of members, escapes. Numbers stay as they are
spelled (1 is not 1.0 to everybody, and none is too large). A document that servers might read in two ways, because
names of its members are alike, and all other types, have the key of their bytes.
"""

from __future__ import annotations

import json
import re
import unicodedata
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Final

from gateway.plugin import Request
from plugins.cache.keys import DIGEST_BYTES

_JSON: Final = re.compile(
    r'application/(?:json|[!#$&^_.+a-z0-9-]+\+json)(?:[ \t]*;[ \t]*charset="?utf-8"?)?', re.IGNORECASE
)
# Fields that say how to read the body.
_TELLING: Final = frozenset({b"content-type", b"content-encoding"})
NUL_ESCAPE: Final = rb"\u0000"
_DASHES: Final = {ord("_"): None, ord("-"): None}


class _Ambiguous(ValueError):
    """Two servers might read the document in two ways."""


async def body_key(request: Request, limit: int) -> str | None:
    """A text that only bodies which mean the same share; None for a body that is too long. It can still be forwarded.

    Args:
        limit: bytes.

    Raises:
        BodyTooLarge, BodyTimeout, BodyBroken: the client's body cannot be read.
    """
    body = b"" if request.body is None else await request.body.peek(limit)
    return None if body is None else key_of(body, _type(request))


def key_of(body: bytes, content_type: str | None) -> str:
    """The same for a body that is there.

    Args:
        content_type: None where it is not known, or not the whole truth: the body is encoded.
    """
    kind, text = "raw", body
    if content_type is not None and _JSON.fullmatch(content_type.strip(" \t")):
        # Otherwise the upstream will say what is wrong with it.
        with suppress(ValueError, RecursionError):
            kind, text = "json", canonical(body)
    return f"{kind}:{blake2b(text, digest_size=DIGEST_BYTES).hexdigest()}"


def canonical(document: bytes) -> bytes:
    """Bytes that two JSON documents share only if they are the same document.

    Raises:
        ValueError: it is not JSON in UTF-8 (RFC 8259), or ambiguous.
        RecursionError: it is too deep.
    """
    if NUL_ESCAPE in document:
        raise _Ambiguous("a text that ends early for some servers")
    # No text in it has a NUL, then: what begins with one is a number.
    number = "\0".__add__
    found = json.loads(
        document.decode(),
        object_pairs_hook=_members,
        parse_int=number,
        parse_float=number,
        parse_constant=_refuse_constant,
    )
    return json.dumps(found, sort_keys=True, separators=(",", ":")).encode()


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({_alike(name) for name, _ in pairs}) != len(pairs):
        raise _Ambiguous("members with names that are alike")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _alike(name: str) -> str:
    """The same for names that some server takes for one: Go does not mind case, protobuf reads `a_b` as `aB`."""
    if name.isascii() and name.isalnum():
        return name.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).translate(_DASHES)


def _type(request: Request) -> str | None:
    """The media type of a body that is as its type says."""
    if not _TELLING.isdisjoint(request.changes):
        return None
    found = [
        (name, value)
        for name, value in request.raw_headers
        if len(name) < 20 and name.lower().replace(b"_", b"-") in _TELLING
    ]
    if len(found) != 1 or found[0][0].lower() != b"content-type":
        return None
    return found[0][1].decode("utf-8", "surrogateescape")
