"""redis-py's clients for any URL of Redis: for commands, health checks and admin routes, never for a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from gateway.store.url import Place, parse

if TYPE_CHECKING:
    from redis import Redis, RedisError
    from redis.asyncio import Redis as AsyncRedis

Client = TypeVar("Client", "Redis", "AsyncRedis")

# How often a cluster's client tries another node before it gives up.
CLUSTER_TRIES: Final = 2


def make_client(url: str, timeout: float, name: str) -> Redis:
    """A client with replies as bytes that fails rather than waits: after at most `timeout` seconds each time.

    A cluster's client has the same methods for commands on one key and for pipelines; it is a `RedisCluster`.

    Args:
        name: what `CLIENT LIST` shows.

    Raises:
        ValueError: the URL is wrong; its text does not repeat it.
        redis.RedisError: no node of a cluster, or no Sentinel, answers.
    """
    import redis

    place = parse(url)
    options = _options(place, timeout, name)
    if place.kind == "cluster":
        return _cluster(place, options)
    if place.path:
        return redis.Redis(unix_socket_path=place.path, retry=_no_retry(), **options)
    if place.kind == "sentinel":
        sentinel = make_sentinel(place, timeout)
        try:
            host, port = sentinel.discover_master(place.service)
        finally:
            for watching in sentinel.sentinels:
                watching.close()
    else:
        host, port = place.hosts[0]
    made = redis.Redis(host=host, port=port, retry=_no_retry(), **options, **_secure(place))
    return _certified(made, place.server_name)


def make_async_client(url: str, timeout: float, name: str) -> AsyncRedis:
    """The same for asyncio. It connects with its first command, and follows a failover."""
    from redis.asyncio import Redis

    place = parse(url)
    options = _options(place, timeout, name)
    if place.kind == "cluster":
        return _async_cluster(place, options)
    if place.kind == "sentinel":
        return _behind_sentinels(place, timeout, options)
    if place.path:
        return Redis(unix_socket_path=place.path, retry=_no_async_retry(), **options)
    host, port = place.hosts[0]
    return _certified(
        Redis(host=host, port=port, retry=_no_async_retry(), **options, **_secure(place)), place.server_name
    )


def make_node_client(place: Place, host: str, port: int, timeout: float) -> AsyncRedis:
    """A client for one node of a cluster. It has no name, as CLIENT SETNAME is a right too."""
    from redis.asyncio import Redis

    options = _options(place, timeout, "") | _secure(place)
    return _certified(Redis(host=host, port=port, retry=_no_async_retry(), **options), place.server_name)


def make_sync_node_client(place: Place, host: str, port: int, timeout: float) -> Redis:
    """The same without asyncio, and for one of the servers behind Sentinels too."""
    import redis

    options = _options(place, timeout, "") | _secure(place)
    return _certified(redis.Redis(host=host, port=port, retry=_no_retry(), **options), place.server_name)


def make_sentinel(place: Place, timeout: float) -> Any:
    """The Sentinels of a URL, a `redis.sentinel.Sentinel`."""
    from redis.sentinel import Sentinel

    options = _sentinel_options(place, timeout) | {"retry": _no_retry()}
    return _certified_sentinels(place, cast(Any, Sentinel)(place.hosts, sentinel_kwargs=options))


def make_async_sentinel(place: Place, timeout: float) -> Any:
    """The same for asyncio."""
    from redis.asyncio.sentinel import Sentinel

    options = _sentinel_options(place, timeout) | {"retry": _no_async_retry()}
    return _certified_sentinels(place, cast(Any, Sentinel)(place.hosts, sentinel_kwargs=options))


def _no_async_retry() -> Any:
    """For redis.asyncio: whoever asks decides whether to ask again."""
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Retry(NoBackoff(), 0)


def _no_retry() -> Any:
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Retry(NoBackoff(), 0)


def _cluster(place: Place, options: dict[str, Any]) -> Redis:
    import redis
    from redis.backoff import NoBackoff
    from redis.cluster import ClusterNode
    from redis.connection import SSLConnection
    from redis.exceptions import RedisClusterException
    from redis.retry import Retry

    options["retry"] = Retry(NoBackoff(), CLUSTER_TRIES)
    options["startup_nodes"] = [cast(Any, ClusterNode)(*host) for host in place.hosts]
    if place.server_name:
        # With a URL its nodes take another class of connections; what the URL says stands in `startup_nodes` already.
        host, port = place.hosts[0]
        options["url"] = f"redis://[{host}]:{port}" if ":" in host else f"redis://{host}:{port}"
        options |= {"connection_class": _named(SSLConnection, place.server_name), **(place.tls or {})}
    else:
        options |= _secure(place)
    try:
        made: Any = redis.RedisCluster(**options)
    except RedisClusterException as error:
        raise _reason(error) from None
    found: Redis = made
    return found


def _async_cluster(place: Place, options: dict[str, Any]) -> AsyncRedis:
    from redis.asyncio.cluster import ClusterNode, RedisCluster
    from redis.asyncio.connection import SSLConnection
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisClusterException

    class Cluster(RedisCluster):
        """Fails with an error of the kind that other clients fail with."""

        async def initialize(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return await super().initialize(*args, **kwargs)
            except RedisClusterException as error:
                raise _reason(error) from None

    nodes = [cast(Any, ClusterNode)(*host) for host in place.hosts]
    made: Any = Cluster(startup_nodes=nodes, retry=Retry(NoBackoff(), CLUSTER_TRIES), **options)
    if place.tls is not None:
        # Its own arguments lack some of what its connections take.
        secure = {**place.tls, "connection_class": _named(SSLConnection, place.server_name)}
        made.connection_kwargs.update(secure)
        for node in made.startup_nodes:
            node.connection_class = secure["connection_class"]
            node.connection_kwargs.update(place.tls)
    found: AsyncRedis = made
    return found


def _reason(error: BaseException) -> RedisError:
    """Why a cluster's client has found no server, as other clients tell it."""
    from redis.exceptions import ConnectionError as NotConnected
    from redis.exceptions import NoPermissionError

    # It takes a right that its user has not got for a server that belongs to no cluster.
    refusal = error.__cause__.__context__ if error.__cause__ is not None else None
    return refusal if isinstance(refusal, NoPermissionError) else NotConnected(str(error))


