"""What an unsafe request has changed (RFC 9111, section 4.4)."""

from __future__ import annotations

from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from gateway.plugin import Request, Response

# Fields of an answer that name what else the request has changed.
_NAMING: Final = ("Location", "Content-Location")
MAX_URL: Final = 8192
_PORTS: Final = {"http": 80, "https": 443}


def changed_urls(request: Request, response: Response) -> list[tuple[str, str]]:
    """Host and target of what a successful unsafe request has changed: its own URL, and those its answer names.

    Only on its own host: no upstream may empty another's entries.
    """
    found = [(request.host, request.target)]
    base = f"{request.scheme}://{request.host}{request.target}"
    for name in _NAMING:
        value = response.get(name)
        if value is None or len(value) > MAX_URL:
            continue
        try:
            parts = urlsplit(urljoin(base, value.strip()))
            same = _origin(parts) == _origin(urlsplit(base))
        except ValueError:
            continue  # an answer may name what it likes; this is no URL
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if same and (request.host, target) not in found:
            found.append((request.host, target))
    return found


def _origin(parts: SplitResult) -> tuple[object, ...]:
    """Scheme, host and port (RFC 9110, section 4.3.1), and a user's name, which none has. ValueError: no such port."""
    return parts.scheme, parts.username, parts.hostname, parts.port or _PORTS.get(parts.scheme)
