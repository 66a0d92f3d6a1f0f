"""A Redis-aware reverse proxy."""

from importlib.util import find_spec


def translated() -> bool:
    """Whether the hot path runs as C extensions, or as it stands in the files (see setup.py)."""
    found = find_spec("gateway.request")
    return found is not None and not str(found.origin).endswith(".py")
