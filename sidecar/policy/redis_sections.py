"""The section `redis`: where limits are counted, in every topology; a description for every key."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from sidecar.policy.faults import Wrong
from sidecar.policy.fields import Between, Duration, Name, RedisUrlText, ServerAddress, Text
from sidecar.policy.model import Model

SENTINELS_MAX = 32
SEEDS_MAX = 128

_TOPOLOGIES = ("url", "sentinel", "cluster")


class RedisTls(Model):
    """TLS to Redis: for a `rediss://` URL, and wherever it stands with `sentinel` and `cluster`."""

    ca: Text | None = Field(
        None,
        description="PEM file with the authorities to trust; the system's without it.",
        examples=["tls/redis-ca.pem"],
    )
    certificate: Text | None = Field(
        None, description="PEM file with a client certificate; needs `key`.", examples=["tls/redis.crt"]
    )
    key: Text | None = Field(
        None, description="PEM file with the client certificate's key.", examples=["tls/redis.key"]
    )
    server_name: Text | None = Field(
        None,
        description="The name that the server's certificate must have; the host that is connected to without it.",
        examples=["redis.internal"],
    )
    verify_name: bool = Field(
        True,
        description="Off, a certificate of any name is accepted, as long as a trusted authority signed it: for managed "
        "services whose certificates have no usable name.",
        examples=[True],
    )


class RedisSentinel(Model):
    """Sentinels, which know the master. It is asked for before each connect, and looked for all the time."""

    master: Text = Field(description="The master's name, as the Sentinels call it.", examples=["counters"])
    sentinels: list[ServerAddress] = Field(
        min_length=1, max_length=SENTINELS_MAX, description="All Sentinels.", examples=[["10.0.0.1:26379"]]
    )
    database: int = Field(0, ge=0, le=99_999, description="The master's database.", examples=[3])
    username: Text | None = Field(None, description="The Sentinels' ACL user.", examples=["sentinel"])
    password_file: Text | None = Field(
        None, description="File with the Sentinels' password.", examples=["secrets/sentinel-password"]
    )
    tls: RedisTls | None = Field(
        None, description="TLS to the Sentinels; cleartext without it.", examples=[{"ca": "tls/redis-ca.pem"}]
    )


class RedisCluster(Model):
    """A Cluster: limits with the same `key` share a slot, all others are spread."""

    nodes: list[ServerAddress] = Field(
        min_length=1,
        max_length=SEEDS_MAX,
        description="Servers that are asked for all others; one that answers is enough.",
        examples=[["10.0.0.1:6379", "10.0.0.2:6379"]],
    )


class RedisServers(Model):
    """A second store, for limits with a window of one second alone; keys as in `redis`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [name]} for name in _TOPOLOGIES]})

    url: RedisUrlText | None = Field(
        None,
        description="A single server: `redis://host:port/db`, `rediss://` (TLS), `unix:///path?db=0`, or `embedded` "
        "(starts one).",
        examples=["redis://127.0.0.1:6379/0", "embedded"],
    )
    sentinel: RedisSentinel | None = Field(
        None,
        description="A master that Sentinels watch.",
        examples=[{"master": "counters", "sentinels": ["10.0.0.1:26379", "10.0.0.2:26379", "10.0.0.3:26379"]}],
    )
    cluster: RedisCluster | None = Field(
        None, description="A Redis or Valkey Cluster.", examples=[{"nodes": ["10.0.0.1:6379", "10.0.0.2:6379"]}]
    )
    username: Text | None = Field(None, description="ACL user.", examples=["limiter"])
    password_file: Text | None = Field(
        None,
        description="File with the password; a newline at its end is dropped. Read again for each connection.",
        examples=["secrets/redis-password"],
    )
    tls: RedisTls | None = Field(
        None,
        description="TLS. With `url` for `rediss://` only; with `sentinel` and `cluster` cleartext without it.",
        examples=[{"ca": "tls/redis-ca.pem"}],
    )
    timeout: Annotated[Duration, Between("1ms", "5s")] = Field(
        "50ms",
        description="Redis is given up on after this time, and `on_redis_failure` applies; shorter than "
        "`server.check_timeout`.",
        examples=["50ms"],
    )

    @model_validator(mode="after")
    def _one_topology(self) -> Self:
        given = [name for name in _TOPOLOGIES if getattr(self, name) is not None]
        if len(given) != 1:
            message = f"{' and '.join(given)} are given together" if given else "it says no server"
            raise Wrong(message, "exactly one of url, sentinel, cluster")
        return self

    @property
    def topology(self) -> Any:
        """The one of `sentinel` and `cluster` that is given; None for a single server."""
        return self.sentinel or self.cluster


class RedisSection(RedisServers):
    """Where limits are counted: exactly one of `url`, `sentinel` and `cluster`. Changes need a restart."""

    key_prefix: Name = Field("sidecar", description="Starts every key that is written.", examples=["sidecar"])
    per_second: RedisServers | None = Field(
        None,
        description="A store of their own for limits with a window of one second.",
        examples=[{"url": "redis://127.0.0.1:6380/0"}],
    )
