"""Queries as a part of the key: parameters that do not count, and parameters whose order does not.

What the upstream gets is never changed. A key is only simplified where no server could read the query otherwise:
attackers hide a parameter from a cache that the server then finds (`utm_x=1;admin=1`, `%75tm_x`), and what the server
answers would be stored for all who ask without it.

Purges know nothing of these rules: they end the generation of the path too, on which simplified targets hang.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

# A name that every server reads as it stands: no escapes, no `+`, no brackets.
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9._~-]+")
# What must not appear in a value once it is decoded: servers that decode first would find another parameter there.
_SEPARATING: Final = re.compile(rb"[&;#\x00-\x1f\x7f]")
# Names that some servers take for one: PHP reads `a.b` as `a_b`, others do not mind case.
_ALIKE: Final = str.maketrans(".-", "__")
# Longer queries stay as they are.
MAX_QUERY: Final = 8192


@dataclass(frozen=True)
class QueryRule:
    """How targets are simplified for the key.

    Args:
        ignore: names of parameters that the upstream's answers do not depend on, or their beginnings, with `*`.
        sort: the order of parameters with different names does not matter to the upstream.
    """

    ignore: tuple[str, ...] = ()
    sort: bool = False

    def __bool__(self) -> bool:
        return bool(self.ignore) or self.sort

    def __call__(self, target: str) -> str:
        """The target for the key."""
        path, mark, query = target.partition("?")
        if not mark or not self or len(query) > MAX_QUERY or ";" in query:
            return target
        pieces = query.split("&")
        if any(piece[:1] in ("", "=") for piece in pieces):
            return target  # servers differ in what they make of parameters without a name
        kept = [piece for piece in pieces if not self._ignored(piece)]
        if self.sort and all(map(_plain, kept)):
            # Stable: of parameters with one name, the order counts.
            kept.sort(key=lambda piece: piece.partition("=")[0].lower().translate(_ALIKE))
        if len(kept) == len(pieces) and kept == pieces:
            return target
        return f"{path}?{'&'.join(kept)}" if kept else path

    def _ignored(self, piece: str) -> bool:
        name = piece.partition("=")[0]
        return _plain(piece) and any(
            name.startswith(ignored[:-1]) if ignored[-1] == "*" else name == ignored for ignored in self.ignore
        )


AS_IT_IS: Final = QueryRule()


def _plain(piece: str) -> bool:
    name, _, value = piece.partition("=")
    if not _PLAIN_NAME.fullmatch(name):
        return False
    return value.isalnum() or not _SEPARATING.search(unquote_to_bytes(value.encode("utf-8", "surrogateescape")))
