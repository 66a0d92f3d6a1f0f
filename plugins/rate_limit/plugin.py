"""The plugin: asks, refuses, tells the client where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from gateway.plugin import (
    LATER,
    REFUSED,
    Answer,
    Call,
    Handler,
    Later,
    Plugin,
    PluginConfig,
    Redis,
    Request,
    Response,
    Script,
    problem,
)
from plugins.rate_limit.limits import SECOND, Limit, parse_limit
from plugins.rate_limit.local import Algorithm, LocalLimits
from plugins.rate_limit.settling import Settling
from plugins.rate_limit.who import MAX_KNOWN, encoded, parse_by, who_by

if TYPE_CHECKING:
    from gateway.plugin import Worker

SCRIPTS: Final[dict[Algorithm, Script]] = {
    "sliding_window": Script.beside(__file__, "sliding_window.lua"),
    "token_bucket": Script.beside(__file__, "token_bucket.lua"),
}
# A window keeps the time of each request it counts: about 1 MB per client in Redis.
MAX_IN_WINDOW: Final = 100_000
# Lua counts in doubles, which hold whole numbers up to here.
MAX_LEVEL: Final = 2**53

QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
REFUSAL_FIELDS: Final = frozenset({b"content-type", b"cache-control", b"retry-after"})
# In `Request.state`: where the client stands with its tightest limit so far, as (the plugin, its script's reply).
STANDING: Final = "rate_limit"
STANDING_FIELDS: Final = frozenset({b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"})
STANDING_LINES: Final = b"X-RateLimit-Limit: %d\r\nX-RateLimit-Remaining: %%d\r\nX-RateLimit-Reset: %%d\r\n"

LimitText = Annotated[
    Limit, PlainValidator(parse_limit), WithJsonSchema({"type": "string", "examples": ["100/minute", "5/10s"]})
]
By = Annotated[
    tuple[str, ...],
    BeforeValidator(parse_by),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class RateLimit(Plugin):
    """Lets each client make only so many requests, counted exactly over all nodes by Redis and its clock.

    All limits are decided together, in one script: a request that one of them refuses counts for none. A request that
    an earlier plugin refuses may have been counted, as all plugins ask at once.

    `X-RateLimit-Reset` and `Retry-After` are seconds from now until one more request is allowed than `-Remaining`
    says. The fields speak of the tightest limit: of all limits on the way the one that allows the fewest requests
    now, and of those the one that takes longest to allow another.

    `by = "token"` and `"header:..."` count what the client sends, be it true or made up: whoever can choose it freely
    gets a new limit with each choice. Have it checked, or limit the IP address as well.
    """

    class Config(PluginConfig):
        limits: tuple[LimitText, ...] = Field(
            min_length=1, max_length=8, description='Such as ["100/minute", "1000/hour"]; a request must keep to all.'
        )
        by: By = Field(
            ("ip",),
            description='What is limited: "ip", "route", "user", "token", "header:NAME", or a list: each combination.',
        )
        algorithm: Algorithm = Field(
            "sliding_window",
            description='"sliding_window" (at most N in any period) or "token_bucket" (N at once, then a pace).',
        )
        burst: int | None = Field(
            None, ge=1, description="What a token bucket holds at most; without it, the N of its limit."
        )
        headers: bool = Field(True, description="Whether answers have X-RateLimit-Limit, -Remaining and -Reset.")
        ipv6_prefix: int = Field(64, ge=1, le=128, description="IPv6 addresses with this many bits in common are one.")

        @model_validator(mode="after")
        def _sensible(self) -> RateLimit.Config:
            if len({limit.period for limit in self.limits}) < len(self.limits):
                raise ValueError("expected limits with different periods: of two with the same only one can matter")
            if self.algorithm == "sliding_window":
                if self.burst is not None:
                    raise ValueError('burst belongs to algorithm = "token_bucket"; a window allows its N at any pace')
                if any(limit.count > MAX_IN_WINDOW for limit in self.limits):
                    raise ValueError(
                        f"expected at most {MAX_IN_WINDOW} requests in a sliding window, as each is kept for its"
                        ' period; algorithm = "token_bucket" takes more'
                    )
            elif self.burst is not None and len(self.limits) > 1:
                raise ValueError("burst goes with a single limit; write a second plugin table for the other")
            elif any((self.burst or limit.count) * limit.period > MAX_LEVEL for limit in self.limits):
                raise ValueError("expected a smaller burst or a shorter period: their product is too large to count")
            return self

    on_redis_failure = "local"
    config: Config

    def __init__(self, config: Config, name: str) -> None:
        super().__init__(config, name)
        self.limits = [
            Limit(limit.text, limit.count, limit.period, config.burst or limit.count) for limit in config.limits
        ]
        self.local = LocalLimits(config.algorithm, self.limits)
        self._owing = self.local.owing
        self._lines = [STANDING_LINES % limit.capacity for limit in self.limits]
        self._script = SCRIPTS[config.algorithm]
        self._args = arguments(config.algorithm, self.limits)
        self._who = who_by(config.by, config.ipv6_prefix)
        self._needs_identity = "user" in config.by
        self._guess = f"{name}.guess"
        self._prefix = "gateway"
        self._keys = lru_cache(MAX_KNOWN)(self._keys_of)
        self._settling = Settling(self.local, config.algorithm, self.limits, lambda who: self._keys(who))
        # By the limits that refuse, at most 2**8 of them.
        self._bodies: dict[tuple[int, ...], bytes] = {}

    async def start(self, worker: Worker) -> None:
        self._prefix = worker.redis.prefix
        self._keys.cache_clear()
        self._redis = worker.redis
        self._fleet = worker.fleet
        worker.redis.register(self._script, self._settling.script)

    async def stop(self) -> None:
        await self._settling.stop()

    def ask(self, request: Request, redis: Redis) -> Answer | Later:
        user = request.user
        if self._needs_identity and request.identity_pending and request.early:
            if request.guess is None:
                return LATER
            user = request.state[self._guess] = request.guess
        note = request.notes.get(self)
        if note is None or note[0] != request.client or note[1] != user:
            call = Call(self._script, self._keys(self._who(request, user)), self._args)
            note = request.notes[self] = (request.client, user, call)
        if self._owing:
            self._settling.tell_first(redis, self._who(request, user))
        return redis.call(note[2])

    def check(self, request: Request, reply: Sequence[int]) -> Response | Later | None:
        """Decide by the script's result, which `sliding_window.lua` describes."""
        if self._needs_identity and self._guess in request.state and request.state.pop(self._guess) != request.user:
            return LATER  # it has counted for somebody else, who was on this connection's credentials before
        allowed = reply[0]
        # Another rate limit on the way may be tighter: the tightest one tells.
        best = request.state.get(STANDING)
        if best is None or not allowed or tightness(reply) < tightness(best[1]):
            request.state[STANDING] = (self, reply)
        if allowed:
            return None
        response = self._refuse(tuple(reply[4:]), reply[3])
        self.finish(request, response)
        return response

    def finish(self, request: Request, response: Response) -> None:
        plugin, reply = request.state[STANDING]
        if plugin is self and self.config.headers:
            response.set_lines(STANDING_FIELDS, self._lines[reply[1] - 1] % (reply[2], seconds(reply[3])))

    async def without_redis(self, request: Request, call_next: Handler) -> Response:
        request.state.pop(self._guess, None)
        self.local.share(self._fleet.workers)
        refusal = self.check(request, self.local.take(self._who(request, request.user)))
        if self._owing:
            self._settling.begin(self._redis)
        if isinstance(refusal, Response):
            return refusal
        response = await call_next(request)
        self.finish(request, response)
        return response

    # -- inside ------------------------------------------------------------------------------------

    def _keys_of(self, who: str) -> tuple[bytes, ...]:
        """One key for each limit, all in one slot of a cluster."""
        bucket = ":bucket" if self.config.algorithm == "token_bucket" else ""
        client = f"{self._prefix}:rate:{{{encoded(self.name)}|{who}}}"
        return tuple(f"{client}:{limit.period // 1000}{bucket}".encode() for limit in self.limits)

    def _refuse(self, refusing: tuple[int, ...], wait: int) -> Response:
        body = self._bodies.get(refusing)
        if body is None:
            document = problem(
                429,
                "Too many requests",
                "Send the request again after the seconds that Retry-After says.",
                kind=QUOTA_EXCEEDED,
                **{"violated-policies": [self.limits[number - 1].text for number in refusing]},
            )
            assert isinstance(document.body, bytes)
            body = self._bodies[refusing] = document.body
        head = b"Content-Type: application/problem+json\r\nCache-Control: no-store\r\nRetry-After: %d\r\n" % seconds(
            wait
        )
        return Response.prebuilt(429, head, REFUSAL_FIELDS, body, outcome=REFUSED)


def arguments(algorithm: Algorithm, limits: Sequence[Limit]) -> tuple[bytes, ...]:
    """ARGV of the algorithm's script."""
    numbers: list[int] = []
    for limit in limits:
        numbers += (limit.count, limit.period)
        if algorithm == "token_bucket":
            numbers.append(limit.capacity)
    return tuple(b"%d" % number for number in numbers)


def tightness(reply: Sequence[int]) -> tuple[int, int]:
    """How tight a limit is by its script's reply: the lower, the tighter."""
    return reply[2], -reply[3]


def seconds(microseconds: int) -> int:
    """Whole seconds, rounded up: a client that waits so long is never too early."""
    return -(-microseconds // SECOND)
