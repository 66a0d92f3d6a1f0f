"""One fetch for a missing key, in the worker and in the fleet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import redis.asyncio
from aiohttp import web
from multidict import CIMultiDict

from gateway.plugin import RedisDown, Response
from plugins.cache.entry import Entry, Stored
from plugins.cache.keys import Address, Keys
from plugins.cache.policy import Plan, Rules, plan
from plugins.cache.purge import Purge
from plugins.cache.stampede import AGAIN, FETCHED, FOUND, Flights, Handover, Landing
from plugins.cache.store import Store
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, eventually
from tests.plugins.cache.conftest import Client, Clock

Say = Callable[..., None]
CACHE: dict[str, Any] = {"plugins": {"cache": {}}}
PLAIN: dict[str, Any] = {**CACHE, "redis": {"mirror": {"max_bytes": 0}}}


def with_cache(**keys: Any) -> dict[str, Any]:
    return {"plugins": {"cache": keys}}


async def lock_of(node: Gateway, client: redis.asyncio.Redis) -> bytes:
    """The one lock there is."""
    await eventually(lambda: client.keys("gateway:lock:*"))
    (name,) = await client.keys("gateway:lock:*")
    return name  # type: ignore[no-any-return]


@pytest.mark.parametrize("config", [CACHE, PLAIN], ids=["mirror", "no mirror"])
async def test_two_hundred_requests_over_two_nodes_make_one_fetch(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, config: dict[str, Any]
) -> None:
    nodes = [await gateway(config), await gateway(config)]

    async def answer(request: web.Request) -> web.Response:
        # Not before all are there, however slow the machine is; then some time for those that came last to join.
        await eventually(lambda: sum(node.worker.server.in_flight for node in nodes) == 200, within=4)
        await asyncio.sleep(0.2)
        return web.Response(text="once", headers={"Cache-Control": "max-age=60"})

    upstream.answer("/a", answer)
    got = await asyncio.gather(*[ask(nodes[number % 2]) for number in range(200)])
    assert upstream.count("/a") == 1
    assert {answer.body for answer in got} == {b"once"}
    assert sum("stored" in answer.why for answer in got) == 1
    assert sum("collapsed" in answer.why for answer in got) == 199


async def test_waiters_are_woken_and_do_not_poll(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say, redis_client: redis.asyncio.Redis
) -> None:
    say("/a", "max-age=60", delay=0.3)
    nodes = [await gateway(CACHE), await gateway(CACHE)]
    holder = asyncio.ensure_future(ask(nodes[0]))
    await lock_of(nodes[0], redis_client)
    waiting = asyncio.ensure_future(ask(nodes[1]))
    await holder
    done = time.monotonic()
    await waiting
    assert time.monotonic() - done < 0.05
    # Looking, trying the lock with what a fetch would need, waiting, looking again: none of it grows with the time.
    assert nodes[1].worker.redis.asked < 50


async def test_a_holder_that_died_holds_others_up_for_its_locks_life_only(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say, redis_client: redis.asyncio.Redis
) -> None:
    say("/a", "max-age=1")
    node = await gateway(with_cache(lock_ttl=0.4))
    await ask(node)
    (entry,) = await redis_client.keys("gateway:cache:*")
    lock = entry.replace(b":cache:", b":lock:")
    await redis_client.set(lock, "one that was killed", px=400)
    await redis_client.delete(entry)
    started = time.monotonic()
    got = await asyncio.gather(*[ask(node) for _ in range(20)])
    assert 0.2 < time.monotonic() - started < 1.2
    assert {answer.body for answer in got} == {b"/a 2"}
    assert upstream.count("/a") == 2


async def test_a_lock_without_an_end_is_taken_over(
    gateway: StartGateway, ask: Client, say: Say, redis_client: redis.asyncio.Redis
) -> None:
    say("/a", "max-age=60")
    node = await gateway(CACHE)
    await ask(node)
    (entry,) = await redis_client.keys("gateway:cache:*")
    await redis_client.rpush(entry.replace(b":cache:", b":lock:"), "garbage")
    await redis_client.delete(entry)
    started = time.monotonic()

    async def refetched() -> bool:
        return (await ask(node)).body == b"/a 2"

    await eventually(refetched)
    assert time.monotonic() - started < 2


async def test_a_fetch_longer_than_the_lock_keeps_it(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a", "max-age=60", delay=0.6)
    nodes = [await gateway(with_cache(lock_ttl=0.2)), await gateway(with_cache(lock_ttl=0.2))]
    await asyncio.gather(*[ask(nodes[number % 2]) for number in range(10)])
    assert upstream.count("/a") == 1


async def test_who_waited_long_enough_asks_the_upstream(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say, redis_client: redis.asyncio.Redis
) -> None:
    say("/a", "max-age=60", delay=0.5)
    config = with_cache(wait_timeout=0.1)
    nodes = [await gateway(config), await gateway(config)]
    holder = asyncio.ensure_future(ask(nodes[0]))
    await lock_of(nodes[0], redis_client)
    others = await asyncio.gather(ask(nodes[0]), ask(nodes[1]))
    assert {answer.cache for answer in others} == {"MISS"}
    assert {answer.body for answer in others} <= {b"/a 2", b"/a 3"}
    assert (await holder).body == b"/a 1"


@pytest.mark.parametrize("control", ["max-age=1, stale-if-error=60", "max-age=1", "max-age=1, must-revalidate"])
async def test_who_waited_long_enough_gets_a_stale_answer_where_that_is_configured(
    gateway: StartGateway,
    upstream: UpstreamServer,
    ask: Client,
    say: Say,
    clock: Clock,
    redis_client: redis.asyncio.Redis,
    control: str,
) -> None:
    config = with_cache(wait_timeout=0.1, on_wait_timeout="stale", stale_if_error=0)
    nodes = [await gateway(config), await gateway(config)]
    clock.stand(*nodes)
    say("/a", control)
    for node in nodes:
        assert (await ask(node)).body == b"/a 1"
    clock.pass_by(2)
    say("/a", control, delay=0.5)
    holder = asyncio.ensure_future(ask(nodes[0]))
    await lock_of(nodes[0], redis_client)
    others = await asyncio.gather(ask(nodes[0]), ask(nodes[1]))
    if "stale-if-error" in control:
        assert {(answer.cache, answer.body) for answer in others} == {("STALE", b"/a 1")}
        assert all("wait-timeout" in answer.why for answer in others)
    else:
        assert {answer.cache for answer in others} == {"MISS"}
    assert (await holder).body == b"/a 2"


async def test_a_client_that_leaves_does_not_end_the_fetch(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say, redis_client: redis.asyncio.Redis
) -> None:
    say("/a", "max-age=60", delay=0.3)
    node = await gateway(CACHE)
    leaving = asyncio.ensure_future(ask(node))
    await lock_of(node, redis_client)
    staying = asyncio.ensure_future(ask(node))
    await asyncio.sleep(0.05)
    leaving.cancel()
    assert (await staying).body == b"/a 1"
    assert (await ask(node)).cache == "HIT"
    assert upstream.count("/a") == 1


async def test_what_cannot_be_stored_lets_the_others_go(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    """Those who came before that was known wait for one answer and their own; those who come later for nobody."""
    say("/a", "no-store", delay=0.2)
    nodes = [await gateway(CACHE), await gateway(CACHE)]

    async def burst() -> float:
        started = time.monotonic()
        got = await asyncio.gather(*[ask(nodes[number % 2]) for number in range(50)])
        assert len({answer.body for answer in got}) == 50
        return time.monotonic() - started

    # One after the other would take ten seconds.
    assert await burst() < 5
    there: list[web.Request] = []

    async def once_all_are_there(request: web.Request) -> web.Response:
        there.append(request)
        await eventually(lambda: len(there) == 50, within=5)  # who waited for another one would never come
        return web.Response(text=str(there.index(request)), headers={"Cache-Control": "no-store"})

    upstream.answer("/a", once_all_are_there)
    await burst()


async def test_those_who_wait_go_as_soon_as_the_head_says_that_it_cannot_be_stored(
    gateway: StartGateway, upstream: UpstreamServer, http: aiohttp.ClientSession, ask: Client
) -> None:
    first, rest = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "no-store"})
        if upstream.count("/a") > 1:
            return web.Response(text="mine")
        await first.wait()
        await response.prepare(request)
        await response.write(b"slow ")
        await rest.wait()
        await response.write(b"body")
        return response

    upstream.answer("/a", answer)
    nodes = [await gateway(CACHE), await gateway(CACHE)]
    holder = asyncio.ensure_future(ask(nodes[0]))
    await eventually(lambda: upstream.count("/a") == 1)
    waiting = [asyncio.ensure_future(ask(nodes[number % 2])) for number in range(10)]
    await asyncio.sleep(0.05)
    assert upstream.count("/a") == 1
    first.set()
    got = await asyncio.wait_for(asyncio.gather(*waiting), 2)
    assert {answer.body for answer in got} == {b"mine"}
    assert not holder.done()
    rest.set()
    assert (await holder).body == b"slow body"


async def test_a_refusal_lets_those_who_wait_go_on_every_node(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say, redis_client: redis.asyncio.Redis
) -> None:
    """It leaves no mark, so that one client's refusal does not keep what is stored from the others; and yet the workers
    do not ask one after the other."""
    say("/a", "no-store", delay=0.3, status=404)
    nodes = [await gateway(CACHE) for _ in range(4)]
    holder = asyncio.ensure_future(ask(nodes[0]))
    await lock_of(nodes[0], redis_client)
    started = time.monotonic()
    got = await asyncio.gather(*[ask(nodes[number % 4]) for number in range(20)])
    assert time.monotonic() - started < 0.9, "the first one's answer, then their own"
    assert {answer.status for answer in [*got, await holder]} == {404}
    say("/a", "max-age=60", delay=0.1)
    got = await asyncio.gather(*[ask(nodes[number % 4]) for number in range(20)])
    assert len({answer.body for answer in got}) == 1, "those who come later wait for each other as ever"


async def test_an_error_is_told_to_all_who_waited_for_it(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a", None, status=500, delay=0.2)
    node = await gateway(CACHE)
    got = await asyncio.gather(*[ask(node) for _ in range(20)])
    assert [answer.status for answer in got] == [500] * 20
    assert upstream.count("/a") == 2, "once more, as the first may have been the one request's fault"
    assert (await ask(node)).body == b"/a 3"


async def test_an_upstream_that_is_away_is_asked_once_and_never_kept(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    node = await gateway({**CACHE, "upstreams": {"default": {"url": "http://127.0.0.1:1"}}})
    got = await asyncio.gather(*[ask(node) for _ in range(5)])
    assert [answer.status for answer in got] == [502] * 5
    assert (await ask(node)).status == 502


async def test_waiters_get_their_own_variant(gateway: StartGateway, upstream: UpstreamServer, ask: Client) -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(0.1)
        headers = {"Cache-Control": "max-age=60", "Vary": "Accept-Language"}
        return web.Response(text=request.headers["Accept-Language"], headers=headers)

    upstream.answer("/a", answer)
    nodes = [await gateway(CACHE), await gateway(CACHE)]
    languages = ["de", "en", "fr"]
    got = await asyncio.gather(*[ask(nodes[n % 2], headers={"Accept-Language": languages[n % 3]}) for n in range(30)])
    assert [answer.body.decode() for answer in got] == [languages[n % 3] for n in range(30)]
    assert upstream.count("/a") <= 2 * len(languages)


async def test_a_purge_during_a_fetch_wins(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say, redis_client: redis.asyncio.Redis
) -> None:
    say("/a", "max-age=60", delay=0.2)
    node, other = await gateway(CACHE), await gateway(CACHE)
    early = asyncio.ensure_future(ask(node))
    await eventually(lambda: upstream.count("/a") == 1)
    await ask(other, method="POST")
    late = await asyncio.gather(ask(node), ask(other))
    assert (await early).body == b"/a 1"
    assert b"/a 1" not in {answer.body for answer in late}
    assert (await ask(node)).body != b"/a 1"


async def test_stopping_gives_the_locks_back(
    gateway: StartGateway,
    upstream: UpstreamServer,
    http: aiohttp.ClientSession,
    redis_client: redis.asyncio.Redis,
    ask: Client,
    say: Say,
) -> None:
    say("/a", "max-age=60", delay=5)
    node = await gateway(CACHE)
    waiting = asyncio.ensure_future(ask(node))
    await lock_of(node, redis_client)
    await node.plugins["cache"].stop()

    async def released() -> bool:
        return not await redis_client.keys("gateway:lock:*")

    await eventually(released)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_who_leaves_while_the_lock_is_taken_leaves_no_lock(
    gateway: StartGateway, ask: Client, say: Say, redis_client: redis.asyncio.Redis
) -> None:
    """Otherwise a client could hold all others up by asking for a reload and leaving, again and again."""
    say("/a")
    node = await gateway(CACHE)
    plugin: Any = node.plugins["cache"]
    place = Keys("gateway", "cache").address("r", "http", "h", "/", None, (), ())
    taking = asyncio.ensure_future(plugin._store.acquire(place, "one that leaves"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    assert (await plugin._store.acquire(place, "the next")).owned


async def test_a_client_cannot_take_from_others_what_is_stored_or_their_wait_for_it(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    """A field that the upstream trips over, or one that makes its answer uncacheable, is only its sender's affair."""

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(0.1)
        if "X-Bad" in request.headers:
            return web.Response(status=400)
        control = "no-store" if "X-Odd" in request.headers else "max-age=60"
        return web.Response(text=str(upstream.count("/a")), headers={"Cache-Control": control})

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    assert (await ask(node, headers={"X-Bad": "1"})).status == 400
    got = await asyncio.gather(*[ask(node) for _ in range(10)])
    assert {answer.body for answer in got} == {b"2"}
    for name in ("X-Bad", "X-Odd"):
        await ask(node, headers={name: "1", "Cache-Control": "no-cache"})
        assert (await ask(node)).cache == "HIT"


