"""Redis, as the gateway uses it: links that take all questions of a tick, and a mirror that Redis keeps true."""

from gateway.store.answer import All, Answer, Known, RedisDown, RedisError, RedisTimeout
from gateway.store.patience import end_patience, share_patience
from gateway.store.prepared import Call, Gets, Read
from gateway.store.redis import Redis
from gateway.store.script import Script

__all__ = [
    "All",
    "Answer",
    "Call",
    "Gets",
    "Known",
    "Read",
    "Redis",
    "RedisDown",
    "RedisError",
    "RedisTimeout",
    "Script",
    "end_patience",
    "share_patience",
]