def _behind_sentinels(place: Place, timeout: float, options: dict[str, Any]) -> AsyncRedis:
    from redis.asyncio import Redis

    sentinel = make_async_sentinel(place, timeout)

    class Primary(Redis):
        """Closes the connections to the Sentinels with its own."""

        async def aclose(self, close_connection_pool: bool | None = None) -> None:
            await super().aclose(close_connection_pool)
            await sentinel.aclose()

    options |= {"retry": _no_async_retry(), **_secure(place)}
    made: AsyncRedis = sentinel.master_for(place.service, redis_class=Primary, **options)
    return _certified(made, place.server_name)


def _sentinel_options(place: Place, timeout: float) -> dict[str, Any]:
    secure = {"ssl": True, **place.sentinel_tls} if place.sentinel_tls is not None else {}
    return {**_common(timeout), **place.sentinel, **secure}


def _options(place: Place, timeout: float, name: str) -> dict[str, Any]:
    return {**_common(timeout), "client_name": name or None, **place.login}


def _common(timeout: float) -> dict[str, Any]:
    # Without CLIENT SETINFO, which stands in ACL LOG with each connection of a user that may not.
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "driver_info": None}


def _secure(place: Place) -> dict[str, Any]:
    return {"ssl": True, **place.tls} if place.tls is not None else {}


# -- names in certificates -----------------------------------------------------------------------------

# redis-py asks the certificate for the host it connects to, and for no other name.


def _certified(client: Client, name: str) -> Client:
    """A client whose servers' certificates are to have this name, if it is not empty."""
    pool = client.connection_pool
    pool.connection_class = _named(pool.connection_class, name)
    return client


def _certified_sentinels(place: Place, sentinel: Any) -> Any:
    if place.sentinel_tls is not None:
        for client in sentinel.sentinels:
            _certified(client, place.server_name)
    return sentinel


def _named(base: Any, name: str) -> Any:
    """A class of connections like this one, for sockets or for asyncio, that asks for this name, if it is not empty."""
    if not name:
        return base

    class Named(base):  # type: ignore[misc]
        def _wrap_socket_with_ssl(self, sock: Any) -> Any:
            host = cast(Any, self).host
            self.host = name
            try:
                return super()._wrap_socket_with_ssl(sock)
            finally:
                self.host = host

        def _connection_arguments(self) -> Any:
            return {**super()._connection_arguments(), "server_hostname": name}

    return Named
