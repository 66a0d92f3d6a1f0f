"""What is said now and then only: whatever happens often, and clients may bring about, must not fill the log."""

from __future__ import annotations

import time
from typing import Final

COMPLAINT_PAUSE_SECONDS: Final = 10.0


class Seldom:
    """One complaint, which is made at most once in `COMPLAINT_PAUSE_SECONDS`."""

    __slots__ = ("_quiet_until",)

    def __init__(self) -> None:
        self._quiet_until = float("-inf")

    def due(self) -> bool:
        """Whether it is to be made now. Whoever is told so makes it."""
        now = time.monotonic()
        if now < self._quiet_until:
            return False
        self._quiet_until = now + COMPLAINT_PAUSE_SECONDS
        return True
