"""The variables of the reference: each is read as there, has a word in the docs, and comes to what it says."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.descriptors import HeaderNames
from sidecar.edges.log import REPEATS_MAX
from sidecar.policy.faults import PolicyError, Wrong
from sidecar.policy.settings import RedisServers
from sidecar.policy.yaml import read
from sidecar.ratelimit import values, variables
from sidecar.ratelimit.environment import Loaded, load
from sidecar.ratelimit.variables import VARIABLES, Support
from sidecar.transport.service import TcpAddress, UnixAddress
from tests.support.certificates import make_certificates
from tests.support.ratelimit_process import SHOP

ROOT = Path(__file__).parents[2]


@pytest.fixture
def loaded(tmp_path: Path) -> Any:
    """Loads an environment with a directory of files, and Redis on TCP."""
    config = tmp_path / "config"
    config.mkdir()
    (config / "shop.yaml").write_text(SHOP)
    least = {"RUNTIME_ROOT": str(tmp_path), "REDIS_SOCKET_TYPE": "tcp", "REDIS_URL": "127.0.0.1:6379"}

    def from_variables(config: Path | None = None, **more: str) -> Loaded:
        return load({**least, **more}, 1, config)

    return from_variables


def refused(loaded: Any, **more: str) -> list[str]:
    with pytest.raises(PolicyError) as error:
        loaded(**more)
    return [str(fault) for fault in error.value.faults]


def test_the_documents_list_every_variable() -> None:
    """The table of docs/drop-in.md is the code's, row by row."""
    assert variables.table() in (ROOT / "docs" / "drop-in.md").read_text()


def test_each_difference_is_explained() -> None:
    """What is the same needs no word; what is not has one, and the default of each is a value of it."""
    for variable in VARIABLES.values():
        assert bool(variable.note) == (variable.support is not Support.SAME), variable.name
        assert variable.parse(variable.default) == variable.without


def test_all_warnings_at_start_are_written() -> None:
    """There are no more reasons than lines that the log lets through at once."""
    reasons = {variable.note for variable in VARIABLES.values() if variable.support is Support.NOT_SUPPORTED}
    reasons |= variables.ignored({"LOG_FORMAT": "text"}).keys()
    assert 5 < len(reasons) <= REPEATS_MAX


@pytest.mark.parametrize(
    ("name", "value"), [("USE_STATSD", "false"), ("TRACING_ENABLED", "0"), ("REDIS_POOL_SIZE", "10"), ("PATH", "/bin")]
)
def test_what_asks_for_nothing_is_no_reason_to_warn(name: str, value: str) -> None:
    """Off, the default, or none of the reference's variables."""
    assert variables.ignored({name: value}) == {}


def test_mogrifiers_are_warned_about() -> None:
    """Variables whose names another one makes are found by their form."""
    (names,) = variables.ignored({"DOG_STATSD_MOGRIFIERS_HITS_PATTERN": "x"}).values()
    assert names == ["DOG_STATSD_MOGRIFIERS_HITS_PATTERN"]


@pytest.mark.parametrize(
    ("text", "number"), [("8081", 8081), ("0x1F91", 8081), ("0o17", 15), ("017", 15), ("0b11", 3), ("8_081", 8081)]
)
def test_numbers_are_gos(text: str, number: int) -> None:
    """Prefixes and underscores as strconv.ParseInt with base 0."""
    assert values.integer(0, 65535)(text) == number


@pytest.mark.parametrize("text", ["", "65536", "-1", "1.5", "8081 ", "0x", "08", "_1", "٣"])
def test_other_numbers_are_refused(text: str) -> None:
    """Out of range, or no whole number."""
    with pytest.raises(Wrong):
        values.integer(0, 65535)(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("1h30m", 5400), ("1.5h", 5400), ("300ms", 0.3), (".5s", 0.5), ("2us", 2e-6), ("2µs", 2e-6), ("+1s", 1)],
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    """As time.ParseDuration."""
    assert math.isclose(values.duration("0", "24h")(text), seconds)


