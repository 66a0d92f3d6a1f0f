"""Ask all, then call down; and what happens when Redis cannot answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from gateway.plugin import LATER, Answer, Handler, Later, Plugin, PluginConfig, Redis, Request, Response
from plugins.session import Layout, create_session_async
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, Valkey, eventually


class Marks(Plugin):
    """Shows in which order plugins are entered and left."""

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        request.state.setdefault("order", []).append(self.name)
        response = await call_next(request)
        response.set("X-Order", ",".join([*request.state["order"], self.name]))
        request.state["order"].append(self.name)
        return response


class Asks(Plugin):
    class Config(PluginConfig):
        key: str = "k"

    def ask(self, request: Request, redis: Redis) -> Answer:
        return redis.ask("INCR", self.config.key)

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        count = await request.answers[self]
        response = await call_next(request)
        response.set(f"X-{self.name}", str(count))
        response.set("X-Trips", str(request.trips))
        return response

    async def without_redis(self, request: Request, call_next: Handler) -> Response:
        response = await call_next(request)
        response.set("X-Local", "yes")
        return response


class AsksLate(Plugin):
    async def __call__(self, request: Request, call_next: Handler) -> Response:
        await asyncio.gather(request.redis.ask("INCR", "late"), request.redis.ask("INCR", "late"))
        return await call_next(request)


class AsksAfterwards(Plugin):
    on_redis_failure = "pass"

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        response = await call_next(request)
        await request.redis.ask("INCR", "after")
        return response


def use(name: str) -> dict[str, str]:
    return {"use": f"tests.test_chain:{name}"}


async def test_the_first_is_the_outermost(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway({"plugins": {name: use("Marks") for name in "abc"}})
    async with http.get(node.url) as answer:
        assert answer.headers["X-Order"] == "a,b,c,c,b,a"


async def test_a_disabled_plugin_leaves_the_chain(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    plugins = {name: {**use("Marks"), "enabled": name != "b"} for name in "abc"}
    node = await gateway({"plugins": plugins})
    async with http.get(node.url) as answer:
        assert answer.headers["X-Order"] == "a,c,c,a"


async def test_all_questions_of_a_chain_share_one_round_trip(
    gateway: StartGateway, http: aiohttp.ClientSession
) -> None:
    node = await gateway({"plugins": {name: {**use("Asks"), "key": name} for name in ("one", "two", "three")}})
    writes = node.worker.redis.links[0].writes
    async with http.get(node.url) as answer:
        assert [answer.headers[f"X-{name}"] for name in ("one", "two", "three")] == ["1", "1", "1"]
        assert answer.headers["X-Trips"] == "1"
    assert node.worker.redis.links[0].writes == writes + 1


async def test_a_late_question_costs_one_more(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    node = await gateway({"plugins": {"one": use("Asks"), "late": use("AsksLate")}})
    async with http.get(node.url) as answer:
        assert answer.headers["X-Trips"] == "2"


@pytest.mark.parametrize(
    ("failure", "status", "local"), [("pass", 200, None), ("refuse", 503, None), ("local", 200, "yes")]
)
async def test_what_a_plugin_does_without_redis(
    gateway: StartGateway,
    http: aiohttp.ClientSession,
    own_valkey: Valkey,
    failure: str,
    status: int,
    local: str | None,
) -> None:
    node = await gateway(
        {"redis": {"url": own_valkey.url}, "plugins": {"one": {**use("Asks"), "on_redis_failure": failure}}}
    )
    own_valkey.kill()
    await eventually(lambda: not node.worker.redis.up)
    async with http.get(node.url) as answer:
        assert answer.status == status
        assert answer.headers.get("X-Local") == local
        assert (answer.headers.get("Retry-After") is not None) == (status == 503)


async def test_an_error_of_redis_counts_as_its_failure(
    gateway: StartGateway, http: aiohttp.ClientSession, redis_client: redis.asyncio.Redis
) -> None:
    await redis_client.lpush("k", "not a number")
    node = await gateway({"plugins": {"one": {**use("Asks"), "on_redis_failure": "refuse"}}})
    async with http.get(node.url) as answer:
        assert answer.status == 503


async def test_the_upstream_is_never_called_twice(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, upstream: UpstreamServer
) -> None:
    """`pass` after `call_next` would send a POST again."""
    node = await gateway({"redis": {"url": own_valkey.url}, "plugins": {"after": use("AsksAfterwards")}})
    own_valkey.kill()
    await eventually(lambda: not node.worker.redis.up)
    async with http.post(node.url, data=b"x") as answer:
        assert answer.status == 503
    assert len(upstream.requests) == 1


# -- steps: ask, check, finish -------------------------------------------------------------------------


class Step(Plugin):
    """Writes down what happens to it, in the order in which it does."""

    log: list[str] = []  # noqa: RUF012

    class Config(PluginConfig):
        key: str = ""
        later: int = 0
        """How often `check` says LATER; -1: `ask` does so, -2: both."""
        ask_always_later: bool = False
        fail: str = ""
        answer: bool = False

    def say(self, what: str) -> None:
        self.log.append(f"{self.name} {what}")
        if self.config.fail == what:
            raise ValueError("as it must")

    def ask(self, request: Request, redis: Redis) -> Answer | Later | None:
        self.say("ask")
        if self.config.ask_always_later or (self.config.later < 0 and request.early):
            return LATER
        return redis.ask("INCR", self.config.key) if self.config.key else None

    def check(self, request: Request, reply: Any) -> Response | Later | None:
        self.say("check" if reply is None else f"check {reply}")
        times = request.state[self.name] = request.state.get(self.name, 0) + 1
        wanted = 1 if self.config.later == -2 else self.config.later
        if times <= wanted:
            return LATER
        request.state["trips"] = request.trips
        return Response(200, body=b"from " + self.name.encode()) if self.config.answer else None

    def finish(self, request: Request, response: Response) -> None:
        self.say("finish")
        response.set("X-Trips", str(request.trips))

    async def without_redis(self, request: Request, call_next: Handler) -> Response:
        self.say("local")
        return await call_next(request)


class Onion(Plugin):
    """Around what is further in, with a coroutine."""

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        Step.log.append(f"{self.name} in")
        response = await call_next(request)
        Step.log.append(f"{self.name} out")
        return response


@pytest.fixture(params=[True, False], ids=["short way", "aiohttp's way"])
def steps(request: pytest.FixtureRequest, gateway: StartGateway) -> Callable[..., Awaitable[Gateway]]:
    """Starts a gateway with these plugins, on either way in."""
    Step.log.clear()

    async def start(config: dict[str, Any] | None = None, **plugins: dict[str, Any]) -> Gateway:
        plugins = {name: {**use("Step"), **keys} for name, keys in plugins.items()}
        return await gateway({**(config or {}), "plugins": plugins}, short_way=request.param)

    return start


Steps = Callable[..., Awaitable[Gateway]]


async def test_steps_and_onions_run_in_the_order_of_the_configuration(
    steps: Steps, http: aiohttp.ClientSession
) -> None:
    node = await steps(a={}, b=use("Onion"), c={"key": "c"}, d=use("Onion"), e={})
    async with http.get(node.url) as answer:
        assert answer.status == 200
    down = ["a check", "b in", "c check 1", "d in", "e check"]
    assert Step.log == ["a ask", "c ask", "e ask", *down, "e finish", "d out", "c finish", "b out", "a finish"]


async def test_who_answers_is_finished_by_those_before_it_only(steps: Steps, http: aiohttp.ClientSession) -> None:
    node = await steps(a={}, b=use("Onion"), c={"key": "c", "answer": True}, d={"key": "d"})
    async with http.get(node.url) as answer:
        assert await answer.read() == b"from c"
    assert Step.log == ["a ask", "c ask", "d ask", "a check", "b in", "c check 1", "b out", "a finish"]


class StepAndOnion(Step):
    """Has all methods."""

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        self.say("in")
        response = await call_next(request)
        self.say("out")
        return response


async def test_a_plugin_may_have_all_methods(steps: Steps, http: aiohttp.ClientSession) -> None:
    node = await steps(a={}, b={**use("StepAndOnion"), "key": "b"}, c={})
    async with http.get(node.url) as answer:
        assert answer.status == 200
    asked, entered = ["a ask", "b ask", "c ask"], ["a check", "b check 1", "b in", "c check"]
    assert Step.log == [*asked, *entered, "c finish", "b out", "b finish", "a finish"]


@pytest.mark.parametrize(("later", "counted", "trips"), [(1, 2, "2"), (-1, 1, "2")], ids=["from check", "from ask"])
async def test_later_is_asked_again_in_its_turn(
    steps: Steps, http: aiohttp.ClientSession, redis_client: redis.asyncio.Redis, later: int, counted: int, trips: str
) -> None:
    node = await steps(a={"key": "a"}, b={"key": "b", "later": later}, c={"key": "c"})
    async with http.get(node.url) as answer:
        assert answer.status == 200
        assert answer.headers["X-Trips"] == trips
    assert Step.log.count("b ask") == 2
    assert Step.log.count("b finish") == 1
    assert Step.log.index("a check 1") < Step.log.index(f"b check {counted}") < Step.log.index("c check 1")
    assert await redis_client.get("b") == str(counted).encode()


async def test_later_without_a_question_goes_on_at_once(steps: Steps, http: aiohttp.ClientSession) -> None:
    node = await steps(a={"later": 1})
    async with http.get(node.url) as answer:
        assert answer.status == 200
        assert answer.headers["X-Trips"] == "0"
    assert Step.log == ["a ask", "a check", "a ask", "a check", "a finish"]


@pytest.mark.parametrize(
    "keys",
    [{"later": 2}, {"later": 99}, {"later": -2}, {"later": -1, "ask_always_later": True}],
    ids=["check twice", "check always", "ask, then check", "ask always"],
)
@pytest.mark.parametrize("key", ["", "k"])
async def test_a_second_later_is_an_error_and_no_loop(
    steps: Steps, http: aiohttp.ClientSession, upstream: UpstreamServer, keys: dict[str, Any], key: str
) -> None:
    node = await steps(a={}, b={"key": key, **keys})
    async with http.get(node.url) as answer:
        assert answer.status == 500
    assert Step.log.count("b ask") == 2
    assert upstream.requests == []
    assert node.worker.server.in_flight == 0


@pytest.mark.parametrize("what", ["ask", "check 1", "finish"])
async def test_a_step_that_raises_is_a_500(
    steps: Steps, http: aiohttp.ClientSession, upstream: UpstreamServer, what: str
) -> None:
    node = await steps(a={"key": "a"}, b={"key": "b", "fail": what})
    for _ in range(2):  # the connection goes on
        async with http.get(node.url) as answer:
            assert answer.status == (500 if what != "check 1" or not _ else 200)
            assert b"as it must" not in await answer.read()
    assert len(node.worker.server.connections) == 1
    assert node.worker.server.in_flight == 0
    assert len(upstream.requests) == {"ask": 0, "check 1": 1, "finish": 2}[what]


# What becomes of a request, and what runs, where Redis cannot answer the second of three steps.
ON_FAILURE = {
    "pass": (200, ["a check", "c check", "c finish", "a finish"]),
    "refuse": (503, ["a check", "a finish"]),
    "local": (200, ["a check", "b local", "c check", "c finish", "a finish"]),
}


@pytest.mark.parametrize("failure", ON_FAILURE)
async def test_a_reply_that_does_not_come_in_time(
    steps: Steps, http: aiohttp.ClientSession, own_valkey: Valkey, failure: str
) -> None:
    status, log = ON_FAILURE[failure]
    table = {"url": own_valkey.url, "timeout": 0.2}
    node = await steps({"redis": table}, a={}, b={"key": "b", "on_redis_failure": failure}, c={})
    own_valkey.pause()
    async with http.get(node.url) as answer:
        assert answer.status == status
    assert Step.log[3:] == log
    assert node.worker.server.in_flight == 0
    assert node.worker.redis.links[0].timeouts == 1


@pytest.mark.parametrize("failure", ON_FAILURE)
@pytest.mark.parametrize("how", ["lost while waiting", "an error", "down"])
async def test_a_question_that_redis_does_not_answer(
    steps: Steps,
    http: aiohttp.ClientSession,
    own_valkey: Valkey,
    failure: str,
    how: str,
) -> None:
    """The step that asked is passed by: neither its check nor its finish see anything."""
    status, log = ON_FAILURE[failure]
    table = {"url": own_valkey.url, "timeout": 5}
    node = await steps({"redis": table}, a={}, b={"key": "b", "on_redis_failure": failure}, c={})
    if how == "an error":
        async with redis.asyncio.Redis.from_url(own_valkey.url) as client:
            await client.set("b", "no number")
    elif how == "down":
        own_valkey.kill()
        await eventually(lambda: not node.worker.redis.up)
    else:
        own_valkey.pause()
    asking = asyncio.create_task(http.get(node.url))
    if how == "lost while waiting":
        await eventually(lambda: node.worker.server.in_flight == 1)
        own_valkey.kill()
    async with await asking as answer:
        assert answer.status == status
    assert Step.log[3:] == log
    assert node.worker.server.in_flight == 0


async def test_a_late_question_that_redis_does_not_answer(
    steps: Steps, http: aiohttp.ClientSession, own_valkey: Valkey
) -> None:
    table = {"url": own_valkey.url, "timeout": 0.2}
    node = await steps({"redis": table}, a={}, b={"key": "b", "later": -1, "on_redis_failure": "local"}, c={})
    own_valkey.pause()
    async with http.get(node.url) as answer:
        assert answer.status == 200
    assert Step.log == [*("a ask", "b ask", "c ask", "a check", "b ask", "b local", "c check", "c finish", "a finish")]


async def test_failures_of_several_are_each_decided_by_their_own(
    steps: Steps, http: aiohttp.ClientSession, own_valkey: Valkey, upstream: UpstreamServer
) -> None:
    table = {"url": own_valkey.url, "timeout": 0.2}
    node = await steps(
        {"redis": table},
        a={"key": "a", "on_redis_failure": "pass"},
        b=use("Onion"),
        c={"key": "c", "on_redis_failure": "local"},
        d={"key": "d", "on_redis_failure": "refuse"},
    )
    own_valkey.pause()
    async with http.get(node.url) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert Step.log == ["a ask", "c ask", "d ask", "b in", "c local", "b out"]
    assert upstream.requests == []


# -- a guess -------------------------------------------------------------------------------------------


@pytest.fixture(params=[0, "64 MiB"], ids=["no mirror", "mirror"])
async def guessing(gateway: StartGateway, request: pytest.FixtureRequest) -> Gateway:
    """A node that asks for session and limit at once."""
    return await gateway(
        {
            "redis": {"mirror": {"max_bytes": request.param}},
            "plugins": {
                "session": {"sliding": False},
                "rate_limit": {"limits": ["10/day"], "by": ["user"]},
                "trips": use("Trips"),
            },
        },
        short_way=True,
    )


class Trips(Plugin):
    """Shows how often the request has waited for Redis."""

    def check(self, request: Request, reply: Any) -> None: ...

    def finish(self, request: Request, response: Response) -> None:
        response.set("X-Trips", str(request.trips))


async def ask_as(http: aiohttp.ClientSession, node: Gateway, session: str) -> tuple[str, str]:
    """Trips, and what is left of the limit."""
    async with http.get(node.url, headers={"Cookie": f"session={session}"}) as answer:
        assert answer.status == 200
        return answer.headers["X-Trips"], answer.headers["X-RateLimit-Remaining"]


async def test_a_right_guess_saves_a_trip(
    guessing: Gateway, http: aiohttp.ClientSession, redis_client: redis.asyncio.Redis, upstream: UpstreamServer
) -> None:
    session = await create_session_async(redis_client, "alice")
    asked = [await ask_as(http, guessing, session) for _ in range(4)]
    assert asked == [("2", "9"), ("1", "8"), ("1", "7"), ("1", "6")]
    assert {request.headers["X-User-Id"] for request in upstream.requests} == {"alice"}


async def test_a_wrong_guess_costs_a_trip_and_never_another_user(
    guessing: Gateway, http: aiohttp.ClientSession, redis_client: redis.asyncio.Redis, upstream: UpstreamServer
) -> None:
    session = await create_session_async(redis_client, "alice")
    layout = Layout("gateway")
    key = layout.key(layout.stored(session))
    for _ in range(3):
        await ask_as(http, guessing, session)
    # The same credentials are somebody else's from now on.
    await redis_client.hset(key, "userId", "bob")
    await eventually(lambda: guessing.worker.redis.mirror.get(key.encode()) is None)
    assert await ask_as(http, guessing, session) == ("2", "9")
    assert upstream.requests[-1].headers["X-User-Id"] == "bob"
    assert await ask_as(http, guessing, session) == ("1", "8")
    assert {request.headers["X-User-Id"] for request in upstream.requests[-2:]} == {"bob"}


# -- start and stop ------------------------------------------------------------------------------------


class Records(Plugin):
    log: list[str] = []  # noqa: RUF012

    class Config(PluginConfig):
        fail: bool = False

    async def start(self, worker: Any) -> None:
        self.log.append(f"start {self.name}")
        if self.config.fail:
            raise RuntimeError("cannot start")

    async def stop(self) -> None:
        self.log.append(f"stop {self.name}")


async def test_plugins_start_in_order_and_stop_in_reverse(gateway: StartGateway) -> None:
    Records.log.clear()
    node = await gateway({"plugins": {name: use("Records") for name in "ab"}})
    await node.stop()
    assert Records.log == ["start a", "start b", "stop b", "stop a"]


async def test_a_start_that_fails_is_undone(gateway: StartGateway) -> None:
    Records.log.clear()
    with pytest.raises(RuntimeError, match="cannot start"):
        await gateway({"plugins": {"a": use("Records"), "b": {**use("Records"), "fail": True}}})
    assert Records.log == ["start a", "start b", "stop b", "stop a"]