async def test_reloads_are_bounded_like_flights(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.cache.stampede.MAX_FLIGHTS", 2)
    for number in range(4):
        say(f"/{number}", "max-age=60", delay=0.2)
    node = await gateway(CACHE)
    reload = {"headers": {"Cache-Control": "no-cache"}}
    got = await asyncio.gather(*[ask(node, f"/{number}", **reload) for number in range(4)])
    assert sum("stored" in answer.why for answer in got) == 2
    assert [answer.status for answer in got] == [200] * 4


async def test_a_body_that_comes_slowly_is_not_held_back_for_long(
    gateway: StartGateway, upstream: UpstreamServer, http: aiohttp.ClientSession, ask: Client
) -> None:
    release = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "max-age=60"})
        await response.prepare(request)
        await response.write(b"one ")
        await release.wait()
        await response.write(b"two")
        return response

    upstream.answer("/a", slow)
    node = await gateway(with_cache(wait_timeout=0.3))
    async with http.get(node.url + "/a") as response:
        assert await asyncio.wait_for(response.content.readany(), 2) == b"one "
        leaving = asyncio.ensure_future(ask(node))
        await asyncio.sleep(0.1)
        leaving.cancel()
        release.set()
        assert await asyncio.wait_for(response.content.read(), 2) == b"two"
    assert (await ask(node)).body == b"one two"


