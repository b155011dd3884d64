"""The sections of a policy that say how the process runs, rather than what it decides; a description for every key."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sidecar.policy.fields import Between, Duration, ListenAddress, Text
from sidecar.policy.model import BY_KIND, MAPPING, TEXT, Model, OneOrMany

AUDIT_CLAIMS_MAX = 32


class TlsServing(Model):
    """Serving TLS; with `client_ca`, clients must show a certificate (mTLS)."""

    certificate: Text = Field(
        description="PEM file with the certificate chain. A renewed one serves new connections (engine `http2`).",
        examples=["tls/server.crt"],
    )
    key: Text = Field(description="PEM file with the private key.", examples=["tls/server.key"])
    client_ca: Text | None = Field(
        None,
        description="PEM file with the authorities that sign client certificates; makes one required.",
        examples=["tls/clients.pem"],
    )
    client_name: Text | None = Field(
        None,
        description="The host that a client's certificate must name (its subjectAltName); any without it. Needs "
        "`client_ca`, and the engine `http2`.",
        examples=["envoy.internal"],
    )


class TransportLimits(Model):
    """Bounds on what a peer can make the server hold.

    On the grpcio engine `connections_max`, `header_count_max`, `receive_buffer_bytes_max` and `write_stall_timeout` are
    not enforced.
    """

    message_bytes_max: int = Field(
        4 * 1024 * 1024,
        ge=1024,
        le=64 * 1024 * 1024,
        description="Largest request message, in bytes; a larger Check is denied.",
        examples=[1048576],
    )
    concurrent_streams_max: int = Field(
        1024, ge=1, le=100_000, description="Calls at once on one connection.", examples=[256]
    )
    connections_max: int = Field(4096, ge=1, le=100_000, description="Open connections.", examples=[1000])
    calls_in_flight_max: int = Field(
        16384, ge=1, le=1_000_000, description="Calls at once on all connections.", examples=[8192]
    )
    receive_buffer_bytes_max: int = Field(
        64 * 1024 * 1024,
        ge=1024,
        le=4 * 1024 * 1024 * 1024,
        description="All messages that have arrived in part, together, in bytes.",
        examples=[16777216],
    )
    header_list_bytes_max: int = Field(
        32 * 1024, ge=1024, le=1024 * 1024, description="Metadata of one call, in bytes.", examples=[16384]
    )
    header_count_max: int = Field(128, ge=16, le=10_000, description="Metadata fields of one call.", examples=[64])
    stream_send_queue_messages_max: int = Field(
        64,
        ge=1,
        le=10_000,
        description="Messages that wait on one stream for a peer that does not read.",
        examples=[16],
    )
    keepalive_idle: Annotated[Duration, Between("1s", "1d")] = Field(
        "60s", description="A connection that is idle for this long is pinged.", examples=["30s"]
    )
    keepalive_timeout: Annotated[Duration, Between("1s", "1h")] = Field(
        "20s", description="A ping that is not answered in this time closes the connection.", examples=["10s"]
    )
    handshake_timeout: Annotated[Duration, Between("100ms", "5m")] = Field(
        "10s", description="Time for the TLS and HTTP/2 handshakes.", examples=["5s"]
    )
    max_connection_age: Annotated[Duration, Between("1s", "30d")] = Field(
        "1h", description="A connection of this age (+-10 %) is drained, so that clients spread anew.", examples=["30m"]
    )
    max_connection_age_grace: Annotated[Duration, Between("0s", "1h")] = Field(
        "30s", description="A drained connection is closed after this time at the latest.", examples=["10s"]
    )
    write_stall_timeout: Annotated[Duration, Between("1s", "1h")] = Field(
        "30s", description="A peer that reads nothing for this long is disconnected.", examples=["15s"]
    )


class ServerSection(Model):
    """The gRPC server that Envoy asks. Changes need a restart."""

    listen: OneOrMany[ListenAddress] = Field(
        "127.0.0.1:9090",
        description="Where to listen: `host:port` or `unix:/path`, one or a list.",
        examples=["127.0.0.1:9090", ["0.0.0.0:9090", "unix:/run/sidecar/sidecar.sock"]],
    )
    engine: Literal["http2", "grpcio"] = Field(
        "http2",
        description="The server's implementation; `grpcio` is for platforms without ngh2. There, a malformed "
        "grpc-timeout, a bad message prefix and oversized metadata end in gRPC errors of its core, which Envoy treats "
        "by failure_mode_allow, where `http2` answers with a denial.",
        examples=["http2"],
    )
    workers: int = Field(1, ge=1, le=64, description="Processes that share the addresses.", examples=[2])
    check_timeout: Annotated[Duration, Between("10ms", "10s")] = Field(
        "150ms",
        description="A Check is answered within this time, whatever hangs; longer than `redis.timeout`, below Envoy's "
        "timeout (200ms).",
        examples=["150ms"],
    )
    tls: TlsServing | None = Field(
        None,
        description="Serve TLS on the TCP addresses; cleartext without it.",
        examples=[{"certificate": "tls/server.crt", "key": "tls/server.key"}],
    )
    limits: TransportLimits = Field(
        TransportLimits(),
        description="Bounds on what a peer can make the server hold.",
        examples=[{"connections_max": 1000}],
    )
    drain_grace: Annotated[Duration, Between("0s", "1h")] = Field(
        "20s", description="How long calls in flight may take to finish at shutdown.", examples=["10s"]
    )


class AdminSection(Model):
    """The HTTP listener for probes, metrics and the compiled policy. Changes need a restart."""

    listen: ListenAddress = Field(
        "127.0.0.1:9091", description="Where to listen: `host:port` or `unix:/path`.", examples=["127.0.0.1:9091"]
    )


class AuditFile(Model):
    """A file that audit events are appended to."""

    file: Text = Field(description="The file's path.", examples=["/var/log/sidecar/audit.jsonl"])


class AuditSection(Model):
    """One event for each Check that was answered. A change of `destination` needs a restart."""

    destination: Annotated[Annotated[Literal["stdout", "none"], TEXT] | Annotated[AuditFile, MAPPING], BY_KIND] = Field(
        "stdout",
        description="Where events go: `stdout`, `none`, or `{file: PATH}`.",
        examples=["stdout", {"file": "audit.jsonl"}],
    )
    claims: list[Text] = Field(
        [],
        max_length=AUDIT_CLAIMS_MAX,
        description="Claims that events carry besides the subject.",
        examples=[["client_id"]],
    )


class LogSection(Model):
    """The log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe level that is written.", examples=["info"]
    )
