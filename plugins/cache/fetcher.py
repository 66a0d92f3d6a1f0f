"""What the fetches of one cache have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import random

from gateway.plugin import Seldom
from plugins.cache.lookup import Lookup
from plugins.cache.policy import Rules
from plugins.cache.tags import Template

logger = logging.getLogger("gateway.cache")


class Fetcher:
    """What fetches of one plugin have in common.

    Args:
        rules: for answers that say nothing.
        tags: the fields that carry tags.
        max_body: bytes; a longer body is not stored.
        compress_over: bytes from which on a body is stored in gzip; 0: none is.
        patience: seconds; nor is one that takes longer to come.
        clock: seconds since 1970.
        chance: a number between 0 and 1 at each call.
    """

    def __init__(
        self,
        lookup: Lookup,
        *,
        rules: Rules,
        tags: tuple[str, ...],
        templates: tuple[Template, ...] = (),
        max_body: int,
        compress_over: int,
        patience: float,
        clock: Callable[[], float],
        chance: Callable[[], float] = random,
    ) -> None:
        self.lookup = lookup
        self.store = lookup.store
        self.rules = rules
        self.tags = tags
        self.templates = templates
        self.max_body = max_body
        self.compress_over = compress_over
        self.patience = patience
        self.clock = clock
        self.chance = chance
        self._complaint = Seldom()

    def complain(self, error: Exception) -> None:
        """Say that answers cannot be stored, now and then."""
        if self._complaint.due():
            logger.warning("cache: an answer could not be stored: %s", error)