@pytest.mark.parametrize("text", ["", "1", "s", "1d", "-1s", "1 s", "25h", "1s2", "1e3s"])
def test_other_durations_are_refused(text: str) -> None:
    """Without a unit, of an unknown one, negative, or beyond the bound."""
    with pytest.raises(Wrong):
        values.duration("0", "24h")(text)


def test_lists_and_texts_are_bounded() -> None:
    """As many items and bytes as the bound, and one more."""
    item = ",".join(f"k{n}:v" for n in range(values.ITEMS_MAX))
    assert len(values.pairs(":")(item)) == values.ITEMS_MAX
    with pytest.raises(Wrong):
        values.pairs(":")(f"{item},more:v")
    assert values.text("x" * values.TEXT_BYTES_MAX)
    with pytest.raises(Wrong):
        values.text("x" * (values.TEXT_BYTES_MAX + 1))


def test_the_reference_defaults(loaded: Any) -> None:
    """Ports, ages and level without a variable; files of every name, at every depth."""
    found = loaded()
    settings = found.document.settings
    assert settings.listen == (TcpAddress("0.0.0.0", 8081),)
    assert (settings.admin, found.reference.http) == (TcpAddress("0.0.0.0", 6070), TcpAddress("0.0.0.0", 8080))
    assert (settings.limits.max_connection_age_s, settings.limits.max_connection_age_grace_s) == (86400, 3600)
    unbounded = loaded(GRPC_MAX_CONNECTION_AGE="0", GRPC_MAX_CONNECTION_AGE_GRACE="0").document.settings.limits
    assert (unbounded.max_connection_age_s, unbounded.max_connection_age_grace_s) == (720 * 3600, 3600)
    assert (settings.log_level, settings.audit, settings.tls) == ("warning", "none", None)
    assert found.reference.prometheus is None
    assert set(found.document.policy.ratelimit.domains) == {"shop"}


def test_listeners(loaded: Any, tmp_path: Path) -> None:
    """IPv6 addresses, a Unix socket, and Prometheus's address in Go's form."""
    found = loaded(HOST="::1", PORT="1", DEBUG_HOST="", GRPC_UDS=f"{tmp_path}/s", USE_PROMETHEUS="t", DISABLE_STATS="f")
    assert found.reference.http == TcpAddress("::1", 1)
    assert found.document.settings.admin == TcpAddress("0.0.0.0", 6070)
    assert found.document.settings.listen == (UnixAddress(f"{tmp_path}/s"),)
    assert found.reference.prometheus == (TcpAddress("0.0.0.0", 9090), "/metrics")
    assert loaded(USE_PROMETHEUS="true", DISABLE_STATS="true").reference.prometheus is None


def test_redis_in_each_topology(loaded: Any) -> None:
    """One server, Sentinels, a Cluster; credentials in three places; a store of its own for seconds."""
    redis = loaded(REDIS_URL="redis://ann:p%40ss@redis:1/3", CACHE_KEY_PREFIX="a b_").document.settings.redis
    assert (redis.address, redis.database, redis.username) == (TcpAddress("redis", 1), 3, "ann")
    assert (redis.password.reveal(), redis.key_prefix, redis.tls) == ("p@ss", "a b_", None)
    redis = loaded(
        REDIS_TYPE="sentinel",
        REDIS_URL="counters,s1:1,s2:2",
        REDIS_AUTH="sesame",
        REDIS_SENTINEL_AUTH="bob:open",
        REDIS_TLS="true",
    ).document.settings.redis
    assert (redis.sentinel.master, redis.sentinel.sentinels) == ("counters", (TcpAddress("s1", 1), TcpAddress("s2", 2)))
    assert (redis.username, redis.password.reveal()) == (None, "sesame")
    assert (redis.sentinel.username, redis.sentinel.password.reveal()) == ("bob", "open")
    assert redis.tls is not None
    assert redis.sentinel.tls is not None
    redis = loaded(
        REDIS_TYPE="CLUSTER",
        REDIS_URL="n1:1,n2:2",
        REDIS_PERSECOND="true",
        REDIS_PERSECOND_URL="/run/redis.sock",
        REDIS_PERSECOND_AUTH="cleo:pw",
        REDIS_TIMEOUT="10s",
    ).document.settings.redis
    assert redis.cluster == (TcpAddress("n1", 1), TcpAddress("n2", 2))
    seconds = redis.per_second
    assert isinstance(seconds, RedisServers)
    assert (seconds.address, seconds.username) == (UnixAddress("/run/redis.sock"), "cleo")
    assert redis.timeout_s == seconds.timeout_s == 5


