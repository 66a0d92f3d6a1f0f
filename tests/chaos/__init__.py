"""What clients of the API notice of a Redis that is killed, stopped, emptied, moved, slowed down or cut off.

Two gateways, as processes, stand between a steady load and an API. While something happens to their Redis, each
answer is counted and looked at: was it right, whose was it, how old, how late? `python -m tests.chaos` does this for
all that can happen, and prints a table; `test_chaos.py` asserts the most important lines of it.

    load.py        the clients, the API, and the application that begins sessions and revokes tokens
    stage.py       Redis in its topologies, and the gateways before it
    scenarios.py   what happens
    findings.py    what the answers say
    report.py      the table
"""
