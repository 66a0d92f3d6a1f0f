"""Where an answer's life comes from, seen by a client."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.harness import UpstreamServer
from tests.plugins.cache.conftest import Client, Clock

Say = Callable[..., None]


def with_cache(**keys: Any) -> dict[str, Any]:
    return {"plugins": {"cache": keys}}


async def test_4_2_2_what_has_not_changed_for_long_is_kept_for_a_tenth_of_that(
    gateway: StartGateway, ask: Client, say: Say, clock: Clock
) -> None:
    node, none = await gateway(with_cache()), await gateway(with_cache(heuristic=0))
    clock.stand(node, none)
    say("/a", None, Last_Modified=formatdate(clock() - 1000, usegmt=True))
    await ask(node)
    clock.pass_by(99)
    assert (await ask(node)).cache == "HIT"
    clock.pass_by(2)
    assert (await ask(node)).cache == "MISS"
    say("/b", None, Last_Modified=formatdate(clock() - 1000, usegmt=True))
    for _ in range(2):
        assert (await ask(none, "/b")).cache == "MISS"


@pytest.mark.parametrize(
    ("targeted", "control", "life"),
    [
        ("max-age=30", "max-age=60", 30),
        ("max-age=30", "no-store", 30),
        ("max-age=30;x=1, unknown", "no-store", 30),
        ("no-store", "max-age=60", 0),
        ("private", "max-age=60", 0),
        ("max-age=0", "max-age=60", 0),
        ("", "max-age=60", 60),
        ("max-age=30, &&&", "max-age=60", 60),
        ('max-age="30"', "max-age=60", 60),
        ("MAX-AGE=30", "max-age=60", 60),
        ("max-age=-1", "max-age=60", 60),
    ],
)
async def test_rfc_9213_a_targeted_field_counts_instead(
    gateway: StartGateway, ask: Client, say: Say, clock: Clock, targeted: str, control: str, life: int
) -> None:
    say("/a", control, CDN_Cache_Control=targeted)
    node = await gateway(with_cache(scope="shared"))
    clock.stand(node)
    await ask(node)
    if life:
        clock.pass_by(life - 1)
        assert (await ask(node)).cache == "HIT"
        clock.pass_by(1)
    assert (await ask(node)).cache == "MISS"


@pytest.mark.parametrize("off", [-300, 300])
async def test_a_machine_whose_clock_is_off_goes_by_redis_clock(
    gateway: StartGateway, ask: Client, say: Say, off: float, caplog: pytest.LogCaptureFixture
) -> None:
    say("/a", "max-age=60")
    node, other = await gateway(with_cache()), await gateway(with_cache())
    plugin: Any = other.plugins["cache"]
    plugin.clock = plugin.wall = lambda: time.time() + off
    await plugin._compare_clocks()
    await ask(node)
    got = await ask(other)
    assert got.cache == "HIT"
    assert got.why in ("gateway; hit; ttl=59", "gateway; hit; ttl=60")
    assert "clock is" in caplog.text


async def test_rfc_9213_our_own_field_comes_first(gateway: StartGateway, ask: Client, say: Say) -> None:
    say("/a", "no-store", CDN_Cache_Control="no-store", Gateway_Cache_Control="max-age=60")
    node = await gateway(with_cache())
    await ask(node)
    assert (await ask(node)).cache == "HIT"


async def test_5_3_expires_counts_only_as_a_valid_date(
    gateway: StartGateway, ask: Client, say: Say, clock: Clock
) -> None:
    node = await gateway(with_cache())
    for path, expires, cache in [
        ("/a", "Thu, 18 Aug 2050 02:01:18 GMT", "HIT"),
        ("/b", "Thursday, 18-Aug-50 02:01:18 GMT", "HIT"),
        ("/c", "Thu Aug 18 02:01:18 2050", "HIT"),
        ("/d", "Thu, 18 Aug 2050 02:01:18 UTC", "MISS"),
        ("/e", "Thu, 18 Aug 2050 2:01:18 GMT", "MISS"),
        ("/f", "Thu, 18  Aug  2050 02:01:18 GMT", "MISS"),
        ("/g", "0", "MISS"),
    ]:
        say(path, None, Expires=expires)
        await ask(node, path)
        assert (await ask(node, path)).cache == cache, expires


async def test_honor_override_goes_by_the_configuration_but_for_private(
    gateway: StartGateway, ask: Client, say: Say, clock: Clock
) -> None:
    node = await gateway(with_cache(ttl=60, honor="override", scope="shared"))
    clock.stand(node)
    for path, control in (("/a", "no-store"), ("/b", "max-age=5"), ("/c", "no-cache, max-age=0"), ("/d", "private")):
        say(path, control)
        await ask(node, path)
    clock.pass_by(59)
    assert [(await ask(node, path)).cache for path in ("/a", "/b", "/c", "/d")] == ["HIT", "HIT", "HIT", "MISS"]


async def test_ttl_by_content_type(gateway: StartGateway, ask: Client, say: Say, clock: Clock) -> None:
    node = await gateway(with_cache(ttl=10, ttl_by_content_type={"image/*": "1m", "text/csv": 30}))
    clock.stand(node)
    kinds = {"/png": "image/png", "/csv": "text/csv; charset=utf-8", "/html": "text/html"}
    for path, kind in kinds.items():
        say(path, None, Content_Type=kind)
        await ask(node, path)
    for seconds, cached in ((9, {"/png", "/csv", "/html"}), (20, {"/png", "/csv"}), (30, {"/png"})):
        clock.pass_by(seconds)
        for path in kinds:
            got = await ask(node, path, headers={"Cache-Control": "only-if-cached"})
            assert (got.status == 200) == (path in cached), (path, seconds)


async def test_jitter_ends_what_was_fetched_together_at_different_times(
    gateway: StartGateway, ask: Client, say: Say, clock: Clock
) -> None:
    node = await gateway(with_cache(ttl=100, jitter=0.5))
    clock.stand(node)
    for number in range(20):
        say(f"/{number}", None)
        await ask(node, f"/{number}")
    left = []
    for seconds in (49, 26, 26):
        clock.pass_by(seconds)
        only = {"Cache-Control": "only-if-cached"}
        left.append(sum([(await ask(node, f"/{number}", headers=only)).status == 200 for number in range(20)]))
    assert left[0] == 20
    assert 0 < left[1] < 20
    assert left[2] == 0


@pytest.mark.parametrize(
    ("set_cookie", "cached", "given"), [("refuse", "MISS", True), ("strip", "HIT", False), ("store", "HIT", True)]
)
async def test_what_becomes_of_cookies(
    gateway: StartGateway, ask: Client, say: Say, set_cookie: str, cached: str, given: bool
) -> None:
    say("/a", "max-age=60", Set_Cookie="a=b")
    node = await gateway(with_cache(set_cookie=set_cookie))
    assert "Set-Cookie" in (await ask(node)).headers, "the one who asked gets it"
    second = await ask(node)
    assert (second.cache, "Set-Cookie" in second.headers) == (cached, given)


async def test_5_2_2_the_forms_that_name_fields_keep_the_rest(gateway: StartGateway, ask: Client, say: Say) -> None:
    say(
        "/a",
        'max-age=60, no-cache="x-one", private="X-Two, set-cookie"',
        X_One="1",
        X_Two="2",
        X_Three="3",
        Set_Cookie="a=b",
    )
    node = await gateway(with_cache(scope="shared"))
    first = await ask(node)
    assert {"X-One", "X-Two", "X-Three", "Set-Cookie"} <= set(first.headers)
    second = await ask(node)
    assert second.cache == "HIT"
    assert second.headers["X-Three"] == "3"
    assert not {"X-One", "X-Two", "Set-Cookie"} & set(second.headers)


@pytest.mark.parametrize("field", ["Location", "Content_Location"])
async def test_4_4_what_an_answer_names_is_purged_with_the_changed_url(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Say, field: str
) -> None:
    node = await gateway(with_cache())
    for value, gone in (
        ("/b", True),
        ("b", True),
        ("http://api.test/b", True),
        ("http://other.test/b", False),
        ("//[", False),
    ):
        say("/a", "max-age=60", **{field: value})
        say("/b", "max-age=60")
        await ask(node, "/b")
        assert (await ask(node, "/b")).cache == "HIT"
        await ask(node, "/a", method="POST")
        assert (await ask(node, "/b")).cache == ("MISS" if gone else "HIT"), value
