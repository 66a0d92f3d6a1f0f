"""Refuses bearer tokens that were revoked, and with a key also those that are not valid."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field, SecretStr, model_validator

from gateway.plugin import (
    Answer,
    Plugin,
    PluginConfig,
    Read,
    Redis,
    Request,
    Response,
    Seconds,
    problem,
)
from plugins._keys import KeyTemplate, halves
from plugins.token_blacklist.tokens import (
    Malformed,
    NotValid,
    bearer_of,
    claims_of,
    id_of,
    time_in,
    user_in,
)

if TYPE_CHECKING:
    from gateway.plugin import Worker
    from plugins.token_blacklist.verifier import Verifier

MAX_KNOWN_TOKENS: Final = 10_000
MAX_LEEWAY: Final = 3600.0

SecretAlgorithm = Literal["HS256", "HS384", "HS512"]
PublicAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of a token."""

    read: Read
    """Asks whether it was revoked."""
    user: str | None
    """Whose it is; None where nothing was verified."""
    expires: float | None
    """When it stops being valid, leeway included; None where nothing was verified, or for never."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a token is refused (RFC 6750, section 3.1)."""

    status: int
    error: str
    description: str


MALFORMED: Final = Refusal(400, "invalid_request", "send one token, as Authorization: Bearer TOKEN")
REVOKED: Final = Refusal(401, "invalid_token", "revoked")
EXPIRED: Final = Refusal(401, "invalid_token", "the token has expired")