# -- what a flight owes whom -----------------------------------------------------------------------


class Job:
    """What a flight is for: it is answered and ends when it is told to."""

    def __init__(self, place: Address, store: Store) -> None:
        self.place = place
        self._store = store
        self.fetches = 0
        self.prepared = False
        self.hand: Landing | None = None
        self.begun = asyncio.Event()
        self.end: asyncio.Future[Landing] = asyncio.get_running_loop().create_future()

    def prepare(self) -> None:
        self.prepared = True

    async def look(self) -> Landing | None:
        return await self.landed(await self._store.read(self.place.entry))

    async def landed(self, found: Stored | None) -> Landing | None:
        return Landing(FOUND, self.place, entry=found) if isinstance(found, Entry) else None

    async def fetch(self, owner: str, since: int, answer: Handover) -> Landing:
        assert self.prepared
        self.fetches += 1
        if self.hand is not None:
            answer(self.hand)
        self.begun.set()
        landing = await self.end
        await self._store.write(self.place, owner, entry_of(f"{owner} {self.fetches}"), 60)
        return landing


class Body:
    """A body that somebody must close."""

    def __init__(self) -> None:
        self.closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed = True


PLACE = Keys("gateway", "cache").address("r", "http", "h", "/", None, (), ())


def entry_of(text: str) -> Entry:
    now = time.time()
    fields = CIMultiDict({"Cache-Control": "max-age=60"})
    made = plan(200, fields, shared=True, authorized=False, rules=Rules(), sent=now, received=now)
    assert isinstance(made, Plan)
    return Entry(200, made, b"", frozenset(), text.encode())


