"""What the answers say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.load import LIMIT, MAX_AGE, PERIOD, Sample

# `Age` counts whole seconds, so an answer may be one older than its lifetime.
AGE_GRAIN = 1.0
# Who says something wrong so shortly before the end has not stopped.
STILL = 0.6
OWNED = ("page", "open", "change")


@dataclass
class Marks:
    """When what happened, by `time.monotonic`.

    Attributes:
        broken: it began.
        repaired: from then on Redis could be asked again, by whoever asks the right one.
        ended: nobody looked any more.
        health: what each node said of itself, and when: (time, node, ok).
        decided: how often plugins have decided without Redis so far: (time, node, number).
    """

    broken: float = 0.0
    repaired: float = 0.0
    ended: float = float("inf")
    health: list[tuple[float, int, bool]] = field(default_factory=list)
    decided: list[tuple[float, int, float]] = field(default_factory=list)


@dataclass
class Findings:
    """One line of the table. Times are in seconds.

    Attributes:
        open_5xx: on routes with nothing that must refuse; includes requests without an answer.
        strict_5xx: on routes with a session or the blacklist, which refuse by default while they cannot ask.
        blamed: 401, 403 and 429 for those who had done nothing.
        slowest, p99: from the fault on.
        overshoot: most requests beyond the limit within any of its periods.
        foreign: answers made for somebody else.
        overaged: answers from a cache beyond their lifetime.
        old_version: for how long after it was told of a change a client still got what had been before.
        revoked_accepted: for how long after Redis had acknowledged a revocation a node still let the token in.
        normal_after: from the repair until both nodes were well, decided with Redis and answered as before.
        still_wrong: it was not normal yet when it ended.
        without_redis: decisions that plugins made without Redis.
        hits: answers from the cache before the fault: that there is one.
        lost: revocations that Redis had acknowledged and did not know of in the end; they count for nothing here.
        lag: by how much the load itself was late at worst.
        worst: the requests that some of these come from.
        log: what the nodes wrote.
    """

    requests: int = 0
    open_5xx: int = 0
    strict_5xx: int = 0
    blamed: int = 0
    slowest: float = 0.0
    p99: float = 0.0
    overshoot: int = 0
    foreign: int = 0
    overaged: int = 0
    old_version: float = 0.0
    revoked_accepted: float = 0.0
    normal_after: float = 0.0
    still_wrong: bool = False
    without_redis: int = 0
    hits: int = 0
    revocations: int = 0
    lost: int = 0
    lag: float = 0.0
    slowest_by_kind: dict[str, float] = field(default_factory=dict)
    worst: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


def find(
    samples: Sequence[Sample],
    revoked: Mapping[str, float],
    changed: Mapping[str, Sequence[float]],
    marks: Marks,
    lost: Collection[str] = (),
) -> Findings:
    """The line of the table; what the load process knows itself (`lag`, `log`) is left out.

    Args:
        revoked, changed: see `Load`.
        lost: tokens of whose revocation Redis did not know in the end.
    """
    kept = {token: moment for token, moment in revoked.items() if token not in lost}
    done = [sample for sample in samples if sample.status or sample.error]
    after = sorted((sample for sample in done if sample.sent >= marks.broken), key=lambda sample: sample.took)
    failed = [sample for sample in done if sample.status >= 500 or sample.error]
    blamed = [sample for sample in done if _blamed(sample, revoked)]
    owned = [sample for sample in done if sample.kind in OWNED and sample.status == 200]
    found = Findings(
        requests=len(done),
        open_5xx=sum(1 for sample in failed if not _strict(sample)),
        strict_5xx=sum(1 for sample in failed if _strict(sample)),
        blamed=len(blamed),
        slowest=after[-1].took if after else 0.0,
        slowest_by_kind={sample.kind: round(sample.took, 3) for sample in after},
        p99=after[int(len(after) * 0.99)].took if after else 0.0,
        overshoot=overshoot([sample for sample in done if sample.kind == "limited"]),
        foreign=sum(1 for sample in owned if sample.owner != sample.who),
        overaged=sum(1 for sample in owned if sample.age > MAX_AGE + AGE_GRAIN),
        revocations=len(kept),
        lost=len(lost),
        hits=sum(1 for sample in done if sample.cache == "HIT" and sample.sent < marks.broken),
    )
    answered = [sample for sample in done if sample.status == 200]
    old = max(answered, key=lambda sample: _outdated(sample, changed), default=None)
    late = max(answered, key=lambda sample: _too_late(sample, kept), default=None)
    if old is not None and late is not None:
        found.old_version = _outdated(old, changed)
        found.revoked_accepted = _too_late(late, kept)
        found.worst = {"slowest": str(after[-1]), "old version": str(old), "revoked": str(late)} if after else {}
    wrong = [sample.sent + sample.took for sample in (*failed, *blamed)]
    unwell = [moment for moment, _, ok in marks.health if not ok]
    alone, found.without_redis = _without_redis(marks)
    last = max([marks.repaired, *wrong, *unwell, *alone])
    found.normal_after = last - marks.repaired
    found.still_wrong = last > marks.ended - STILL
    return found


def overshoot(samples: Sequence[Sample], limit: int = LIMIT, period: float = PERIOD) -> int:
    """How many more requests than the limit were surely allowed within one period.

    Where between its sending and its answer a request was counted nobody knows: it is in a period if both are.
    """
    allowed = sorted((sample for sample in samples if sample.status == 200), key=lambda sample: sample.sent)
    most = 0
    for first, sample in enumerate(allowed):
        end = sample.sent + period
        most = max(most, sum(1 for other in allowed[first:] if other.sent + other.took < end))
    return max(0, most - limit)


def _without_redis(marks: Marks) -> tuple[list[float], int]:
    """When it was seen that plugins decide without Redis, and how many decisions there were from the fault on."""
    seen: dict[int, float] = {}
    moments, decisions = [], 0.0
    for moment, node, number in marks.decided:
        more = number - seen.get(node, number)
        seen[node] = number
        if more > 0 and moment >= marks.broken:
            moments.append(moment)
            decisions += more
    return moments, round(decisions)


def _strict(sample: Sample) -> bool:
    return sample.kind == "token" or sample.who[0] == "u"


def _blamed(sample: Sample, revoked: Mapping[str, float]) -> bool:
    if sample.status not in (400, 401, 403, 429) or sample.kind == "limited":
        return False
    # While the revocation is on its way to Redis, both answers are right.
    return sample.kind != "token" or sample.who not in revoked


def _outdated(sample: Sample, changed: Mapping[str, Sequence[float]]) -> float:
    """For how long the client had been told of something newer when it asked."""
    if sample.kind not in ("page", "open") or sample.version >= sample.known:
        return 0.0
    return sample.sent - changed[sample.who][sample.version]


def _too_late(sample: Sample, revoked: Mapping[str, float]) -> float:
    """For how long the token had been revoked when it was let in."""
    if sample.kind != "token" or sample.status != 200 or sample.who not in revoked:
        return 0.0
    return max(0.0, sample.sent - revoked[sample.who])