class TokenBlacklist(Plugin):
    """A token that was revoked is refused on every node as soon as Redis has said so.

    "Not revoked" is kept in the mirror, so a token in use costs no trip. `sub` becomes the request's user only
    where `secret` or `public_key` let the signature be verified.
    """

    class Config(PluginConfig):
        required: bool = Field(False, description="true: a request without a bearer token is refused.")
        realm: str = Field(
            "gateway", pattern=r"^[ !#-\[\]-~]+$", description="What the WWW-Authenticate of a refusal says."
        )
        key: KeyTemplate = Field(
            "{prefix}:token:blacklist:{id}", description="Name of the key that stands for a revoked token."
        )
        hash_ids: bool = Field(
            True,
            description="Whether the key of a token without jti has its SHA-256; false: the token, of up to 1024"
            " characters.",
        )
        secret: SecretStr | None = Field(None, description="Verify tokens that were signed with this secret (HS256).")
        public_key: str | None = Field(None, description="Verify tokens with this public key in PEM.")
        algorithms: tuple[SecretAlgorithm | PublicAlgorithm, ...] = Field(
            (), description="Which algorithms a token may use; HS256 with secret, to be given with public_key."
        )
        audience: tuple[str, ...] = Field(
            (), description="A verified token that names audiences must name one of these."
        )
        issuer: str = Field("", description="A verified token must come from this issuer; empty: from any.")
        leeway: Seconds = Field(0.0, le=MAX_LEEWAY, description="How far the clocks of issuer and gateway may differ.")

        @model_validator(mode="after")
        def _sensible(self) -> TokenBlacklist.Config:
            if self.secret is not None and self.public_key is not None:
                raise ValueError("expected secret or public_key, not both")
            if self.secret is None and self.public_key is None and (self.algorithms or self.audience or self.issuer):
                raise ValueError("algorithms, audience and issuer are only checked with secret or public_key")
            if self.public_key is not None and "PRIVATE KEY" in self.public_key:
                raise ValueError("public_key is a private key, which only the issuer should have")
            if self.public_key is not None and not self.algorithms:
                raise ValueError('public_key needs algorithms, such as ["RS256"] or ["ES256"]')
            symmetric = {name for name in self.algorithms if name.startswith("HS")}
            if self.secret is not None and symmetric != set(self.algorithms):
                raise ValueError("with secret, algorithms are HS256, HS384 or HS512")
            if self.public_key is not None and symmetric:
                raise ValueError("with public_key, HS algorithms would take the public key as a secret")
            self.verifier()
            return self

        def verifier(self) -> Verifier | None:
            """What checks tokens; None where no key is configured.

            Raises:
                ValueError: the key does not fit the algorithms.
            """
            text = self.secret.get_secret_value() if self.secret is not None else self.public_key
            if text is None:
                return None
            from plugins.token_blacklist.verifier import Verifier, prepared_key

            algorithms = self.algorithms or ("HS256",)
            key = prepared_key(text, algorithms)
            return Verifier(key, algorithms, self.audience, self.issuer, self.leeway)

    on_redis_failure = "refuse"
    config: Config

    def __init__(self, config: Config, name: str) -> None:
        super().__init__(config, name)
        self.clock: Callable[[], float] = time.time
        self._verifier = config.verifier()
        self._prefix = "gateway"
        # SHA-256 of the token -> what it says, so that the hot path neither decodes nor verifies.
        self._known: OrderedDict[bytes, Seen] = OrderedDict()

    async def start(self, worker: Worker) -> None:
        self._prefix = worker.redis.prefix

    def token_id(self, token: str, claims: Mapping[str, Any] | None) -> str:
        """What stands for a token in its key.

        Raises:
            NotValid: it cannot be part of a key.
        """
        return id_of(token, claims, hashed=self.config.hash_ids)

    def key(self, token_id: str, prefix: str) -> str:
        """The key that stands for a revoked token."""
        return token_id.join(halves(self.config.key, prefix))

    def ask(self, request: Request, redis: Redis) -> Answer | None:
        note = request.notes.get(self)
        if note is None:
            note = self._look(request)
            if isinstance(note, Refusal):
                request.state[self.name] = note
                return None
            # What a token says stays; whether it is still valid is looked at each time.
            request.notes[self] = note
        seen, request.token = note
        if seen is None:
            return None
        if seen.expires is not None and seen.expires <= self.clock():
            request.state[self.name] = EXPIRED
            return None
        if seen.user is not None:
            request.speaks_for(seen.user)
        return redis.look(seen.read)

    def check(self, request: Request, reply: Any) -> Response | None:
        if self not in request.answers:
            refusal: Refusal | None = request.state.get(self.name)
            return self._refuse(refusal) if refusal is not None or self.config.required else None
        if reply:
            return self._refuse(REVOKED)
        seen, _ = request.notes[self]
        if seen.user is not None:
            # Again: a plugin before this one may have learned of another user from Redis meanwhile.
            request.speaks_for(seen.user)
        return None

    # -- inside ------------------------------------------------------------------------------------

    def _look(self, request: Request) -> tuple[Seen | None, str | None] | Refusal:
        """What the request's token says, and the token; two times None where it has none."""
        fields = request.headers.getall("Authorization", None)
        if fields is None:
            return None, None
        try:
            token = bearer_of(fields)
        except Malformed:
            return MALFORMED
        if token is None:
            return None, None
        request.token = token
        digest = sha256(token.encode()).digest()
        seen = self._known.get(digest)
        if seen is None:
            try:
                seen = self._read(token)
            except NotValid as error:
                return Refusal(401, "invalid_token", str(error))
            if len(self._known) >= MAX_KNOWN_TOKENS:
                self._known.popitem(last=False)
            self._known[digest] = seen
        return seen, token

    def _read(self, token: str) -> Seen:
        if self._verifier is None:
            return Seen(self._asks(self.token_id(token, claims_of(token))), None, None)
        claims = self._verifier.verify(token, self.clock())
        expires = time_in(claims, "exp")
        ends = None if expires is None else expires + self.config.leeway
        return Seen(self._asks(self.token_id(token, claims)), user_in(claims), ends)

    def _asks(self, token_id: str) -> Read:
        return Read("EXISTS", self.key(token_id, self._prefix))

    def _refuse(self, refusal: Refusal | None) -> Response:
        """400 or 401; who sent no token is not told of an error."""
        challenge = f'Bearer realm="{self.config.realm}"'
        if refusal is None:
            response = problem(401, "Token required", "Send a token, as Authorization: Bearer TOKEN.")
        else:
            challenge += f', error="{refusal.error}", error_description="{refusal.description}"'
            title = "Token not valid" if refusal.status == 401 else "Authorization not understood"
            response = problem(refusal.status, title, f"{refusal.description[0].upper()}{refusal.description[1:]}.")
        response.set("WWW-Authenticate", challenge)
        return response
