"""What a bearer token says: its id for the blacklist, and, where a key is configured, whose it is.

The id is read without looking at the signature. That lets nobody escape: the payload, and with it the `jti`, is part of
what is signed, so a token with another id is one that whoever verifies it (here, or the upstream) refuses; and a made
up id can only get the request refused that brought it. A token without `jti` goes by the SHA-256 of what its
signature covers, header and payload, and not of all its text: the same signature can be spelled in several ways (with
`=` behind it, or with other bits that base64 throws away), and each would have been another token. For the same reason
an encrypted JWT (RFC 7516) goes by what its parts decode to. Anything else is opaque: the SHA-256 of its text.

Where ids are not hashed, a token without `jti` goes by its text, a JWT as its issuer has spelled it. One that is too
long for a key's name is refused: hashed all the same, it would not meet the key that an application has written.
"""

from __future__ import annotations

import math
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import orjson

MAX_ID: Final = 256
MAX_USER: Final = 256
MAX_TOKEN: Final = 1024

# RFC 6750, section 2.1.
_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*) *", re.IGNORECASE | re.ASCII)
_LOOKS_LIKE_BEARER: Final = re.compile(r"(?:^|,)\s*bearer\b", re.IGNORECASE)
_PLAIN_ID: Final = re.compile(rf"[A-Za-z0-9._~:@+/=-]{{1,{MAX_ID}}}")
_PLAIN_TOKEN: Final = re.compile(rf"[A-Za-z0-9._~+/=-]{{1,{MAX_TOKEN}}}")


class Malformed(ValueError):
    """There is a bearer token, but upstreams may disagree about which."""


class NotValid(ValueError):
    """The token does not verify, or cannot be looked up; the message is for the client."""


def bearer_of(fields: Sequence[str]) -> str | None:
    """The bearer token of a request's `Authorization` fields, or None.

    Raises:
        Malformed: several fields, or one that some would read and others not. Passing it on could mean that the
            upstream takes a token that was not looked at here.
    """
    if len(fields) == 1:
        match = _BEARER.fullmatch(fields[0])
        if match is not None:
            return match[1]
    if any(_LOOKS_LIKE_BEARER.search(field) for field in fields):
        raise Malformed
    return None


def claims_of(token: str) -> Mapping[str, Any] | None:
    """A JWT's payload, not verified; None where the token is none."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = orjson.loads(urlsafe_b64decode(parts[1] + "=="))
    except ValueError:
        return None
    return claims if isinstance(claims, dict) else None


def id_of(token: str, claims: Mapping[str, Any] | None, *, hashed: bool = True) -> str:
    """The id under which a token is revoked: bounded, and harmless as part of a key's name.

    Args:
        hashed: whether the text of a token without `jti` is hashed.

    Raises:
        NotValid: its text is to be the id, and cannot be.
    """
    jti = claims.get("jti") if claims is not None else None
    if isinstance(jti, str) and 0 < len(jti) <= MAX_ID:
        return jti if _PLAIN_ID.fullmatch(jti) else sha256(jti.encode("utf-8", "surrogatepass")).hexdigest()
    if not hashed:
        if not _PLAIN_TOKEN.fullmatch(token):
            raise NotValid(f"a token has at most {MAX_TOKEN} letters, digits and -._~+/= here")
        return _as_issued(token, claims)
    if claims is not None:
        return sha256(token.rpartition(".")[0].encode("utf-8", "surrogateescape")).hexdigest()
    return sha256(_encrypted(token) or token.encode("utf-8", "surrogateescape")).hexdigest()


def _as_issued(token: str, claims: Mapping[str, Any] | None) -> str:
    """A JWT with its base64 as RFC 7515 has it, whatever else would decode to the same; another token as it is."""
    parts = token.split(".")
    if claims is None and (len(parts) != 5 or not _is_object(parts[0])):
        return token
    # A header and what is signed can be spelled in one way only; an encrypted JWT's header is covered likewise.
    first = 2 if claims is not None else 1
    try:
        return ".".join(
            parts[:first]
            + [urlsafe_b64encode(urlsafe_b64decode(part + "==")).decode().rstrip("=") for part in parts[first:]]
        )
    except ValueError:
        return token


def _is_object(part: str) -> bool:
    """Whether a part of a token is a JSON object, as the header of a JWT is."""
    try:
        return isinstance(orjson.loads(urlsafe_b64decode(part + "==")), dict)
    except ValueError:
        return False


def _encrypted(token: str) -> bytes | None:
    """What the five parts of an encrypted JWT decode to; None where the token is none."""
    parts = token.split(".")
    if len(parts) != 5:
        return None
    try:
        return b".".join([urlsafe_b64decode(part + "==") for part in parts])
    except ValueError:
        return None


def time_in(claims: Mapping[str, Any] | None, name: str) -> float | None:
    """A time of the payload (RFC 7519, section 2: seconds since 1970), or None."""
    value = claims.get(name) if claims is not None else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def user_in(claims: Mapping[str, Any]) -> str | None:
    """`sub`, where it can stand for a user."""
    user = claims.get("sub")
    return user if isinstance(user, str) and 0 < len(user) <= MAX_USER else None