def test_tls(loaded: Any, tmp_path: Path) -> None:
    """Certificates for serving, for Redis, and for xDS, which CONFIG_TYPE chooses."""
    issued = make_certificates(tmp_path)
    ca, certificate, key = (str(path) for path in (issued.ca, issued.server, issued.server_key))
    found = loaded(
        GRPC_SERVER_USE_TLS="true",
        GRPC_SERVER_TLS_CERT=certificate,
        GRPC_SERVER_TLS_KEY=key,
        GRPC_CLIENT_TLS_CACERT=ca,
        GRPC_CLIENT_TLS_SAN="envoy.internal",
        REDIS_TLS="true",
        REDIS_TLS_CACERT=ca,
        REDIS_TLS_CLIENT_CERT=certificate,
        REDIS_TLS_CLIENT_KEY=key,
        REDIS_TLS_SKIP_HOSTNAME_VERIFICATION="true",
        CONFIG_TYPE="GRPC_XDS_SOTW",
        CONFIG_GRPC_XDS_SERVER_USE_TLS="true",
        CONFIG_GRPC_XDS_SERVER_TLS_CACERT=ca,
        CONFIG_GRPC_XDS_CLIENT_TLS_CERT=certificate,
        CONFIG_GRPC_XDS_CLIENT_TLS_KEY=key,
        CONFIG_GRPC_XDS_SERVER_TLS_SAN="redis.example",
        XDS_CLIENT_MAX_MSG_SIZE_IN_BYTES="4096",
    ).document.settings
    assert (found.tls.certificate, found.tls.key, found.tls.client_ca) == (certificate, key, ca)
    assert found.tls.client_name == "envoy.internal"
    assert (found.redis.tls.ca, found.redis.tls.certificate, found.redis.tls.key) == (ca, certificate, key)
    assert found.redis.tls.verify_name is False
    assert (found.xds.tls.ca, found.xds.tls.key, found.xds.tls.server_name) == (ca, key, "redis.example")
    assert (found.xds.server, found.xds.message_bytes_max) == ("localhost:18000", 4096)
    assert (found.xds.retry_s, found.xds.backoff_s, found.xds.backoff_s_max) == (3, 10, 60)
    assert found.ratelimit_directory is None


def test_a_clients_name_needs_its_authority(loaded: Any, tmp_path: Path) -> None:
    """GRPC_CLIENT_TLS_SAN alone would let everybody in: it is a fault."""
    issued = make_certificates(tmp_path)
    (fault,) = refused(
        loaded,
        GRPC_SERVER_USE_TLS="true",
        GRPC_SERVER_TLS_CERT=str(issued.server),
        GRPC_SERVER_TLS_KEY=str(issued.server_key),
        GRPC_CLIENT_TLS_SAN="envoy.internal",
    )
    assert fault.startswith("environment: GRPC_CLIENT_TLS_SAN: without client_ca")


def test_answers(loaded: Any) -> None:
    """Modes, metadata, headers, the near limit's ratio, and what a refused request takes."""
    options = loaded(
        SHADOW_MODE="true",
        QUOTA_MODE="1",
        RESPONSE_DYNAMIC_METADATA="T",
        NEAR_LIMIT_RATIO="0.5",
        MERGE_DOMAIN_CONFIG="true",
        LIMIT_RESPONSE_HEADERS_ENABLED="true",
        LIMIT_RESET_HEADER="X-Reset",
        LOCAL_CACHE_SIZE_IN_BYTES="1000000",
        STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT="true",
    ).document.policy.ratelimit.options
    assert options.shadow_mode
    assert options.quota_mode
    assert options.response_dynamic_metadata
    assert options.merge_domains
    assert options.deny_cache
    assert options.near_limit_ratio == 0.5
    assert options.response_headers == HeaderNames(reset="X-Reset")
    assert options.counting.count_denied is False


