"""The tables of the configuration and their keys."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from gateway.config.values import Address, HttpUrl, Methods, Network, PathPattern, RedisUrl, Seconds, Size, UpstreamHost


class Table(BaseModel):
    """A TOML table: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(Table):
    """How clients reach the gateway."""

    listen: Address = Field("127.0.0.1:8080", description="Address and port to listen on.")
    workers: int = Field(1, ge=1, le=256, description="Worker processes; one per core is usual.")
    backlog: int = Field(2048, ge=1, description="Connections the kernel may queue before they are accepted.")
    trusted_proxies: tuple[Network, ...] = Field(
        (), description="Networks of proxies in front whose X-Forwarded-For, -Proto and -Host are believed."
    )
    keepalive_timeout: Seconds = Field(75.0, description="An idle connection is closed after this time.")
    header_timeout: Seconds = Field(10.0, description="A request's line and headers must arrive within this time.")
    body_timeout: Seconds = Field(30.0, description="Longest pause between two pieces of a request's body.")
    send_timeout: Seconds = Field(60.0, description="Longest time a client may refuse to take what is sent to it.")
    drain_timeout: Seconds = Field(30.0, description="At the end, requests in flight get this time to finish.")
    max_request_line: Size = Field(8190, description="Longest request target; beyond it 414.")
    max_header: Size = Field(8190, description="Longest single header line; beyond it 431.")
    max_headers: int = Field(100, ge=1, description="Most header lines of a request; beyond it 431.")
    max_body: Size = Field(100 << 20, description="Longest request body; beyond it 413.")
    max_connections: int = Field(20_000, ge=1, description="Most client connections of a worker; more are closed.")


class MirrorTable(Table):
    """The copy of Redis in each worker's memory, which Redis itself keeps true."""

    max_bytes: Size = Field(64 << 20, description="Bound of the copy in each worker; 0 turns it off.")


class RedisTable(Table):
    """The shared store."""

    url: RedisUrl = Field(
        "embedded",
        description='"embedded" (a Valkey server started here), redis://, rediss:// (TLS), unix://,'
        " redis+sentinel://HOST,HOST/SERVICE or redis+cluster://HOST,HOST.",
    )
    prefix: str = Field("gateway", pattern=r"^[A-Za-z0-9_.:-]+$", description="What the names of all keys begin with.")
    state_dir: str = Field("", description='Where the embedded server keeps its data; empty: "~/.local/state/gateway".')
    timeout: Seconds = Field(0.25, gt=0, description="Longest time a request waits for Redis, all questions together.")
    max_silence: Seconds = Field(
        3.0, gt=0, description="A connection without a word for this long counts as lost (it is pinged before that)."
    )
    max_queue: int = Field(10_000, ge=1, description="Most replies a link may be waiting for; past it Redis is down.")
    backoff_base: Seconds = Field(0.05, gt=0, description="First pause before reconnecting; it doubles, with jitter.")
    backoff_max: Seconds = Field(2.0, gt=0, description="Longest pause before reconnecting.")
    read_from: Literal["primary", "replica"] = Field(
        "primary",
        description='Where answers of the cache are read: "primary", or "replica" of a cluster or behind Sentinels;'
        " whatever decides is always asked of the primary.",
    )
    mirror: MirrorTable = MirrorTable()


class Admin(Table):
    """Health, metrics and what plugins add, on a listener of their own."""

    listen: Address = Field("127.0.0.1:9090", description="Address and port of /_gateway/health and /_gateway/metrics.")
    token: SecretStr = Field(
        SecretStr(""), description="Bearer token for all but /_gateway/health; empty: whoever reaches it may ask."
    )
    enabled: bool = Field(True, description="Whether to listen at all.")


class Log(Table):
    """What is written to standard output and standard error."""

    access: bool = Field(True, description="One JSON line per request on standard output.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Of the gateway's own messages.")
    max_buffer: Size = Field(
        4 << 20, description="Access log lines waiting for a slow reader; past it lines are dropped."
    )


class Upstream(Table):
    """An API that answers for real."""

    url: HttpUrl = Field(description="Where it is; a path is put in front of each request's.")
    host: UpstreamHost = Field(
        "keep", description='The Host it sees: "keep" the client\'s, "upstream" the URL\'s, or a name.'
    )
    connect_timeout: Seconds = Field(5.0, gt=0, description="To open a connection; beyond it 504.")
    read_timeout: Seconds = Field(60.0, gt=0, description="Longest silence while it answers; beyond it 504.")
    max_connections: int = Field(1000, ge=1, description="Most connections of a worker; more requests wait.")
    keepalive_timeout: Seconds = Field(15.0, description="An idle connection is kept this long for the next request.")
    max_header: Size = Field(16384, description="Longest header line of an answer; beyond it 502.")
    verify_tls: bool = Field(True, description="Whether an https upstream's certificate must be valid.")


class PluginTable(BaseModel):
    """The keys every plugin has; its own keys stand beside them and are checked by the plugin's `Config`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    use: str = Field(
        "",
        description='A built-in name, or "module:Class" of a file beside the configuration; empty: the table\'s name.',
    )
    enabled: bool = Field(True, description="false takes it out of every chain.")
    on_redis_failure: Literal["pass", "refuse", "local"] | None = Field(
        None, description="What happens to a request while Redis is down; the plugin has its own default."
    )


class Match(Table):
    """Which requests a route is for; what is not given matches everything."""

    host: str | None = Field(
        None,
        pattern=r"^(\*\.)?[A-Za-z0-9._:\[\]-]+$",
        description='A host name, or "*.example.com" for all names below it.',
    )
    path: PathPattern = Field(
        "/*",
        description='"/health" exactly; "/users/{id}" and "/users/*/posts" with any one segment; "/api/*" and below.',
    )
    methods: Methods = Field((), description="Methods; none: all.")

    def __str__(self) -> str:
        return " ".join([*([",".join(self.methods)] if self.methods else []), f"{self.host or ''}{self.path}"])


class RouteTable(Table):
    """Which requests go through which plugins to which upstream."""

    name: str = Field("", description="For logs, metrics and per-route limits; empty: what it matches.")
    match: Match = Match()
    upstream: str = Field("default", description="The name of an [upstreams.NAME] table.")
    plugins: tuple[str, ...] = Field((), description="Names of [plugins.NAME] tables, in their order.")

    @property
    def label(self) -> str:
        """Its name, or what it matches: `GET,HEAD api.example/users/*`."""
        return self.name or str(self.match)


class Config(Table):
    """The whole configuration."""

    server: Server = Server()
    redis: RedisTable = RedisTable()
    admin: Admin = Admin()
    log: Log = Log()
    upstreams: dict[str, Upstream] = Field(default_factory=dict, description="Upstreams by name.")
    plugins: dict[str, PluginTable] = Field(default_factory=dict, description="Plugins by name.")
    routes: tuple[RouteTable, ...] = Field((), description="Routes; the most specific match wins, not the first.")