async def flights_of(gateway: StartGateway, config: dict[str, Any] = CACHE) -> tuple[Flights, Store]:
    plugin: Any = (await gateway(config)).plugins["cache"]
    return plugin._flights, plugin._store


async def test_who_fetches_gets_a_large_answer_before_the_others_get_theirs(gateway: StartGateway) -> None:
    flights, store = await flights_of(gateway)
    job = Job(PLACE, store)
    body = Body()
    job.hand = Landing(FETCHED, PLACE, response=Response(200, {}, body))
    flight = flights.start(job)
    assert flight is not None
    waiting = asyncio.ensure_future(flight.land(5))
    assert await flight.lead() is job.hand
    assert not waiting.done()
    assert flights.under_way(PLACE) is flight
    end = Landing(FETCHED, PLACE, entry=entry_of("stored"))
    job.end.set_result(end)
    assert await waiting is end
    assert not body.closed, "it is its client's"


async def test_a_fetch_that_fails_after_its_answer_was_given_fails_the_others_only(gateway: StartGateway) -> None:
    flights, store = await flights_of(gateway)
    job = Job(PLACE, store)
    job.hand = Landing(FETCHED, PLACE, response=Response(200, {}, Body()))
    flight = flights.start(job)
    assert flight is not None
    assert await flight.lead() is job.hand
    job.end.set_exception(ConnectionError("it broke off"))
    with pytest.raises(ConnectionError):
        await flight.land(5)
    assert await store.holder(PLACE) is None


