"""redis-py's clients for any URL of Redis: for commands, health checks and admin routes, never for a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from gateway.store.url import Place, parse

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

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
    from redis.backoff import NoBackoff
    from redis.cluster import ClusterNode
    from redis.connection import SSLConnection
    from redis.exceptions import RedisClusterException
    from redis.retry import Retry
    from redis.sentinel import Sentinel

    place = parse(url)
    options = _options(place, timeout, name)
    if place.kind == "cluster":
        retry = Retry(NoBackoff(), CLUSTER_TRIES)
        nodes = [cast(Any, ClusterNode)(*host) for host in place.hosts]
        try:
            cluster: Any = redis.RedisCluster(startup_nodes=nodes, retry=retry, **options, **_secure(place))
        except RedisClusterException as error:
            raise redis.ConnectionError(str(error)) from None
        found: Redis = cluster
        return found
    options["retry"] = Retry(NoBackoff(), 0)
    if place.kind == "sentinel":
        asking = sentinel_options(place, timeout) | {"retry": options["retry"]}
        sentinel = cast(Any, Sentinel)(place.hosts, sentinel_kwargs=asking)
        try:
            host, port = sentinel.discover_master(place.service)
        finally:
            for watching in sentinel.sentinels:
                watching.close()
        return redis.Redis(host=host, port=port, **options, **_secure(place))
    if place.path:
        return redis.Redis(unix_socket_path=place.path, **options)
    host, port = place.hosts[0]
    made = redis.Redis(host=host, port=port, **options, **_secure(place))
    if place.server_name:
        made.connection_pool.connection_class = _named(SSLConnection, place.server_name)
    return made


def make_async_client(url: str, timeout: float, name: str) -> AsyncRedis:
    """The same for asyncio. It connects with its first command, and follows a failover."""
    from redis.asyncio import Redis
    from redis.asyncio.connection import SSLConnection

    place = parse(url)
    options = _options(place, timeout, name)
    if place.kind == "cluster":
        return _of_cluster(place, options)
    options["retry"] = no_retry()
    if place.kind == "sentinel":
        return _behind_sentinels(place, timeout, options)
    if place.path:
        return Redis(unix_socket_path=place.path, **options)
    host, port = place.hosts[0]
    made = Redis(host=host, port=port, **options, **_secure(place))
    if place.server_name:
        made.connection_pool.connection_class = _named_async(SSLConnection, place.server_name)
    return made


def _of_cluster(place: Place, options: dict[str, Any]) -> AsyncRedis:
    from redis.asyncio.cluster import ClusterNode, RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as NotConnected
    from redis.exceptions import RedisClusterException

    class Cluster(RedisCluster):
        """Fails with an error of the kind that other clients fail with."""

        async def initialize(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return await super().initialize(*args, **kwargs)
            except RedisClusterException as error:
                raise NotConnected(str(error)) from None

    nodes = [cast(Any, ClusterNode)(*host) for host in place.hosts]
    retry = Retry(NoBackoff(), CLUSTER_TRIES)
    made: Any = Cluster(startup_nodes=nodes, retry=retry, **options, **_secure(place))
    found: AsyncRedis = made
    return found


def _behind_sentinels(place: Place, timeout: float, options: dict[str, Any]) -> AsyncRedis:
    from redis.asyncio import Redis
    from redis.asyncio.sentinel import Sentinel

    asking = sentinel_options(place, timeout) | {"retry": no_retry()}
    sentinel = cast(Any, Sentinel)(place.hosts, sentinel_kwargs=asking)

    class Primary(Redis):
        """Closes the connections to the Sentinels with its own."""

        async def aclose(self, close_connection_pool: bool | None = None) -> None:
            await super().aclose(close_connection_pool)
            await sentinel.aclose()

    made: AsyncRedis = sentinel.master_for(place.service, redis_class=Primary, **options, **_secure(place))
    return made


def sentinel_options(place: Place, timeout: float) -> dict[str, Any]:
    """What redis-py's connections to the Sentinels take, but for how often to retry."""
    secure = {"ssl": True, **place.sentinel_tls} if place.sentinel_tls is not None else {}
    return {**_common(timeout), **place.sentinel, **secure}


def node_options(place: Place, timeout: float) -> dict[str, Any]:
    """What redis-py's connections to one node of a cluster take, but for how often to retry.

    They have no name, as CLIENT SETNAME is a right too.
    """
    return _options(place, timeout, "") | _secure(place)


def make_node_client(place: Place, host: str, port: int, timeout: float) -> AsyncRedis:
    """A client for one node of a cluster."""
    from redis.asyncio import Redis

    return Redis(host=host, port=port, retry=no_retry(), **node_options(place, timeout))


def no_retry() -> Any:
    """For redis.asyncio: whoever asks decides whether to ask again."""
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Retry(NoBackoff(), 0)


def _options(place: Place, timeout: float, name: str) -> dict[str, Any]:
    return {**_common(timeout), "client_name": name or None, **place.login}


def _common(timeout: float) -> dict[str, Any]:
    # Without CLIENT SETINFO, which stands in ACL LOG with each connection of a user that may not.
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "driver_info": None}


def _secure(place: Place) -> dict[str, Any]:
    return {"ssl": True, **place.tls} if place.tls is not None else {}


# redis-py asks the certificate for the host it connects to, and for no other name.


def _named(base: Any, name: str) -> Any:
    class Named(base):  # type: ignore[misc]
        def _wrap_socket_with_ssl(self, sock: Any) -> Any:
            host = cast(Any, self).host
            self.host = name
            try:
                return super()._wrap_socket_with_ssl(sock)
            finally:
                self.host = host

    return Named


def _named_async(base: Any, name: str) -> Any:
    class Named(base):  # type: ignore[misc]
        def _connection_arguments(self) -> Any:
            return {**super()._connection_arguments(), "server_hostname": name}

    return Named
