"""Every environment variable of the reference: how it is read, what it is without one, and what becomes of it here.

The reference is envoyproxy/ratelimit at f2fb157; its list is src/settings/settings.go. `docs/drop-in.md` shows this
table, and a test compares the two.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sidecar.policy.faults import Fault, PolicyError, Wrong
from sidecar.ratelimit import values
from sidecar.ratelimit.values import Parser, boolean, choice, duration, integer, pairs, text

FILE: Final = "environment"
"""Stands where faults name a file."""

_PORT: Final = integer(0, 65535)
_COUNT: Final = integer(0, 2**31 - 1)
_ANY_TIME: Final = duration("0", "876000h")


class Support(enum.StrEnum):
    """What becomes of a variable; the value is its word in the table of the docs."""

    SAME = "same"
    DIFFERENT = "different"
    NOT_SUPPORTED = "not supported"


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable.

    Attributes:
        default: As the reference's documentation writes it; "" where it has none.
        support: What becomes of it.
        note: How it differs, or why it is not supported; "" where it is the same.
        secret: Its value is not repeated in messages.
    """

    name: str
    parse: Parser
    default: str
    support: Support = Support.SAME
    note: str = ""
    secret: bool = False

    @property
    def without(self) -> Any:
        """Its value where it is not set."""
        return self.parse(self.default)


def _same(name: str, parse: Parser, default: str, *, secret: bool = False) -> Variable:
    return Variable(name, parse, default, secret=secret)


def _different(name: str, parse: Parser, default: str, how: str, *, secret: bool = False) -> Variable:
    return Variable(name, parse, default, Support.DIFFERENT, how, secret)


def _unsupported(why: str, *variables: tuple[str, Parser, str], secret: bool = False) -> tuple[Variable, ...]:
    return tuple(Variable(*variable, Support.NOT_SUPPORTED, why, secret) for variable in variables)


_STATSD: Final = "statistics are scraped (USE_PROMETHEUS, or /metrics on the debug port), not sent"
_MAPPER: Final = "metric names are fixed; both the reference's built-in ones and Sidecar's are shown"
_MEMCACHE: Final = "counters are kept in Redis or Valkey alone"
_TRACING: Final = "no spans are made"
_POOL: Final = "one multiplexed connection a node takes the place of pools and write buffering"
_STARTUP: Final = "serving begins at once, connecting is tried for ever; /healthcheck is 500 until Redis answered"
_KEYS: Final = "a key expires with its window, on Redis's clock; keys of one window do not expire together"

