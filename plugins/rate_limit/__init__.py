"""Limits how often a client may ask, exactly and across all nodes: `[plugins.rate_limit]`.

limits.py           "100/minute" -> Limit
who.py              request -> whom it is counted for
sliding_window.lua  the two algorithms, in Redis
token_bucket.lua
local.py            the same two in this process, for the time without Redis
settling.py         what passed without Redis is told to it when it is back
settle_window.lua
settle_bucket.lua
plugin.py           asks, refuses, tells the client where it stands
"""

from plugins.rate_limit.plugin import RateLimit

__all__ = ["RateLimit"]
