"""A shared HTTP cache (RFC 9111) for each identity, over all nodes: `[plugins.cache]` and `gateway cache ...`.

config.py       the keys of `[plugins.cache]`

The rules, as pure functions:

syntax.py       the texts of fields that say something about caching
policy.py       what may be stored and used, and for how long
conditions.py   conditional requests, the clients' and ours
ranges.py       parts of answers
vary.py         fields and cookies in a key
query.py        what of a query counts in a key
early.py        when to refresh what is still fresh
purge_rules.py  what a change purges, as the configuration says
invalidation.py what a change purges in any case
tags.py         what answers can be purged by

A request, in the order of its way:

plugin.py       the plugin: what is asked at once, and the plain hit
facts.py        what of its header matters
body_key.py     its body, in a key
target.py       what it wants, worked out once for each head
keys.py         names of keys: no two different requests share one
wanted.py       what it asks Redis for, prepared for the next one
lookup.py       from it to what is stored for it
serving.py      its way if the answer was not simply there
remains.py      what is served while Redis is away, if it may be
fitting.py      what of an answer it is given: all, parts, 304
answers.py      stored answers for the wire; X-Cache and Cache-Status
purge_method.py `PURGE`

What is stored:

entry.py        as bytes
compress.py     in gzip
store.py        entries, locks and generations in Redis, read through the mirror
generations.py  what answers are made under, and how that ends
purge.py        what is to be purged: for commands, the admin API and requests
hot.py          keys that are read too often for one server

A fetch:

stampede.py     one at a time, in the worker and in the fleet
watch.py        waiting for another worker's
fetch.py        from the upstream into the store
parts.py        the same for a part of it
fetcher.py      what fetches have in common
exchange.py     what is asked of the upstream: all, whether it has changed, or the rest
head.py         a HEAD that goes to the upstream: what it tells of what is stored
tee.py          a large body on its way to its client and into the store

Beside requests, for those who look after it:

explain.py    what the cache makes of a request, and what it has for it
stats.py      what is stored, and how well it does
ranked.py     the ranking of hot keys
admin.py      these and purging on the admin listener
commands/     the same as `gateway cache ...`, and warming
"""

from plugins.cache.plugin import Cache

__all__ = ["Cache"]