@pytest.mark.parametrize("leaves", ["before the answer", "after it"])
async def test_an_answer_that_nobody_takes_is_closed(gateway: StartGateway, leaves: str) -> None:
    flights, store = await flights_of(gateway)
    job = Job(PLACE, store)
    body = Body()
    job.hand = Landing(FETCHED, PLACE, response=Response(200, {}, body))
    flight = flights.start(job)
    assert flight is not None
    leader = asyncio.ensure_future(flight.lead())
    if leaves == "after it":
        await job.begun.wait()
    else:
        await asyncio.sleep(0)
    leader.cancel()
    await asyncio.wait([leader])
    await eventually(lambda: body.closed)
    job.end.set_result(job.hand)
    assert await flight.land(5) is job.hand


async def test_of_two_workers_one_refreshes_and_the_other_waits_for_nothing(gateway: StartGateway) -> None:
    (one, store), (other, _) = await flights_of(gateway), await flights_of(gateway)
    known = entry_of("known")
    await store.put(PLACE.entry, known, 60)
    first, second = Job(PLACE, store), Job(PLACE, store)
    one.refresh(first, known)
    await first.begun.wait()
    asked = store.asked
    for _ in range(20):
        other.refresh(second, known)
        one.refresh(second, known)
        await asyncio.sleep(0.001)
    flight = other.under_way(PLACE)
    assert flight is not None, "while the first one lasts nobody here asks for the lock again"
    assert store.asked == asked
    first.end.set_result(Landing(FETCHED, PLACE))
    ended = await flight.land(1)
    assert ended is not None
    assert ended.how == AGAIN
    assert (first.fetches, second.fetches) == (1, 0)


