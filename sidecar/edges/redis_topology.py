"""The limit store that the policy asks for: one server, Sentinel or Cluster, and a second store where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sidecar.edges.redis_cluster import ClusterStore
from sidecar.edges.redis_endpoint import Login, RedisAddress, TlsFiles
from sidecar.edges.redis_per_second import PerSecondStore
from sidecar.edges.redis_sentinel import SentinelStore
from sidecar.edges.redis_store import RedisStore
from sidecar.transport.service import UnixAddress

if TYPE_CHECKING:
    from sidecar.core.secret import Secret
    from sidecar.policy.settings import RedisServers, RedisSettings, RedisTlsFiles

OneStore: TypeAlias = RedisStore | ClusterStore
TopologyStore: TypeAlias = OneStore | PerSecondStore


def build_store(settings: RedisSettings | None, embedded_socket: str, **hooks: Any) -> TopologyStore:
    """The store, not started.

    Args:
        settings: None: a store that is never started, and refuses.
        embedded_socket: Where the embedded server listens; "" without one.
        hooks: `observe_latency`, `on_connection`, `on_denied` as of `RedisStore`.

    Raises:
        ValueError: TLS files cannot be used; says which.
    """
    if settings is None:
        return RedisStore(RedisAddress(Login()))
    main = _one_store(settings, embedded_socket, hooks)
    if settings.per_second is None:
        return main
    return PerSecondStore(main, _one_store(settings.per_second, "", hooks))


def named_stores(store: TopologyStore) -> dict[str, OneStore]:
    """The stores by what metrics call them."""
    if isinstance(store, PerSecondStore):
        return {"main": store.main, "per_second": store.per_second}
    return {"main": store}


def _one_store(servers: RedisServers, embedded_socket: str, hooks: dict[str, Any]) -> OneStore:
    login = _login(servers.username, servers.password, servers.password_file, servers.tls, servers.database)
    settings = {"timeout_s": servers.timeout_s, **hooks}
    if servers.cluster:
        return ClusterStore([(seed.host, seed.port) for seed in servers.cluster], login, **settings)
    sentinel = servers.sentinel
    if sentinel is not None:
        addresses = [(address.host, address.port) for address in sentinel.sentinels]
        ours = _login(sentinel.username, sentinel.password, sentinel.password_file, sentinel.tls)
        return SentinelStore(sentinel.master, addresses, ours, login, **settings)
    address = servers.address or UnixAddress(embedded_socket)
    if isinstance(address, UnixAddress):
        return RedisStore(RedisAddress(login, path=address.path), **settings)
    return RedisStore(RedisAddress(login, host=address.host, port=address.port), **settings)


def _login(
    username: str | None,
    password: Secret | None,
    password_file: str | None,
    tls: RedisTlsFiles | None,
    database: int = 0,
) -> Login:
    return Login(
        username=username or "",
        password=password.reveal() if password is not None else "",
        password_file=_path(password_file),
        tls=None
        if tls is None
        else TlsFiles(
            ca=_path(tls.ca),
            certificate=_path(tls.certificate),
            key=_path(tls.key),
            server_name=tls.server_name or "",
            verify_name=tls.verify_name,
        ),
        database=database,
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
