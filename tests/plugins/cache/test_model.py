"""What a user may rely on, whatever happens in which order: a model of a resource beside the real cache.

The upstream here numbers all that it answers. So each answer that a client gets tells when it was made and what was
said about it then, and the model judges from that alone whether it may be given now.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import NamedTuple

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, eventually
from tests.plugins.cache.conftest import Client, Clock, Got

STALE_IF_ERROR = 20


class Word(NamedTuple):
    """What a `Cache-Control` means, written down by hand."""

    life: int
    revalidated: int = 0
    """It may be served for so long after its end while a fresh one is fetched."""
    in_error: int = STALE_IF_ERROR
    """The same in place of an error."""
    strict: bool = False
    """No client may ask for it stale."""
    stored: bool = True
    shared: bool = True
    """Others than the one who asked may have it if nobody is named."""
    common: bool = False
    """They may have it also if somebody is."""


WORDS = {
    "max-age=10": Word(10),
    "max-age=3, stale-while-revalidate=5": Word(3, revalidated=5),
    "max-age=3, stale-if-error=30": Word(3, in_error=30),
    "max-age=5, must-revalidate": Word(5, in_error=0, strict=True),
    "max-age=5, proxy-revalidate, stale-while-revalidate=30": Word(5, in_error=0, strict=True),
    "s-maxage=5, max-age=20": Word(5, in_error=0, strict=True, common=True),
    "public, max-age=10": Word(10, common=True),
    "max-age=0": Word(0),
    "no-cache": Word(0, in_error=0, strict=True),
    "no-cache, max-age=10": Word(0, in_error=0, strict=True),
    "no-store, max-age=10": Word(0, stored=False),
    "private, max-age=10": Word(10, shared=False),
    "": Word(0, stored=False),
}


# -- what can happen -------------------------------------------------------------------------------


class Change(NamedTuple):
    """The upstream answers something else from now on."""

    control: str
    status: int
    etag: bool
    vary: bool


class Renew(NamedTuple):
    """There is a new version."""


class Wait(NamedTuple):
    seconds: float


class Ask(NamedTuple):
    """GET or HEAD, perhaps with others at once."""

    method: str
    wants: str
    flavour: str
    who: str
    """Whose credentials it carries; nobody's if empty."""
    beside: tuple[str, ...]
    """Who else asks for the same at the same time."""


class Post(NamedTuple):
    """If it succeeds there is a new version."""

    status: int


def mostly(usual: str, *others: str) -> st.SearchStrategy[str]:
    return st.sampled_from([*[usual] * len(others), *others])


Step = Change | Renew | Wait | Ask | Post

changes = st.builds(
    Change,
    control=st.sampled_from(sorted(WORDS)) | st.sampled_from(sorted(WORDS)[3:6]),
    status=st.sampled_from([200, 200, 200, 200, 404, 500]),
    etag=st.booleans(),
    vary=st.sampled_from([False, False, True]),
)
asks = st.builds(
    Ask,
    method=mostly("GET", "GET", "HEAD"),
    wants=mostly("", "no-cache", "max-age=2", "max-age=60", "max-stale", "max-stale=4", "min-fresh=4")
    | st.sampled_from(["", "only-if-cached", "only-if-cached, max-stale", "max-age=60, max-stale=4"]),
    flavour=mostly("a", "a", "b"),
    who=mostly("", "ada", "bob"),
    beside=st.lists(mostly("", "ada", "bob"), max_size=2).map(tuple),
)
waits = st.builds(Wait, st.sampled_from([0.5, 2.0, 3.5, 3.5, 7.0, 12.0, 40.0]))
events = st.one_of(changes, st.just(Renew()), waits, waits, st.builds(Post, st.sampled_from([200, 303, 404, 500])))
# Something happens, then somebody asks.
moments = st.builds(lambda happened, *asked: [*happened, *asked], st.lists(events, max_size=2), asks)
lives = st.lists(moments, min_size=2, max_size=8).map(lambda found: [step for moment in found for step in moment])


# -- the resource ----------------------------------------------------------------------------------


@dataclass
class Made:
    """An answer of the upstream."""

    at: float
    asker: str
    flavour: str
    who: str
    version: int
    said: Change

    @property
    def text(self) -> str:
        """What is for all is the same for all."""
        return f"{self.version} {self.flavour} {'' if WORDS[self.said.control].common else self.who}"


