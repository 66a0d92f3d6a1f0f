"""What the cache makes of a request, and what it has for it: for `gateway cache explain` and the admin listener.

It is found by the code that workers run (`Targets`, `Address`, `decode`, `judge`), from what Redis has now. Nothing is
sent to the upstream, and the plugins before the cache do not see the request: whom they would find it to speak for has
to be said.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.console import Context, Document, without_garbage
from gateway.plugin import Request, users_of
from plugins.cache import policy
from plugins.cache.entry import Entry, Index, Stored, Uncacheable, decode
from plugins.cache.fitting import has
from plugins.cache.generations import SOFT, VALID, VOID, Standing, purged_at, softened, standing
from plugins.cache.keys import Address, Place, everything, of_path, of_route, of_tag, of_url, of_user
from plugins.cache.plugin import Cache
from plugins.cache.target import NOT_READ, Target, Targets
from plugins.cache.vary import selecting

# Why the cache has nothing to do with a request: the words that `Cache-Status` has for it, and those for people.
BYPASSES: Final = {
    "fwd=method": "neither GET, HEAD nor one of methods = [...]",
    NOT_READ: "its answer is kept by its body, which was not given",
    "fwd=bypass; detail=body-too-long": "its body is longer than max_key_body",
    "fwd=bypass; detail=body": "it has a body",
    "fwd=bypass; detail=condition": "it has a condition, and is neither GET, HEAD nor QUERY",
    "fwd=bypass; detail=upgrade": "it asks for another protocol",
    "fwd=bypass; detail=precondition": "it has a condition that only the upstream can judge",
    "fwd=request; detail=no-store": "its own Cache-Control says no-store",
    "fwd=bypass; detail=no-identity": 'scope = "user" keeps nothing for requests that speak for nobody',
}
DESCRIBED: Final = ("etag", "last-modified", "content-type", "cache-control")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to explain.

    Args:
        url: as clients see it.
        fields: the header fields that clients send.
        body: what they send behind these; None: nothing.
        user: whom a plugin before the cache finds it to speak for.
    """

    url: str
    method: str = "GET"
    fields: Sequence[tuple[str, str]] = ()
    body: bytes | None = None
    user: str | None = None


class Found:
    """What lies at a place.

    Args:
        place: where.
        raw: as it lies in Redis.
        left: milliseconds until Redis drops it.
        lock: milliseconds until the lock beside it ends; none, if negative.
    """

    def __init__(self, place: Place, raw: bytes | None, left: int, lock: int) -> None:
        self.place = place
        self.bytes = len(raw or b"")
        self.left = left / 1000
        self.lock = lock / 1000
        self.broken = ""
        self.stored: Stored | None = None
        try:
            self.stored = decode(raw)
        except ValueError as error:
            self.broken = str(error)

    def __repr__(self) -> str:
        return f"<Found {self.stored!r} at {self.place!r}>"


async def explain(context: Context, asked: Asked) -> Document:
    """All there is to say.

    Raises:
        ValueError: it is no request that a worker would take.
        redis.exceptions.RedisError: Redis cannot tell.
    """
    request = context.request(asked.method, asked.url, asked.fields, asked.body)
    table = request.route.table
    told: Document = {"url": asked.url, "method": request.method, "route": None, "cache": None, "key": None}
    told |= {"bypass": None, "stored": None, "generations": [], "lock": None}
    if not any(table is route for route in context.config.routes):
        return told | {"verdict": "no route takes this host, path and method: the gateway refuses it itself"}
    told |= {"route": table.label, "chain": [*table.plugins, table.upstream]}
    caches = {plugin.name: plugin for plugin in context.plugins(Cache)}
    names = [name for name in table.plugins if name in caches and context.config.plugins[name].enabled]
    if not names:
        return told | {"verdict": f"no cache is in the chain of route {table.label}: each request goes to the upstream"}
    plugin = caches[names[0]]
    told["cache"] = plugin.name
    told["before_cache"] = list(table.plugins[: table.plugins.index(plugin.name)])
    if asked.user is not None:
        request.speaks_for(asked.user)
    targets = plugin.targets(context)
    target = targets.target(request, request.identity, unknown=False)
    if target.unread and asked.body is not None:
        target = await targets.with_body(request, target)
    told["key"] = key_of(context, target, targets, request, plugin)
    if target.bypass is not None:
        told["bypass"] = target.bypass
        return told | {"verdict": f"BYPASS: {BYPASSES.get(target.bypass, target.bypass)}"}
    return told | await _stored(context, target, request, time.time())


def key_of(context: Context, target: Target, targets: Targets, request: Request, plugin: Cache) -> Document:
    """What the key is made of. Of credentials only the names are told."""
    who: tuple[str, ...] = target.who
    whose = list(who[1::2])
    if who[:1] == ("identity",):
        whose = [f"identity {', '.join(users_of(who[1]))}", *who[2::2]]
    return {
        "name": target.own.entry.decode(),
        "digest": target.own.digest,
        "of": {
            "cache": plugin.name,
            "route": request.route.name,
            "upstream": context.upstream(request.route.table.upstream),
            "scheme": request.scheme,
            "host": request.host,
            "target": targets.query(request.target),
            "who": whose,
            "steering": list(target.facts.steering[::2]),
            "fields": list(plugin.config.key_headers),
            "cookies": list(plugin.config.key_cookies),
            "body": ["the body"] if target.bypass is None and request.method in plugin.config.methods else [],
        },
    }


# -- what is stored ------------------------------------------------------------------------------------