@pytest.mark.parametrize(
    ("variable", "more"),
    [
        ("BACKEND_TYPE", {"BACKEND_TYPE": "memcache"}),
        ("CACHE_KEY_PREFIX", {"CACHE_KEY_PREFIX": "{x}"}),
        ("GRPC_SERVER_TLS_CERT", {"GRPC_SERVER_USE_TLS": "true", "GRPC_SERVER_TLS_KEY": "/dev/null"}),
        ("GRPC_HOST", {"GRPC_HOST": "a b"}),
        ("GRPC_UDS", {"GRPC_UDS": "/" + "x" * 200}),
        ("HOST", {"HOST": "a b"}),
        ("LIMIT_LIMIT_HEADER", {"LIMIT_RESPONSE_HEADERS_ENABLED": "true", "LIMIT_LIMIT_HEADER": "a b"}),
        ("PROMETHEUS_ADDR", {"USE_PROMETHEUS": "true", "PROMETHEUS_ADDR": "9090x"}),
        ("PROMETHEUS_PATH", {"USE_PROMETHEUS": "true", "PROMETHEUS_PATH": "metrics"}),
        ("REDIS_URL", {"REDIS_URL": "redis:port"}),
        ("REDIS_URL", {"REDIS_TYPE": "SENTINEL", "REDIS_URL": "master"}),
        ("REDIS_URL", {"REDIS_SOCKET_TYPE": "unix"}),
        ("REDIS_TLS_CACERT", {"REDIS_TLS": "true", "REDIS_TLS_CACERT": "/nowhere"}),
        ("RUNTIME_ROOT", {"RUNTIME_APPDIRECTORY": "nowhere"}),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(loaded: Any, variable: str, more: dict[str, str]) -> None:
    """The fault names the variable, and what is accepted."""
    (fault, *_) = refused(loaded, **more)
    assert re.fullmatch(rf"environment: {variable}: .+; .+", fault)


def test_dot_files_and_directories(loaded: Any, tmp_path: Path) -> None:
    """Every file counts, whatever its name and depth; dot files unless they are ignored; a volume's links never."""
    config = tmp_path / "config"
    for name in (".hidden", "deep/er/plain", "..data/shop"):
        file = config / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"domain: {file.name}\n")
    assert set(loaded().document.policy.ratelimit.domains) == {"shop", ".hidden", "plain"}
    ignoring = loaded(RUNTIME_IGNOREDOTFILES="true").document.policy.ratelimit.domains
    assert set(ignoring) == {"shop", "plain"}


def test_a_file_has_what_has_no_variable(loaded: Any, tmp_path: Path) -> None:
    """A variable that is set goes before the file, the file before a default; faults name the file's lines."""
    policy = tmp_path / "sidecar.yaml"
    policy.write_text(
        "redis: {url: 'redis://file:1/0', timeout: 20ms}\nlog: {level: error}\nratelimit: {on_redis_failure: local}\n"
    )
    document = loaded(config=policy).document
    assert document.settings.redis.address == TcpAddress("127.0.0.1", 6379)
    assert (document.settings.redis.timeout_s, document.settings.log_level) == (0.02, "error")
    assert document.policy.ratelimit.options.on_failure == "local"
    policy.write_text("log:\n  level: loud\n")
    (fault,) = refused(loaded, config=policy)
    assert fault.startswith(f"{policy}:2: log.level: ")
    policy.write_text("server: {workers: 2}\n")
    assert refused(loaded, config=policy) == [
        f"{policy}:1: server.workers: `sidecar ratelimit` is one process; 1; or more replicas"
    ]
    policy.write_text("rules: []\n")
    (fault,) = refused(loaded, config=policy)
    assert fault.startswith(f"{policy}:1: rules: ")
    assert read(policy).root == {"rules": []}