@dataclass
class Resource:
    """What the upstream has at one path, and all that it has said about it."""

    clock: Clock
    path: str
    said: Change
    version: int = 1
    changed_by_post: int = 1
    made: list[Made] = field(default_factory=list)

    @property
    def failing(self) -> bool:
        return self.said.status >= 500

    def answer(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            return web.Response(status=int(request.headers["X-Status"]))
        said, asked = self.said, request.headers
        headers = {"Date": formatdate(self.clock(), usegmt=True), "X-Number": str(len(self.made))}
        who = asked.get("Authorization", "")
        made = Made(self.clock(), asked["X-Asker"], asked["X-Flavour"], who, self.version, said)
        self.made.append(made)
        if said.control:
            headers["Cache-Control"] = said.control
        if said.vary:
            headers["Vary"] = "X-Flavour"
        etag = f'"{said.status} {made.text}"'
        if said.etag:
            headers["ETag"] = etag
            # Without a `Cache-Control` of its own a 304 would leave the stored one as it is.
            if asked.get("If-None-Match") == etag and said.status == 200 and said.control:
                return web.Response(status=304, headers=headers)
        return web.Response(status=said.status, text=made.text, headers=headers)


class Model:
    """Takes steps with a gateway and its resource, and holds what comes against what may come."""

    def __init__(self, node: Gateway, resource: Resource, client: Client, clock: Clock) -> None:
        self.node = node
        self.resource = resource
        self.client = client
        self.clock = clock
        self.asked = 0
        self.stored: Ask | None = None
        """The last request, if its answer was stored and nothing has happened since."""

    async def take(self, step: Step) -> None:
        resource = self.resource
        if isinstance(step, Change):
            resource.said = step
        elif isinstance(step, Renew):
            resource.version += 1
        elif isinstance(step, Wait):
            self.clock.pass_by(step.seconds)
            self.stored = None
        elif isinstance(step, Post):
            await self.client(self.node, resource.path, "POST", headers={"X-Status": str(step.status)})
            if step.status < 400:
                resource.version += 1
                resource.changed_by_post = resource.version
                self.stored = None
        else:
            await asyncio.gather(*[self.ask(step._replace(who=who)) for who in (step.who, *step.beside)])

    async def ask(self, step: Ask) -> None:
        self.asked += 1
        asker, before = str(self.asked), len(self.resource.made)
        headers = {"X-Flavour": step.flavour, "X-Asker": asker}
        if step.who:
            headers["Authorization"] = step.who
        if step.wants:
            headers["Cache-Control"] = step.wants
        got = await self.client(self.node, self.resource.path, step.method, headers=headers)
        known, self.stored = self.stored, None
        if got.cache == "STALE":
            # What is fetched behind the client's back is over before anything else happens.
            await eventually(lambda: "<Flights 0" in repr(self.node.plugins["cache"]._flights), every=0)  # type: ignore[attr-defined]
        if "X-Number" not in got.headers:
            assert (got.status, "only-if-cached" in step.wants) == (504, True), got
            assert all(made.asker != asker for made in self.resource.made), "only-if-cached reached the upstream"
            return
        made = self.resource.made[int(got.headers["X-Number"])]
        self.is_whole(step, got, made)
        if got.cache in ("HIT", "STALE"):
            self.may_be_given(step, got, made)
        else:
            # It was asked for now, or is what another was told who asks now.
            assert int(got.headers["X-Number"]) >= before or step.beside, got
            assert made.said == self.resource.said
            assert "only-if-cached" not in step.wants
        if got.cache == "HIT":
            assert all(one.asker != asker for one in self.resource.made), "a hit that asks the upstream"
        if known is not None and _once(known) == _once(step):
            assert got.cache == "HIT", f"{got} was stored a moment ago"
        fresh = WORDS[made.said.control].life > 0 and ("stored" in got.why or got.cache == "HIT")
        if fresh and step.method == "GET" and step.wants == "" and not step.beside:
            self.stored = step

    def is_whole(self, step: Ask, got: Got, made: Made) -> None:
        """Header and body are of one answer, and of one for this request."""
        resource = self.resource
        assert got.status == made.said.status
        if step.method == "HEAD":
            assert got.body == b""
        else:
            assert got.body.decode() == made.text, (got, made)
        assert got.headers.get("Cache-Control", "") == made.said.control
        assert ("ETag" in got.headers) == made.said.etag
        if made.said.vary:
            assert made.flavour == step.flavour
        if made.who != step.who:
            assert WORDS[made.said.control].common, "another's answer"
        assert made.version >= resource.changed_by_post, "older than a change that was made through the gateway"

    def may_be_given(self, step: Ask, got: Got, made: Made) -> None:
        """A stored answer is as old as it says, and not older than it may be."""
        word = WORDS[made.said.control]
        age = self.clock() - made.at
        over = age - word.life
        wants = dict(part.partition("=")[::2] for part in step.wants.split(", "))
        assert abs(int(got.headers["Age"]) - age) <= 1, (got, age)
        assert word.stored, got
        assert word.shared or made.who, "private, and for nobody in particular"
        in_error = self.resource.failing and over < word.in_error and made.said.status < 500
        if got.cache == "HIT":
            assert over < 0, f"{over} s over"
            assert "no-cache" not in wants
            assert age <= float(wants.get("max-age", "inf"))
            assert -over >= float(wants.get("min-fresh", "0"))
        elif not in_error:
            assert "no-cache" not in wants
            assert "min-fresh" not in wants
            if "max-age" in wants:
                assert "max-stale" in wants
                assert age <= float(wants["max-age"])
            at_will = float(wants["max-stale"] or "inf") if "max-stale" in wants and not word.strict else -1.0
            assert over < word.revalidated or over <= at_will, f"{over} s over"


def _once(step: Ask) -> Ask:
    return step._replace(beside=())


class Stage:
    """What all examples share; each has a path of its own there."""

    def __init__(self, node: Gateway, upstream: UpstreamServer, client: Client, clock: Clock) -> None:
        self.node = node
        self.client = client
        self.clock = clock
        self._upstream = upstream

    def __repr__(self) -> str:
        return "<Stage>"

    def model(self, said: Change) -> Model:
        path = f"/{len(self._upstream.answers)}"
        resource = Resource(self.clock, path, said)
        self._upstream.answer(path, resource.answer)
        self._upstream.requests.clear()
        return Model(self.node, resource, self.client, self.clock)


@pytest.fixture
async def stage(gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock) -> Stage:
    node = await gateway({"plugins": {"cache": {"stale_if_error": STALE_IF_ERROR}}})
    clock.stand(node)
    # No answer is refreshed before its end: that is by chance.
    node.plugins["cache"].chance = float  # type: ignore[attr-defined]
    return Stage(node, upstream, ask, clock)


@settings(max_examples=400)
@given(said=changes, happens=lives)
async def test_no_order_of_things_gives_a_client_what_it_must_not_have(
    stage: Stage, said: Change, happens: list[Step]
) -> None:
    model = stage.model(said)
    for step in happens:
        await model.take(step)
