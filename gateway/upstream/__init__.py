"""The last handler of each chain: a request goes to the API behind the gateway, its answer comes back.

fields.py        which header fields pass, and which the gateway writes itself
heads.py         whole heads, out and back, remembered where the same bytes come again
connection.py    one connection: which bytes are whose answer
pool.py          the connections to one upstream
asked.py         a request that was sent without a task, and its answer
forward.py       the handler: request out, answer in, failures told apart
tunnel.py        what follows a 101: both directions relayed
"""

from gateway.upstream.connection import UpstreamBroken

__all__ = ["UpstreamBroken"]
