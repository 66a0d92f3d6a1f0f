"""Heads of requests that came before, by their bytes.

Clients send the same bytes again and again: the same path, the same fields, the same token. What such bytes mean need
not be worked out twice, so what was parsed, checked and routed once is kept here, with what plugins have worked out
from it (`Request.notes`). Byte for byte the same, or not at all: two requests that differ in anything share nothing.
"""

from __future__ import annotations

from typing import Final

from gateway.remembered import Recurring
from gateway.request import Head

MAX_HEADS: Final = 4096
# A head weighs some 4 KB with all that hangs on it, so that all of them stay below 20 MB.
MAX_HEAD_BYTES: Final = 2048


class Heads(Recurring[Head]):
    """Raw heads and what they mean. What is put must be all that was received: one whole head and nothing else."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(MAX_HEADS, MAX_HEAD_BYTES)
