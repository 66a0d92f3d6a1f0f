"""The last handler of each chain: a request goes to the API behind the gateway, its answer comes back.

fields.py    which header fields pass, and which the gateway writes itself
pool.py      connections to one upstream
forward.py   the handler: request out, answer in, failures told apart
tunnel.py    what follows a 101: both directions relayed
"""

from gateway.upstream.pool import UpstreamBroken

__all__ = ["UpstreamBroken"]