async def test_nothing_is_refreshed_that_somebody_has_refreshed_meanwhile(gateway: StartGateway) -> None:
    flights, store = await flights_of(gateway)
    known = entry_of("known")
    await store.put(PLACE.entry, entry_of("newer"), 60)
    job = Job(PLACE, store)
    flights.refresh(job, known)
    flight = flights.under_way(PLACE)
    assert flight is not None
    ended = await flight.land(5)
    assert ended is not None
    assert ended.how == AGAIN
    assert job.fetches == 0
    assert await store.holder(PLACE) is None


async def test_what_was_purged_softly_is_refreshed_while_it_is_served(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say
) -> None:
    say("/a", "max-age=60, stale-while-revalidate=60")
    node = await gateway(CACHE)
    await ask(node)
    plugin: Any = node.plugins["cache"]
    await plugin._store.purge(*Purge([("api.test", "/a")], soft=True).endings("gateway"))
    got = await ask(node)
    assert (got.cache, got.body) == ("STALE", b"/a 1")

    async def refreshed() -> bool:
        got = await ask(node)
        return (got.cache, got.body) == ("HIT", b"/a 2")

    await eventually(refreshed)
    assert upstream.count("/a") == 2


async def test_a_refresh_that_fails_is_left_to_the_next_request(gateway: StartGateway) -> None:
    flights, store = await flights_of(gateway)
    known = entry_of("known")
    await store.put(PLACE.entry, known, 60)
    job = Job(PLACE, store)
    flights.refresh(job, known)
    job.end.set_exception(ConnectionError("it is away"))
    await eventually(lambda: flights.under_way(PLACE) is None)
    assert job.fetches == 1
    assert await store.holder(PLACE) is None


async def test_a_reload_goes_on_without_its_client(gateway: StartGateway) -> None:
    flights, store = await flights_of(gateway)
    job = Job(PLACE, store)
    reloading = asyncio.ensure_future(flights.now(job))
    await job.begun.wait()
    reloading.cancel()
    await asyncio.wait([reloading])
    assert await store.holder(PLACE) is not None
    job.end.set_result(Landing(FETCHED, PLACE))

    async def stored() -> bool:
        return await job.look() is not None and await store.holder(PLACE) is None

    await eventually(stored)


async def test_a_reload_does_not_wait_for_another_one(gateway: StartGateway) -> None:
    (one, store), (other, _) = await flights_of(gateway), await flights_of(gateway)
    job = Job(PLACE, store)
    reloading = asyncio.ensure_future(one.now(job))
    await job.begun.wait()
    assert await other.now(Job(PLACE, store)) is None
    job.end.set_result(Landing(FETCHED, PLACE))
    assert await reloading is not None


async def test_who_cannot_tell_whether_what_is_there_will_do_gives_the_lock_back(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    flights, store = await flights_of(gateway)
    await store.put(PLACE.entry, entry_of("there"), 60)
    job = Job(PLACE, store)

    async def landed(found: Stored | None) -> Landing | None:
        raise RedisDown("Redis has taken too long")

    monkeypatch.setattr(job, "landed", landed)
    flight = flights.start(job)
    assert flight is not None
    with pytest.raises(RedisDown):
        await flight.lead()
    assert await store.holder(PLACE) is None
