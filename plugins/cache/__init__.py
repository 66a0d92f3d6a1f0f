"""A shared HTTP cache (RFC 9111) for each identity, over all nodes: `[plugins.cache]` and `gateway cache ...`.

policy.py     what may be stored and used, as pure functions
facts.py      what of a request matters
keys.py       names of keys: no two different requests share one
query.py      what of a query counts in a key
vary.py       fields and cookies in a key
body_key.py   bodies in a key
entry.py      what is stored, as bytes
store.py      entries, locks and generations in Redis, read through the mirror
target.py     what a request wants, worked out once for each head
lookup.py     from a request to what is stored for it
fetch.py      from the upstream into the store
tee.py        a large body on its way to its client and into the store
stampede.py   one fetch at a time, in the worker and in the fleet
early.py      when to refresh what is still fresh
hot.py        keys that are read too often for one server
generations.py  what answers are made under, and how that ends
purge.py      what is to be purged: for commands, the admin API and requests
purge_method.py  `PURGE`
rules.py      what a change purges
tags.py       what answers can be purged by
answers.py    stored answers for the wire; X-Cache and Cache-Status
plugin.py     the flow of a request

Beside requests, for those who look after it:

explain.py    what the cache makes of a request, and what it has for it
stats.py      what is stored, and how well it does
ranked.py     the ranking of hot keys
admin.py      these and purging on the admin listener
commands/     the same as `gateway cache ...`, and warming
"""

from plugins.cache.admin import admin
from plugins.cache.commands import commands
from plugins.cache.plugin import Cache

__all__ = ["Cache", "admin", "commands"]