async def look(context: Context, place: Place) -> Found:
    """What lies at a place now."""
    # One key a command: they need not lie in one slot.
    pipeline = context.redis.pipeline(transaction=False)
    pipeline.get(place.entry)
    pipeline.pttl(place.entry)
    pipeline.pttl(place.lock)
    raw, left, lock = await pipeline.execute()
    return Found(place, raw, left, lock)


async def _look_at(context: Context, address: Address, target: Target, request: Request) -> tuple[Found, Document]:
    """What lies at an address, or at the variant of it."""
    place: Place = address
    found = await look(context, place)
    told: Document = {}
    if isinstance(found.stored, Index) and found.stored.names:
        names = found.stored.names
        told["varies_on"] = {name: request.headers.getall(name, []) for name in names}
        place = address.variant(names, selecting(request, names, request.changes))
        told["variant"] = {"name": place.entry.decode(), "digest": place.digest}
        found = await look(context, place)
    if found.stored is None and target.facts.ranges:
        found = await look(context, place.part)
    return found, told


async def _stored(context: Context, target: Target, request: Request, now: float) -> Document:
    address = target.own
    found, told = await _look_at(context, address, target, request)
    if not isinstance(found.stored, Entry) and target.common is not None:
        elsewhere, more = await _look_at(context, target.common, target, request)
        if isinstance(elsewhere.stored, Entry) and elsewhere.stored.common:
            address, found, told = target.common, elsewhere, more
            told["for_all"] = {"name": address.entry.decode(), "digest": address.digest}
        elif not isinstance(found.stored, Uncacheable) and "variant" in more:
            told = more
    told["lock"] = {"held": found.lock > 0, "ends_in": max(0.0, found.lock)}
    fetched = "; a worker fetches it right now" if found.lock > 0 else ""
    if found.broken:
        return told | {"verdict": f"MISS: what is stored cannot be used ({found.broken}){fetched}"}
    stored = found.stored
    if isinstance(stored, Uncacheable):
        ends_in = _left(stored.until, now)
        told["stored"] = {"kind": "mark", "bytes": found.bytes, "ends_in": ends_in}
        return told | {"verdict": f"MISS: the answer could not be stored; for {ends_in:g} s nobody waits for another's"}
    if not isinstance(stored, Entry):
        what = "nothing is stored for these field values" if "variant" in told else "nothing is stored"
        return told | {"verdict": f"MISS: {what}{fetched}"}
    told["stored"] = described(stored, found, now)
    told["generations"], values = await _generations(context, address, target, request, stored)
    left = standing(stored, values)
    told["stored"]["purged"] = {VALID: None, SOFT: "softly", VOID: "yes"}[left]
    if left is SOFT:
        stored = softened(stored, purged_at(values), now)
    return told | {"verdict": _verdict(stored, target, left, now) + fetched}


def described(entry: Entry, found: Found, now: float) -> Document:
    """A stored answer. All spans are seconds from now; what is over is 0."""
    plan, fields = entry.plan, entry.fields()
    told: dict[str, Any] = {"kind": "answer", "status": entry.status, "age": round(max(0.0, now - plan.born), 1)}
    told |= {
        "fresh_for": _left(plan.expires, now),
        "stale_while_revalidate_for": _left(plan.stale_until, now),
        "stale_if_error_for": _left(plan.error_until, now),
        "kept_for": round(max(0.0, found.left), 1),
        "bytes": found.bytes,
        "body_bytes": len(entry.body),
        "encoding": entry.coding or None,
        "part": entry.part,
        "fetched_in": round(entry.cost, 3),
        "tags": list(entry.tags),
        "vary": list(plan.vary),
    }
    return told | {name.replace("-", "_"): fields.get(name) for name in DESCRIBED}


def _left(until: float, now: float) -> float:
    return round(max(0.0, until - now), 1)


async def _generations(
    context: Context, address: Address, target: Target, request: Request, entry: Entry
) -> tuple[list[Document], list[bytes | None]]:
    """What an answer hangs on, and the values of these generations."""
    prefix = context.prefix
    meant = {
        everything(prefix): "everything",
        of_route(prefix, request.route.name): f"route {request.route.name}",
        of_url(prefix, request.host, request.target): "this URL",
        of_path(prefix, request.host, request.target): "this path",
    }
    users = [] if target.identity is None else users_of(target.identity)
    meant |= {of_user(prefix, user): f"user {user}" for user in users}
    meant |= {of_tag(prefix, tag): f"tag {tag}" for tag in entry.tags}
    names = [*address.generations, *[of_tag(prefix, tag) for tag in entry.tags]]
    pipeline = context.redis.pipeline(transaction=False)
    for name in names:
        pipeline.get(name)
    values: list[bytes | None] = without_garbage(await pipeline.execute(raise_on_error=False))
    told = [
        {"of": meant.get(name, name.decode()), "there": value is not None}
        for name, value in zip(names, values, strict=True)
    ]
    return told, values


def _verdict(entry: Entry, target: Target, left: Standing, now: float) -> str:
    """What a request would get."""
    if left is VOID:
        return "MISS: what is stored was purged"
    verdict = policy.judge(entry.plan, target.facts.asked, now)
    if entry.part is not None and not (verdict == policy.FRESH and has(target.facts, entry)):
        return "MISS: only a part is stored, not the one that is asked for or no longer fresh"
    if verdict == policy.FRESH:
        return f"HIT: fresh for another {entry.plan.expires - now:.0f} s"
    if verdict == policy.STALE:
        return "STALE: it may be served while a fresh one is fetched"
    if verdict == policy.RELOAD:
        return "MISS: what is stored is fresh, but the request wants a newer one"
    why = "was purged softly" if left is SOFT else "is no longer fresh"
    return f"MISS: what is stored {why}; it may be revalidated, or served in place of an error"
