"""What a request wants of the cache, worked out once for each head and remembered with it."""

from __future__ import annotations

from typing import Final, Literal

from gateway.plugin import Request
from plugins.cache.facts import Facts, FactsReader
from plugins.cache.keys import MAX_KNOWN_TEXT, Address, Keys

Scope = Literal["auto", "user", "shared"]

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class Target:
    """What a request wants of the cache: a function of its head, and of what is known about who sent it.

    Args:
        bypass: why it is none of the cache's business, as `fwd` of `Cache-Status`; None: it is.
        address: where its answer lies, or the index of variants.
        identity: whom it was made for.
        who: see `Facts.who`.
        shared: there is one copy for all, whoever asks.
    """

    __slots__ = (
        "_trusted",
        "address",
        "bypass",
        "facts",
        "host",
        "identity",
        "plain",
        "scheme",
        "shared",
        "target",
        "who",
    )

    def __init__(
        self,
        request: Request,
        identity: str | None,
        facts: Facts,
        bypass: str | None,
        address: Address,
        who: tuple[str, ...],
        *,
        shared: bool,
    ) -> None:
        self.identity = identity
        self.host = request.host
        self.target = request.target
        self.scheme = request.scheme
        self._trusted = "trusted" in request.state
        self.facts = facts
        self.bypass = bypass
        self.address = address
        self.who = who
        self.shared = shared
        self.plain = bypass is None and not facts.asked and not facts.conditions
        """Nothing special is asked for: what is stored and fresh is the answer."""

    def fits(self, request: Request, identity: str | None) -> bool:
        """Whether it is what this request wants if it speaks for this identity."""
        return (
            (self.shared or self.identity == identity)
            and self.scheme == request.scheme
            and self._trusted == ("trusted" in request.state)
            and self.target == request.target
            and self.host == request.host
        )


class Targets:
    """Makes the targets of one cache plugin.

    Args:
        scope: whom answers are kept for.
        credentials: see `FactsReader`.
    """

    def __init__(self, keys: Keys, *, scope: Scope, credentials: tuple[str, ...]) -> None:
        self.keys = keys
        self._scope = scope
        self._facts = FactsReader(credentials)

    def target(self, request: Request, identity: str | None, *, unknown: bool) -> Target:
        """What the request wants.

        Args:
            identity: whom it speaks for, or will turn out to.
            unknown: that is not known, and will not be.
        """
        if unknown:
            return self._target(request, identity, unknown=True)
        target: Target | None = request.notes.get(self)
        if target is None or not target.fits(request, identity):
            target = self._target(request, identity, unknown=False)
            if request.body is None and request.upgrade is None:
                request.notes[self] = target
        return target

    def _target(self, request: Request, identity: str | None, *, unknown: bool) -> Target:
        facts = self._facts.read(request)
        shared = self._scope == "shared"
        if shared:
            identity = None
        who = () if shared else facts.who(identity)
        size = len(request.target) + facts.size
        address = (self.keys.address if size <= MAX_KNOWN_TEXT else self.keys.new_address)(
            request.route.name, request.scheme, request.host, request.target, identity, who, facts.steering
        )
        bypass = self._bypass(request, facts, who, unknown=unknown)
        return Target(request, identity, facts, bypass, address, who, shared=shared)

    def _bypass(self, request: Request, facts: Facts, who: tuple[str, ...], *, unknown: bool) -> str | None:
        if request.method not in ("GET", "HEAD"):
            return "fwd=method"
        if request.body is not None:
            return "fwd=bypass; detail=body"
        if request.upgrade is not None:
            return "fwd=bypass; detail=upgrade"
        if facts.partial:
            return "fwd=bypass; detail=partial"
        if "no-store" in facts.asked:
            return "fwd=request; detail=no-store"
        if unknown:
            # Redis could not tell, and the request passes all the same: it may be anybody's.
            return "fwd=bypass; detail=identity-unknown"
        if self._scope == "user" and not who:
            return "fwd=bypass; detail=no-identity"
        return None
