"""Names of keys that a deployment may choose, to share them with an application."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def _template(value: str) -> str:
    if value.count("{id}") != 1:
        raise ValueError('expected a name with {id} in it once, such as "{prefix}:session:{id}"')
    if value.startswith("{id}"):
        raise ValueError("something has to stand before {id}: otherwise a client could name any key")
    return value


KeyTemplate = Annotated[str, AfterValidator(_template)]
"""`{id}` stands in it once and not first; `{prefix}` is the `prefix` of `[redis]`."""


def halves(template: str, prefix: str) -> tuple[str, str]:
    """What stands before and behind the id in a key's name."""
    head, _, tail = template.partition("{id}")
    return head.replace("{prefix}", prefix), tail.replace("{prefix}", prefix)
