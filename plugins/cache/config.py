"""The keys of `[plugins.cache]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from gateway.plugin import Network, PluginConfig, Seconds, Size
from plugins.cache.policy import MAX_LIFE, Rules
from plugins.cache.purge_rules import PurgeRules
from plugins.cache.query import QueryRule
from plugins.cache.tags import parse_templates
from plugins.cache.target import Scope
from plugins.cache.vary import WRITTEN_BY_GATEWAY


def _expected(what: str) -> WrapValidator:
    def read(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"expected {what}") from None

    return WrapValidator(read)


FieldName = Annotated[
    str,
    StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$", max_length=100),
    _expected('a name such as "X-Country", of at most 100 characters, without spaces'),
]
ParameterName = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9._~-]+\*?|\*)$", max_length=100),
    _expected('the name of a parameter, or the beginning of names and "*" as in "utm_*"'),
]
MediaType = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9!#$&^_.+-]+/([a-z0-9!#$&^_.+-]+|\*)$", max_length=200),
    _expected('a type in lower case, such as "application/json" or "image/*"'),
]
Status = Annotated[int, Field(ge=200, le=599)]
Life = Annotated[Seconds, Field(le=MAX_LIFE)]


def _purge_rules(texts: tuple[str, ...]) -> tuple[str, ...]:
    PurgeRules(texts)
    return texts


def _from_the_client(name: str) -> str:
    if name.lower().replace("_", "-") in WRITTEN_BY_GATEWAY:
        raise ValueError(f"{name} is written by the gateway, for each client anew; the key has scheme and host already")
    return name


KeyHeader = Annotated[FieldName, AfterValidator(_from_the_client)]


class CacheConfig(PluginConfig):
    """What is kept, for whom, for how long; and what happens meanwhile."""

    # -- for how long
    ttl: Life = Field(0.0, description="How long to keep what the upstream does not date; 0: not at all.")
    ttl_by_status: dict[Status, Life] = Field(
        default_factory=dict, description='The same for single statuses, errors too: { 404 = "10s" }.'
    )
    ttl_by_content_type: dict[MediaType, Life] = Field(
        default_factory=dict, description='The same for single types: { "image/*" = "1h" }.'
    )
    honor: Literal["origin", "override"] = Field(
        "origin",
        description='"override": the upstream\'s word about time and storing does not count, but for `private`.',
    )
    jitter: float = Field(0.0, ge=0, le=0.5, description="By which part of a ttl an answer may end earlier, by chance.")
    heuristic: float = Field(
        0.1,
        ge=0,
        le=1,
        description="What the upstream dates only by Last-Modified is kept for this part of its age; 0: not.",
    )
    targeted: tuple[FieldName, ...] = Field(
        ("Gateway-Cache-Control", "CDN-Cache-Control"),
        description="Fields that replace Cache-Control, here only; the first that is there counts.",
    )
    keep: Life = Field(
        600.0,
        description="How long an answer is kept to be revalidated once it has ended.",
    )
    stale_while_revalidate: Life = Field(
        0.0, description="How long a stale answer may be served while a fresh one is fetched."
    )
    stale_if_error: Life = Field(60.0, description="How long a stale answer may be served in place of an error.")
    # -- for whom
    scope: Scope = Field(
        "auto",
        description='"auto": one copy for each identity or set of credentials; "user": nothing for requests'
        ' without; "shared": one copy for all.',
    )
    credentials: tuple[FieldName, ...] = Field(
        ("Cookie", "X-Api-Key"),
        description="Request fields that tell whose a request is, beside Authorization, if no plugin has.",
    )
    set_cookie: Literal["refuse", "strip", "store"] = Field(
        "refuse", description='Answers that set cookies are not stored; or "strip": without the cookies; "store": with.'
    )
    # -- the key
    ignore_query: tuple[ParameterName, ...] = Field(
        (), description='Query parameters that do not count, by name or by how names begin: "utm_*".'
    )
    sort_query: bool = Field(False, description="Whether the order of parameters with different names does not count.")
    key_headers: tuple[KeyHeader, ...] = Field((), description="Request fields whose values are a part of the key.")
    key_cookies: tuple[FieldName, ...] = Field(
        (), description="Cookies whose values are a part of the key; useful if Cookie is not among credentials."
    )
    methods: tuple[Literal["POST", "QUERY"], ...] = Field(
        (), description="Methods that only search here: cached like GET, by content type and body too."
    )
    max_key_body: Size = Field(64 << 10, description="A request with a longer body is not cached.")
    # -- bounds
    max_body: Size = Field(1 << 20, description="Longer answers are not stored.")
    compress_over: Size = Field(
        0, description="Bodies from this size on are stored in gzip if that saves a tenth; 0: none (see BREACH)."
    )
    tags: tuple[FieldName, ...] = Field(
        ("Cache-Tag", "Surrogate-Key"), description="Fields of the upstream's answers with tags to purge by."
    )
    # -- purging
    tag_templates: tuple[str, ...] = Field(
        (), max_length=32, description='Tags that answers get beside these, made of the request: ["product:{path.id}"].'
    )
    purge_rules: Annotated[tuple[str, ...], AfterValidator(_purge_rules)] = Field(
        (), description='What a successful change purges: ["PUT|DELETE /products/{id} -> tag product:{path.id}"].'
    )
    purge_from: tuple[Network, ...] = Field(
        (), description="Networks of clients that may send PURGE; without any it goes to the upstream."
    )
    # -- one fetch
    lock_ttl: Seconds = Field(
        5.0, ge=0.1, le=300, description="A worker that dies while it fetches holds others up for this long."
    )
    wait_timeout: Seconds = Field(
        5.0, description="A request waits this long for another's fetch, then it goes to the upstream itself."
    )
    on_wait_timeout: Literal["upstream", "stale"] = Field(
        "upstream", description='"stale": it gets a stale answer instead, if there is one that may be served.'
    )
    early_refresh: float = Field(
        1.0,
        ge=0,
        le=100,
        description="How much earlier than they end answers are refreshed: the mean, in times of what a fetch takes;"
        " 0: never.",
    )
    hot_threshold: int = Field(
        1000, ge=1, description="Reads of Redis a second, of the whole fleet, from which on a key is spread."
    )
    shards: int = Field(4, ge=1, le=64, description="How many copies such a key is spread over; 1: none.")

    @field_validator("tag_templates")
    @classmethod
    def _templates(cls, texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        parse_templates(texts, keyed=info.data.get("key_headers", ()), ignored=info.data.get("ignore_query", ()))
        return texts

    def query_rule(self) -> QueryRule:
        """What of a query counts."""
        return QueryRule(self.ignore_query, self.sort_query)

    def rules(self) -> Rules:
        """What of it `policy` needs."""
        return Rules(
            ttl=self.ttl,
            ttl_by_status=self.ttl_by_status,
            ttl_by_content_type=self.ttl_by_content_type,
            override=self.honor == "override",
            jitter=self.jitter,
            heuristic=self.heuristic,
            keep=self.keep,
            stale_while_revalidate=self.stale_while_revalidate,
            stale_if_error=self.stale_if_error,
            targeted=self.targeted,
            set_cookie=self.set_cookie,
            early=self.early_refresh,
        )
