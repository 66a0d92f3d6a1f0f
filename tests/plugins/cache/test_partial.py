"""Parts of answers (RFC 9110, section 14; RFC 9111, sections 3.3 and 3.4), seen by a client."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from tests.conftest import StartGateway
from tests.harness import UpstreamServer
from tests.plugins.cache.conftest import Client, Clock, Got

CACHE: dict[str, Any] = {"plugins": {"cache": {}}}
BODY = b"0123456789"


class Parts:
    """An upstream that answers `Range: bytes=A-B` and `bytes=A-` with a part."""

    def __init__(self, upstream: UpstreamServer, etag: str = '"v1"') -> None:
        self.etag = etag
        self.body = BODY
        self.control = "max-age=60"
        self.asked: list[tuple[str | None, str | None]] = []
        upstream.answer("/a", self._answer)

    def _answer(self, request: web.Request) -> web.Response:
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
        self.asked.append((wanted, condition))
        headers = {"Cache-Control": self.control, "ETag": self.etag}
        if wanted is None or condition not in (None, self.etag):
            return web.Response(body=self.body, headers=headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), int(last) + 1 if last else len(self.body)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(self.body)}"
        return web.Response(status=206, body=self.body[start:stop], headers=headers)


@pytest.fixture
def parts(upstream: UpstreamServer) -> Parts:
    return Parts(upstream)


def seen(got: Got) -> tuple[int, str | None, bytes, str]:
    return (got.status, got.headers.get("Content-Range"), got.body, got.cache)


def asks_for(ranges: str, **fields: str) -> dict[str, Any]:
    return {"headers": {"Range": f"bytes={ranges}"} | {name.replace("_", "-"): value for name, value in fields.items()}}


@pytest.mark.parametrize(
    ("ranges", "status", "said", "body"),
    [
        ("0-1", 206, "bytes 0-1/10", b"01"),
        ("8-", 206, "bytes 8-9/10", b"89"),
        ("-3", 206, "bytes 7-9/10", b"789"),
        ("4-400", 206, "bytes 4-9/10", b"456789"),
        ("10-", 416, "bytes */10", b""),
        ("a-b", 200, None, BODY),
    ],
)
async def test_14_2_a_stored_answer_serves_its_parts(
    gateway: StartGateway, parts: Parts, ask: Client, ranges: str, status: int, said: str | None, body: bytes
) -> None:
    node = await gateway(CACHE)
    await ask(node)
    assert seen(await ask(node, **asks_for(ranges))) == (status, said, body, "HIT")
    assert seen(await ask(node)) == (200, None, BODY, "HIT")
    assert len(parts.asked) == 1


async def test_13_1_5_if_range(gateway: StartGateway, parts: Parts, ask: Client) -> None:
    node = await gateway(CACHE)
    await ask(node)
    assert (await ask(node, **asks_for("0-1", If_Range='"v1"'))).status == 206
    assert (await ask(node, **asks_for("0-1", If_Range='"v0"'))).body == BODY
    assert (await ask(node, **asks_for("0-1", If_Range='W/"v1"'))).body == BODY


async def test_13_2_2_conditions_come_first(gateway: StartGateway, parts: Parts, ask: Client) -> None:
    node = await gateway(CACHE)
    await ask(node)
    assert (await ask(node, **asks_for("0-1", If_None_Match='"v1"'))).status == 304


async def test_3_3_a_part_is_stored_and_serves_what_it_has(gateway: StartGateway, parts: Parts, ask: Client) -> None:
    node, other = await gateway(CACHE), await gateway(CACHE)
    assert seen(await ask(node, **asks_for("2-6"))) == (206, "bytes 2-6/10", b"23456", "MISS")
    assert seen(await ask(other, **asks_for("2-6"))) == (206, "bytes 2-6/10", b"23456", "HIT")
    assert seen(await ask(node, **asks_for("3-4"))) == (206, "bytes 3-4/10", b"34", "HIT")
    assert len(parts.asked) == 1
    assert seen(await ask(node, **asks_for("6-9"))) == (206, "bytes 6-9/10", b"6789", "MISS")


async def test_3_4_parts_become_one_and_then_the_whole(gateway: StartGateway, parts: Parts, ask: Client) -> None:
    node = await gateway(CACHE)
    await ask(node, **asks_for("3-5"))
    await ask(node, **asks_for("5-9"))
    assert seen(await ask(node, **asks_for("4-8"))) == (206, "bytes 4-8/10", b"45678", "HIT")
    await ask(node, **asks_for("0-3"))
    assert seen(await ask(node)) == (200, None, BODY, "HIT")
    assert parts.asked == [("bytes=3-5", None), ("bytes=5-9", None), ("bytes=0-3", None)]


async def test_3_3_a_part_from_the_beginning_is_completed(gateway: StartGateway, parts: Parts, ask: Client) -> None:
    node = await gateway(CACHE)
    await ask(node, **asks_for("0-4"))
    whole = await ask(node)
    assert seen(whole) == (200, None, BODY, "MISS")
    assert "fwd=partial; fwd-status=206; stored" in whole.why
    assert parts.asked[1:] == [("bytes=5-", '"v1"')]
    assert seen(await ask(node)) == (200, None, BODY, "HIT")


async def test_3_4_parts_of_different_answers_are_not_mixed(gateway: StartGateway, parts: Parts, ask: Client) -> None:
    node = await gateway(CACHE)
    await ask(node, **asks_for("0-4"))
    parts.etag, parts.body = '"v2"', b"abcdefghij"
    assert (await ask(node, **asks_for("5-9"))).body == b"fghij"
    assert (await ask(node, **asks_for("0-4"))).body == b"abcde"
    assert (await ask(node)).body == b"abcdefghij"


async def test_3_4_a_weak_validator_combines_nothing(gateway: StartGateway, parts: Parts, ask: Client) -> None:
    parts.etag = 'W/"v1"'
    node = await gateway(CACHE)
    await ask(node, **asks_for("0-4"))
    assert seen(await ask(node)) == (200, None, BODY, "MISS")
    assert parts.asked[1] == (None, None)


async def test_a_part_whose_length_is_not_what_it_says_is_not_stored(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client
) -> None:
    upstream.answer(
        "/a",
        lambda request: web.Response(
            status=206, body=b"01234", headers={"Content-Range": "bytes 4-9/10", "Cache-Control": "max-age=60"}
        ),
    )
    node = await gateway(CACHE)
    for _ in range(2):
        assert (await ask(node, **asks_for("4-9"))).cache == "MISS"


async def test_what_is_stale_is_asked_about_whole_and_then_cut(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, clock: Clock
) -> None:
    asked: list[tuple[str | None, str | None]] = []

    def answer(request: web.Request) -> web.Response:
        asked.append((request.headers.get("If-None-Match"), request.headers.get("Range")))
        headers = {"ETag": '"v1"', "Cache-Control": "max-age=60"}
        return web.Response(status=304, headers=headers) if asked[-1][0] else web.Response(body=BODY, headers=headers)

    upstream.answer("/a", answer)
    node = await gateway(CACHE)
    clock.stand(node)
    await ask(node)
    clock.pass_by(61)
    got = await ask(node, **asks_for("0-1"))
    assert (got.status, got.body) == (206, b"01")
    assert asked == [(None, None), ('"v1"', None)]


async def test_14_2_a_range_means_nothing_for_a_head(gateway: StartGateway, parts: Parts, ask: Client) -> None:
    node = await gateway(CACHE)
    await ask(node)
    head = await ask(node, method="HEAD", **asks_for("0-1"))
    assert (head.status, head.headers["Content-Length"], head.cache) == (200, "10", "HIT")
