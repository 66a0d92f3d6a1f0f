"""Checks tokens' signatures. Imported where a key is configured: a worker without one saves 8 MB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

from plugins.token_blacklist.tokens import NotValid, time_in

_UNCHECKED: Final = {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "sub", "jti")}


@dataclass(frozen=True, slots=True)
class Verifier:
    """Checks signatures and claims (RFC 7519, section 4.1).

    Args:
        key: as the algorithms of PyJWT take it.
        algorithms: which ones a token may name.
        audience: a token that names audiences must name one of these; none given: it must name none.
        issuer: who must have issued it; empty: anybody.
        leeway: how far clocks may differ, in seconds.
    """

    key: Any
    algorithms: tuple[str, ...]
    audience: tuple[str, ...] = ()
    issuer: str = ""
    leeway: float = 0.0

    def verify(self, token: str, now: float) -> Mapping[str, Any]:
        """The claims of a token that is valid now.

        Raises:
            NotValid: it is not.
        """
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                self.key,
                algorithms=self.algorithms,
                audience=self.audience or None,
                issuer=self.issuer or None,
                options=_UNCHECKED,  # type: ignore[arg-type]
            )
        except jwt.PyJWTError as error:
            raise NotValid("the token is not valid") from error
        for name in ("exp", "nbf"):
            if name in claims and time_in(claims, name) is None:
                raise NotValid("the token is not valid")
        expires, begins = time_in(claims, "exp"), time_in(claims, "nbf")
        if expires is not None and expires + self.leeway <= now:
            raise NotValid("the token has expired")
        if begins is not None and begins - self.leeway > now:
            raise NotValid("the token is not valid yet")
        return claims


def prepared_key(text: str, algorithms: Sequence[str]) -> Any:
    """A key, parsed once.

    Raises:
        ValueError: it does not fit an algorithm, or is too weak for it.
    """
    key: Any = None
    for name in algorithms:
        algorithm = jwt.get_algorithm_by_name(name)
        try:
            key = algorithm.prepare_key(text)
        except (jwt.InvalidKeyError, ValueError, TypeError) as error:
            raise ValueError(f"the key does not fit {name}: {error}") from None
        if weakness := algorithm.check_key_length(key):
            raise ValueError(f"the key is too weak for {name}: {weakness}")
    return key