VARIABLES: Final[Mapping[str, Variable]] = {
    variable.name: variable
    for variable in (
        # listeners
        _same("HOST", text, "0.0.0.0"),
        _same("PORT", _PORT, "8080"),
        _same("DEBUG_HOST", text, "0.0.0.0"),
        _same("DEBUG_PORT", _PORT, "6070"),
        _same("GRPC_UDS", text, ""),
        _same("GRPC_HOST", text, "0.0.0.0"),
        _same("GRPC_PORT", _PORT, "8081"),
        _different("GRPC_MAX_CONNECTION_AGE", duration("0", "720h"), "24h", "1s to 720h; 0, for ever there, is 720h"),
        _different("GRPC_MAX_CONNECTION_AGE_GRACE", duration("0", "1h"), "1h", "up to 1h; 0, for ever there, is 1h"),
        _same("GRPC_SERVER_USE_TLS", boolean, "false"),
        _same("GRPC_SERVER_TLS_CERT", text, ""),
        _different("GRPC_SERVER_TLS_KEY", text, "", "need not be beside the certificate"),
        _different("GRPC_CLIENT_TLS_CACERT", text, "", "the system's authorities are not trusted"),
        _different("GRPC_CLIENT_TLS_SAN", text, "", "without GRPC_CLIENT_TLS_CACERT it is refused, not ignored"),
        # the log
        _different(
            "LOG_LEVEL",
            choice("panic", "fatal", "error", "warn", "warning", "info", "debug", "trace"),
            "WARN",
            "panic and fatal mean error, trace means debug",
        ),
        _different("LOG_FORMAT", text, "text", "always JSON lines, with fields of Sidecar's own; text is warned about"),
        # where limits come from
        _same("CONFIG_TYPE", choice("FILE", "GRPC_XDS_SOTW"), "FILE"),
        _different(
            "FORCE_START_WITHOUT_INITIAL_CONFIG",
            boolean,
            "false",
            "also lets the files' directory be missing or empty; a fault in a file refuses the start all the same",
        ),
        _same("RUNTIME_ROOT", text, "/srv/runtime_data/current"),
        _same("RUNTIME_SUBDIRECTORY", text, ""),
        _same("RUNTIME_APPDIRECTORY", text, "config"),
        _different("RUNTIME_IGNOREDOTFILES", boolean, "false", "names that begin with two dots are always ignored"),
        _different(
            "RUNTIME_WATCH_ROOT",
            boolean,
            "true",
            "with either value every change of a file, a link or a directory is noticed, within about a second",
        ),
        _same("MERGE_DOMAIN_CONFIG", boolean, "false"),
        # configuration over xDS
        _same("CONFIG_GRPC_XDS_NODE_ID", text, "default"),
        _same("CONFIG_GRPC_XDS_NODE_METADATA", pairs("="), ""),
        _same("CONFIG_GRPC_XDS_SERVER_URL", text, "localhost:18000"),
        _different(
            "CONFIG_GRPC_XDS_SERVER_CONNECT_RETRY_INTERVAL",
            duration("1ms", "1h"),
            "3s",
            "the first pause after a connection failed; pauses grow up to XDS_CLIENT_BACKOFF_MAX_INTERVAL",
        ),
        _same("CONFIG_GRPC_XDS_CLIENT_ADDITIONAL_HEADERS", pairs(":"), "", secret=True),
        _same("CONFIG_GRPC_XDS_SERVER_USE_TLS", boolean, "false"),
        _same("CONFIG_GRPC_XDS_CLIENT_TLS_CERT", text, ""),
        _same("CONFIG_GRPC_XDS_CLIENT_TLS_KEY", text, ""),
        _different(
            "CONFIG_GRPC_XDS_SERVER_TLS_CACERT", text, "", "where it is set, the system's authorities are not trusted"
        ),
        _same("CONFIG_GRPC_XDS_SERVER_TLS_SAN", text, ""),
        _same("XDS_CLIENT_BACKOFF_INITIAL_INTERVAL", duration("1ms", "1h"), "10s"),
        _same("XDS_CLIENT_BACKOFF_MAX_INTERVAL", duration("1ms", "24h"), "60s"),
        *_unsupported(
            "pauses double each time and are always jittered, so that servers are not asked in step",
            ("XDS_CLIENT_BACKOFF_RANDOM_FACTOR", values.number, "0.5"),
            ("XDS_CLIENT_BACKOFF_JITTER", boolean, "true"),
        ),
        _different(
            "XDS_CLIENT_MAX_MSG_SIZE_IN_BYTES",
            integer(0, 2**30),
            "0",
            "0 means 4 MiB, as in the reference; up to 1 GiB",
        ),
        # answers
        _same("SHADOW_MODE", boolean, "false"),
        _same("QUOTA_MODE", boolean, "false"),
        _same("RESPONSE_DYNAMIC_METADATA", boolean, "false"),
        _same("LIMIT_RESPONSE_HEADERS_ENABLED", boolean, "false"),
        _same("LIMIT_LIMIT_HEADER", text, "RateLimit-Limit"),
        _same("LIMIT_REMAINING_HEADER", text, "RateLimit-Remaining"),
        _same("LIMIT_RESET_HEADER", text, "RateLimit-Reset"),
        _same("HEALTHY_WITH_AT_LEAST_ONE_CONFIG_LOADED", boolean, "false"),
        # counting
        _different(
            "LOCAL_CACHE_SIZE_IN_BYTES",
            _COUNT,
            "0",
            "above 0, up to 16,384 exhausted counters are remembered, each until the exact time at which it can pass",
        ),
        _same("NEAR_LIMIT_RATIO", values.fraction, "0.8"),
        _different("CACHE_KEY_PREFIX", text, "", "`sidecar` where it is not set; keys are laid out differently"),
        _different("BACKEND_TYPE", choice("redis", "memcache"), "redis", f"memcache is refused: {_MEMCACHE}"),
        *_unsupported(_KEYS, ("EXPIRATION_JITTER_MAX_SECONDS", _COUNT, "300")),
        _different(
            "STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT",
            boolean,
            "false",
            "a refused request takes from none of its limits, not even from the one that refused, in one atomic step",
        ),
        # Redis
        _same("REDIS_SOCKET_TYPE", choice("tcp", "unix"), "unix"),
        _same("REDIS_TYPE", choice("SINGLE", "SENTINEL", "CLUSTER"), "SINGLE"),
        _different(
            "REDIS_URL", text, "/var/run/nutcracker/ratelimit.sock", "also redis:// and rediss:// URLs", secret=True
        ),
        _same("REDIS_AUTH", text, "", secret=True),
        _same("REDIS_TLS", boolean, "false"),
        _same("REDIS_TLS_CLIENT_CERT", text, ""),
        _same("REDIS_TLS_CLIENT_KEY", text, ""),
        _different("REDIS_TLS_CACERT", text, "", "where it is set, the system's authorities are not trusted"),
        _same("REDIS_TLS_SKIP_HOSTNAME_VERIFICATION", boolean, "false"),
        _same("REDIS_SENTINEL_AUTH", text, "", secret=True),
        _different(
            "REDIS_TIMEOUT",
            _ANY_TIME,
            "10s",
            "bounds each command, where the reference bounds connecting; 50ms where it is not set, at most 5s",
        ),
        _same("REDIS_HEALTH_CHECK_ACTIVE_CONNECTION", boolean, "false"),
        _same("REDIS_PERSECOND", boolean, "false"),
        _same("REDIS_PERSECOND_SOCKET_TYPE", choice("tcp", "unix"), "unix"),
        _same("REDIS_PERSECOND_TYPE", choice("SINGLE", "SENTINEL", "CLUSTER"), "SINGLE"),
        _different(
            "REDIS_PERSECOND_URL",
            text,
            "/var/run/nutcracker/ratelimitpersecond.sock",
            "also redis:// and rediss:// URLs",
            secret=True,
        ),
        _same("REDIS_PERSECOND_AUTH", text, "", secret=True),
        _same("REDIS_PERSECOND_TLS", boolean, "false"),
        _same("REDIS_PERSECOND_SENTINEL_AUTH", text, "", secret=True),
        *_unsupported(
            "one timeout holds for both stores",
            ("REDIS_PERSECOND_TIMEOUT", _ANY_TIME, "10s"),
        ),
        *_unsupported(
            _POOL,
            *(
                (f"REDIS_{store}{name}", parse, default)
                for store in ("", "PERSECOND_")
                for name, parse, default in (
                    ("POOL_SIZE", _COUNT, "10"),
                    ("PIPELINE_WINDOW", _ANY_TIME, "0"),
                    ("PIPELINE_LIMIT", _COUNT, "0"),
                    ("CLUSTER_PIPELINE_PARALLELISM", _COUNT, "1"),
                    ("POOL_ON_EMPTY_BEHAVIOR", text, "WAIT"),
                    ("POOL_ON_EMPTY_WAIT_DURATION", _ANY_TIME, "1s"),
                )
            ),
        ),
        *_unsupported(
            _STARTUP,
            ("REDIS_STARTUP_INITIAL_INTERVAL", _ANY_TIME, "1s"),
            ("REDIS_STARTUP_MAX_INTERVAL", _ANY_TIME, "30s"),
            ("REDIS_STARTUP_MAX_ELAPSED_TIME", _ANY_TIME, "0"),
        ),
        *_unsupported(
            _MEMCACHE,
            ("MEMCACHE_HOST_PORT", values.items, ""),
            ("MEMCACHE_MAX_IDLE_CONNS", _COUNT, "2"),
            ("MEMCACHE_SRV", text, ""),
            ("MEMCACHE_SRV_REFRESH", _ANY_TIME, "0"),
            ("MEMCACHE_TLS", boolean, "false"),
            ("MEMCACHE_TLS_CLIENT_CERT", text, ""),
            ("MEMCACHE_TLS_CLIENT_KEY", text, ""),
            ("MEMCACHE_TLS_CACERT", text, ""),
            ("MEMCACHE_TLS_SKIP_HOSTNAME_VERIFICATION", boolean, "false"),
        ),
        # statistics
        _same("USE_PROMETHEUS", boolean, "false"),
        _same("PROMETHEUS_ADDR", text, ":9090"),
        _same("PROMETHEUS_PATH", text, "/metrics"),
        _different("DISABLE_STATS", boolean, "false", "PROMETHEUS_ADDR is not opened; the debug port keeps /metrics"),
        *_unsupported(
            _MAPPER,
            ("PROMETHEUS_MAPPER_YAML", text, ""),
            ("PROMETHEUS_RESPONSE_TIME_AS_MILLISECONDS", boolean, "false"),
            ("EXTRA_TAGS", pairs(":"), ""),
        ),
        *_unsupported(
            _STATSD,
            ("USE_STATSD", boolean, "true"),
            ("STATSD_HOST", text, "localhost"),
            ("STATSD_PORT", _PORT, "8125"),
            ("STATSD_PROTOCOL", text, "tcp"),
            ("STATS_FLUSH_INTERVAL", _ANY_TIME, "10s"),
            ("GOSTATS_FLUSH_INTERVAL_SECONDS", _COUNT, "5"),
            ("USE_DOG_STATSD", boolean, "false"),
            ("USE_DOG_STATSD_MOGRIFIERS", values.items, ""),
        ),
        # tracing
        *_unsupported(
            _TRACING,
            ("TRACING_ENABLED", boolean, "false"),
            ("TRACING_SERVICE_NAME", text, "RateLimit"),
            ("TRACING_SERVICE_NAMESPACE", text, ""),
            ("TRACING_SERVICE_INSTANCE_ID", text, ""),
            ("TRACING_EXPORTER_PROTOCOL", text, "http"),
            ("TRACING_SAMPLING_RATE", values.fraction, "1"),
        ),
    )
}

