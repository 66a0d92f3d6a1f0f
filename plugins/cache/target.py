"""What a request wants of the cache, worked out once for each head and remembered with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from gateway.plugin import Remembered, Request
from plugins.cache.body_key import body_key, key_of
from plugins.cache.compress import accepts_gzip
from plugins.cache.facts import Facts, FactsReader
from plugins.cache.keys import Address, Keys
from plugins.cache.query import AS_IT_IS, QueryRule
from plugins.cache.vary import CookieNames, selecting

Scope = Literal["auto", "user", "shared"]

# RFC 9110, section 9.2.1; QUERY: RFC 10008, section 2.
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "QUERY", "TRACE"})
WITHOUT_BODY: Final = frozenset({"GET", "HEAD"})
MAX_COMMON: Final = 8192
MAX_KEY_BODY: Final = 64 << 10
NO_BODY: Final = b""
NOT_READ: Final = "fwd=method; detail=body-unread"
FRAMING: Final = "content-length"


class Target:
    """What a request wants of the cache: a function of its head, and of what is known about who sent it.

    Args:
        asked: what makes its address; see `Keys.new_address`.
        bypass: why it is none of the cache's business, as `fwd` of `Cache-Status`; None: it is.
        shared: there is one copy for all, whoever asks.
        unsafe: the request may change something.
        unread: `bypass` is only said because the body was not read yet; see `Targets.with_body`.

    Attributes:
        identity: whom it was made for.
        who: see `Facts.who`.
        own: where an answer for nobody else lies, or the index of its variants.
        address: where to look first: `own`, or `common` where that is known to be the place.
        at_common: it is `common`.
    """

    __slots__ = (
        "_common",
        "_keys",
        "_trusted",
        "address",
        "at_common",
        "bypass",
        "facts",
        "gzip",
        "host",
        "identity",
        "own",
        "plain",
        "scheme",
        "shared",
        "target",
        "unread",
        "unsafe",
        "who",
    )

    def __init__(
        self,
        request: Request,
        keys: Keys,
        asked: tuple[Any, ...],
        facts: Facts,
        bypass: str | None,
        *,
        scope: Scope,
        unsafe: bool,
        unread: bool,
    ) -> None:
        *_, self.identity, self.who, steering, more = asked
        self.host = request.host
        self.target = request.target
        self.scheme = request.scheme
        self._trusted = "trusted" in request.state
        self.facts = facts
        self.bypass = bypass
        self.shared = scope == "shared"
        self.unsafe = unsafe
        self.unread = unread
        self._keys = keys
        self._common = (*asked[:4], None, (), steering, more) if scope == "auto" and self.who else None
        self.own = self.address = keys.address(*asked)
        self.at_common = False
        self.plain = bypass is None and not facts.asked and not facts.conditions and not facts.ranges
        """Nothing special is asked for: what is stored and fresh is the answer."""
        accepted = request.headers.getall("Accept-Encoding", None)
        # RFC 9111, section 5.2.1.6: a client can forbid it too.
        self.gzip = accepted is not None and accepts_gzip(",".join(accepted)) and "no-transform" not in facts.asked
        """What is stored in gzip may be sent so."""

    def fits(self, request: Request, identity: str | None) -> bool:
        """Whether it is what this request wants if it speaks for this identity."""
        return (
            (self.shared or self.identity == identity)
            and self.scheme == request.scheme
            and self._trusted == ("trusted" in request.state)
            and self.target == request.target
            and self.host == request.host
        )

    @property
    def common(self) -> Address | None:
        """Where an answer lies that its upstream has said is for all; None where that is `own`, or there is none.

        Answers for those without credentials lie there too: what is found is for this request only if it says so.
        """
        return None if self._common is None else self._keys.address(*self._common)


class KeyedTarget(Target):
    """One whose key has fields in it that plugins before the cache may have written. `keep` follows at once."""

    __slots__ = ("_targets", "_written")

    def keep(self, targets: Targets, request: Request) -> None:
        """Note which of these are, see `Targets.written`."""
        self._targets = targets
        self._written = targets.written(request)

    def fits(self, request: Request, identity: str | None) -> bool:
        return super().fits(request, identity) and self._written == self._targets.written(request)


class Commons:
    """The addresses where this worker has met answers for all, by their digests. Bounded.

    It only says where to look first: whether what lies there is for all, that tells itself.
    """

    def __init__(self) -> None:
        self._known: Remembered[str, list[bool]] = Remembered(MAX_COMMON)

    def __len__(self) -> int:
        return len(self._known)

    def known(self, digest: str) -> bool:
        """Whether an answer for all was there the last time."""
        return self._known.get(digest) == [True]

    def learn(self, digest: str) -> None:
        """There is one."""
        found = self._known.get(digest)
        if found is None:
            self._known.put(digest, [True])
        else:
            found[0] = True

    def forget(self, digest: str) -> None:
        """There is none any more."""
        found = self._known.get(digest)
        if found is not None:
            found[0] = False


class Targets:
    """Makes the targets of one cache plugin.

    Args:
        scope: whom answers are kept for.
        credentials: see `FactsReader`.
        upstreams: where each of the configuration's upstreams is, by name.
        query: what of a query counts.
        key_headers, key_cookies: names of fields and cookies whose values are a part of the key.
        methods: what is cached beside GET and HEAD, by the body too.
        max_key_body: bytes; a request with a longer body is not cached.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        scope: Scope,
        credentials: Sequence[str],
        upstreams: Mapping[str, str] | None = None,
        query: QueryRule = AS_IT_IS,
        key_headers: Sequence[str] = (),
        key_cookies: Sequence[str] = (),
        methods: Sequence[str] = (),
        max_key_body: int = MAX_KEY_BODY,
    ) -> None:
        self.keys = keys
        self.commons = Commons()
        self.query = query
        self._scope: Scope = scope
        self._facts = FactsReader(credentials)
        self._upstreams = upstreams or {}
        self._methods = frozenset(methods)
        self._max_key_body = max_key_body
        self._fields = sorted({name.lower().replace("_", "-") for name in key_headers})
        self._cookies = CookieNames(sorted(set(key_cookies)))
        # What was stored under another configuration of the key is not found under this one.
        self._shape: tuple[str, ...] = ()
        for name, texts in (
            ("query", (str(query.sort), *sorted(set(query.ignore))) if query else ()),
            ("headers", self._fields),
            ("cookies", self._cookies.names),
        ):
            if texts:
                self._shape += (name, str(len(texts)), *texts)
        names = [name.encode() for name in self._fields]
        self._writable = (*names, *[name + b" " for name in names], *([b"cookie"] if key_cookies else []))

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

    async def with_body(self, request: Request, target: Target) -> Target:
        """What a request wants whose target is `unread`, once its body is known. The body can still be forwarded.

        Raises:
            BodyTooLarge, BodyTimeout, BodyBroken: the client's body cannot be read.
        """
        content = await body_key(request, self._max_key_body)
        if content is None:
            target.bypass, target.unread = "fwd=bypass; detail=body-too-long", False
            return target
        return self._target(request, request.identity, unknown=request.identity_pending, content=content)

    def learn(self, request: Request, target: Target) -> None:
        """An answer for all was found at `target.common`, or stored there: look there first from now on."""
        self._tell(request, target, self.commons.learn)

    def forget(self, request: Request, target: Target) -> None:
        """There was none."""
        self._tell(request, target, self.commons.forget)

    def _tell(self, request: Request, target: Target, tell: Callable[[str], None]) -> None:
        if target.common is not None:
            tell(target.common.digest)
            # Others may be under way with it: it stays as it is, and the next request gets another.
            if request.notes.get(self) is target:
                del request.notes[self]

    def written(self, request: Request) -> tuple[bytes | None, ...]:
        """What plugins have written of the fields that are a part of the key."""
        changes = request.changes
        # None is what a removed field is, too.
        return tuple([changes.get(name, b"") for name in self._writable])

    # -- inside ------------------------------------------------------------------------------------

    def _target(self, request: Request, identity: str | None, *, unknown: bool, content: str | None = None) -> Target:
        facts = self._facts.read(request)
        shared = self._scope == "shared"
        if shared:
            identity = None
        who = () if shared else facts.who(identity)
        method = request.method
        cached = method in self._methods
        bypass = self._bypass(request, facts, who, unknown=unknown)
        unread = bypass is None and cached and content is None
        if unread and request.body is None:
            content, unread = key_of(NO_BODY, None), False
        route = request.route
        asked = (
            route.name,
            request.scheme,
            request.host,
            self.query(request.target),
            identity,
            who,
            facts.steering,
            self._more(request, content),
        )
        keys, scope = self.keys, self._scope
        why = NOT_READ if unread else bypass
        unsafe = not cached and method not in SAFE
        kind = KeyedTarget if self._writable else Target
        target = kind(request, keys, asked, facts, why, scope=scope, unsafe=unsafe, unread=unread)
        if isinstance(target, KeyedTarget):
            target.keep(self, request)
        if len(self.commons) and (common := target.common) is not None and self.commons.known(common.digest):
            target.address, target.at_common = common, True
        return target

    def _more(self, request: Request, content: str | None) -> tuple[str, ...]:
        """What the key has beside what each has."""
        upstream = request.route.table.upstream
        # What another server has answered under this name is not this one's.
        more = [self._upstreams.get(upstream, upstream), *self._shape]
        if self._writable:
            more += [*selecting(request, self._fields, request.changes), *self._cookies.read(request)]
        if content is not None:
            # RFC 10008, section 2.7: the content and what is said about it.
            names = {name.lower().replace("_", "-") for name in request.headers}
            names |= {name.rstrip().decode() for name in request.changes}
            told = sorted(name for name in names if name.startswith("content-") and name != FRAMING)
            more += ["content", request.method, content, str(len(told)), *told]
            more += selecting(request, told, request.changes)
        return tuple(more)

    def _bypass(self, request: Request, facts: Facts, who: tuple[str, ...], *, unknown: bool) -> str | None:
        method = request.method
        if method not in WITHOUT_BODY:
            if method not in self._methods:
                return "fwd=method"
            if facts.conditions and method != "QUERY":
                # RFC 9110, section 13.2.2: what it asks is not whether the client has the answer already.
                return "fwd=bypass; detail=condition"
        elif request.body is not None:
            return "fwd=bypass; detail=body"
        if request.upgrade is not None:
            return "fwd=bypass; detail=upgrade"
        if facts.precondition:
            return "fwd=bypass; detail=precondition"
        if "no-store" in facts.asked:
            return "fwd=request; detail=no-store"
        if unknown:
            # Redis could not tell, and the request passes all the same: it may be anybody's.
            return "fwd=bypass; detail=identity-unknown"
        if self._scope == "user" and not who:
            return "fwd=bypass; detail=no-identity"
        return None
