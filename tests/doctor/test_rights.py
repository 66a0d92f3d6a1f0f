"""What a user may is asked of a real server, in each of the ways that its rights leave; nothing is ever run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import redis

from gateway.doctor.needs import LINKS, MIRROR
from gateway.doctor.rights import Lacking, MayNotLook, lacking, user_of

MakeUser = Callable[..., Awaitable[str]]
NEEDED = [*LINKS, *MIRROR, ("get",), ("set",), ("zadd",), ("unlink",), ("rpush",)]
NEEDED += [("no_such_command",), ("reset",), ("exec",), ("quit",), ("flushall",)]
RULES = "+ping +script|load +evalsha +eval +eval_ro +mget +client +get +set +rpush +flushall"
PROBES = {"gateway:doctor": "gateway:*"}
WAYS = {"transaction": "+multi", "dry run": "+acl|dryrun"}


def ask(url: str, probes: dict[str, str] = PROBES, user: str | None = None) -> Lacking:
    with redis.Redis.from_url(url) as client:
        return lacking(client, NEEDED, probes, user)


@pytest.fixture
def kept(redis_url: str) -> redis.Redis:
    """A key that is there before and after: nothing was flushed, nothing else was made."""
    client = redis.Redis.from_url(redis_url)
    client.set("gateway:kept", "1")
    yield client
    assert client.keys() == [b"gateway:kept"]
    client.close()


def test_who_may_everything(redis_url, kept):
    assert ask(redis_url) == Lacking()


@pytest.mark.parametrize("way", WAYS)
async def test_finds_what_is_missing(acl_user: MakeUser, kept, way):
    url = await acl_user("~gateway:*", *RULES.split(), WAYS[way])
    assert ask(url) == Lacking(("unlink", "zadd"))
    assert ask(await acl_user("~gateway:*", *RULES.split(), "+zadd", "+unlink", WAYS[way])) == Lacking()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("keys", ["~other:*", "%R~gateway:*"])
async def test_finds_keys_that_are_closed(acl_user: MakeUser, kept, way, keys):
    url = await acl_user(keys, *RULES.split(), "+zadd", "+unlink", WAYS[way])
    assert ask(url) == Lacking((), ("gateway:*",))


@pytest.mark.parametrize("way", WAYS)
async def test_keys_that_are_only_read_need_not_be_open_for_writing(acl_user: MakeUser, kept, way):
    probes = {**PROBES, "token:doctor:v1": "token:*:v1", "login:doctor": "login:*"}
    url = await acl_user("~gateway:*", "%R~token:*", *RULES.split(), "+zadd", "+unlink", WAYS[way])
    assert ask(url, probes) == Lacking((), ("login:*",))


async def test_who_may_not_look_learns_at_least_what_the_links_lack(acl_user: MakeUser, kept):
    url = await acl_user("~gateway:*", "+ping", "+mget", "+client")
    assert ask(url) == Lacking(("eval", "eval_ro", "evalsha", "script|load"))
    with pytest.raises(MayNotLook, match=r"\+multi"):
        ask(await acl_user("~gateway:*", *RULES.split()))


async def test_another_users_rights(redis_url, acl_user: MakeUser, kept):
    poor = await acl_user("~gateway:*", *RULES.split())
    assert ask(redis_url, user="gate:way") == Lacking(("unlink", "zadd"))
    with pytest.raises(LookupError, match="nobody"):
        ask(redis_url, user="nobody")
    with pytest.raises(MayNotLook, match=r"\+acl\|dryrun"):
        ask(poor, user="default")


async def test_user_of(redis_url, acl_user: MakeUser):
    assert user_of(redis.Redis.from_url(redis_url)) == "default"
    assert user_of(redis.Redis.from_url(await acl_user())) == "gate:way"