MOGRIFIER: Final = re.compile(r"DOG_STATSD_MOGRIFIERS?_.+_(PATTERN|NAME|TAGS)")
"""Names that are made of another variable's value."""

_OFF: Final = {"USE_STATSD": False}
"""Values that ask for nothing although they are not the default."""


def read(environment: Mapping[str, str]) -> dict[str, Any]:
    """The value of every variable, of unset ones the default.

    Raises:
        PolicyError: With a fault for each value that makes no sense.
    """
    faults: list[Fault] = []
    found: dict[str, Any] = {}
    for name, variable in VARIABLES.items():
        try:
            found[name] = variable.parse(environment[name]) if name in environment else variable.without
        except Wrong as wrong:
            message = "the value is not one that is accepted" if variable.secret else wrong.message
            faults.append(Fault(FILE, 0, name, message, wrong.accepted))
    if faults:
        raise PolicyError(faults)
    return found


def ignored(environment: Mapping[str, str]) -> dict[str, list[str]]:
    """What is set and not supported, for a warning: the names, by the reason why.

    A value that asks for nothing (`TRACING_ENABLED=false`) is no reason to warn.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(environment):
        variable = VARIABLES.get(name)
        if MOGRIFIER.fullmatch(name):
            found.setdefault(_STATSD, []).append(name)
        elif variable is not None and variable.support is Support.NOT_SUPPORTED:
            nothing = _OFF.get(name, variable.without)
            if variable.parse(environment[name]) != nothing:
                found.setdefault(variable.note, []).append(name)
        elif name == "LOG_FORMAT" and environment[name].lower() != "json":
            found.setdefault("the log is JSON lines whatever is asked for", []).append(name)
    return found


def table() -> str:
    """All variables, as docs/drop-in.md shows them (`python -m sidecar.ratelimit.variables`)."""
    rows = [
        f"| `{variable.name}` | {f'`{variable.default}`' if variable.default else ''} "
        f"| {variable.support.value}{f': {variable.note}' if variable.note else ''} |"
        for variable in VARIABLES.values()
    ]
    return "\n".join(["| variable | default | |", "|---|---|---|", *rows, ""])


if __name__ == "__main__":
    print(table(), end="")  # noqa: T201 - a command prints
