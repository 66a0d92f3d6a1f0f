"""Revoked bearer tokens: `[plugins.token_blacklist]` and `gateway token ...`."""

from plugins.token_blacklist.plugin import TokenBlacklist

__all__ = ["TokenBlacklist"]
