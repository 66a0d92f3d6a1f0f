"""Header fields on the command line, as curl takes them."""

from __future__ import annotations

import re
from typing import Annotated, Final

import typer

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

HeaderOption = Annotated[
    list[str] | None,
    typer.Option("-H", "--header", metavar="'NAME: VALUE'", help="A header field that clients send; may be repeated."),
]


def parse_fields(given: list[str] | None) -> list[tuple[str, str]]:
    """Names and values.

    Raises:
        ValueError: one of them is no field; its value, which may be a credential, is not told.
    """
    fields = []
    for number, text in enumerate(given or (), 1):
        name, colon, value = text.partition(":")
        if not colon or not _NAME.fullmatch(name) or not value.isprintable():
            raise ValueError(f"-H number {number}: expected 'Name: value' on one line")
        fields.append((name, value.strip()))
    return fields
