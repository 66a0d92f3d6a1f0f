"""The gateway's own messages: on standard error, one line each."""

from __future__ import annotations

import logging
from typing import Final

FORMAT: Final = "%(asctime)s %(levelname)-7s %(message)s"


def configure_logging(level: str) -> None:
    """Send messages of `log.level` and above to standard error; again with another level after a reload."""
    root = logging.getLogger()
    if not root.handlers:
        logging.basicConfig(format=FORMAT)
    root.setLevel(level.upper())
    # asyncio's own messages at info and below are about its selector.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
