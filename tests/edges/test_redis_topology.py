"""What the policy's `redis` section becomes, secrets that rotate, and what operators see."""

from __future__ import annotations

import asyncio
import shutil
import time

import pytest
import redis

from sidecar.core.limits import US_PER_S, Algorithm, Charge, Limit, StoreFailure, Verdict
from sidecar.core.secret import Secret
from sidecar.edges import metric_sources
from sidecar.edges.metrics import LatencyHistogram
from sidecar.edges.metrics_table import ROWS
from sidecar.edges.redis_endpoint import Login, RedisAddress, RedisEndpoint, TlsFiles
from sidecar.edges.redis_per_second import PerSecondStore
from sidecar.edges.redis_store import RedisStore
from sidecar.edges.redis_topology import build_store
from sidecar.policy.compile import load
from tests.support.asking import PATIENCE_S, ask, redis_store, running_store, until, until_answered, verdict
from tests.support.certificates import make_certificates
from tests.support.fault_proxy import FaultProxy

HOUR_US = 3_600 * US_PER_S
PLENTY = Charge(Limit(name="l", requests=1_000_000, window_us=HOUR_US), b"sidecar:l:{k}")


def built(tmp_path, section, embedded_socket="", **hooks):
    """The store of a policy with this `redis` section."""
    policy = tmp_path / "sidecar.yaml"
    policy.write_text(f"server: {{check_timeout: 10s}}\nredis: {section}\n")
    return build_store(load(policy, 1).settings.redis, embedded_socket, **hooks)


async def test_a_single_server(tmp_path, valkey):
    """By its socket, and the embedded one."""
    for store in (
        built(tmp_path, f"{{url: 'unix://{valkey.socket_path}?db=2'}}"),
        built(tmp_path, "{url: embedded}", valkey.socket_path),
    ):
        async with running_store(store):
            assert (await verdict(store, PLENTY)).allowed
            assert store.detail()["topology"] == "single"


async def test_sentinels(tmp_path, sentinel):
    """The master that they name."""
    addresses = ", ".join(f"'127.0.0.1:{port}'" for _, port in sentinel.addresses)
    store = built(tmp_path, f"{{sentinel: {{master: counters, sentinels: [{addresses}]}}, timeout: 5s}}")
    async with running_store(store):
        assert (await verdict(store, PLENTY)).allowed
        assert store.detail()["topology"] == "sentinel"


async def test_a_cluster_and_a_store_for_seconds(tmp_path, cluster, valkey):
    """Each limit is counted in its store, and a decision over both in both."""
    seeds = f"'127.0.0.1:{cluster.addresses[0][1]}'"
    seconds = f"{{url: 'unix://{valkey.socket_path}', timeout: 5s}}"
    store = built(tmp_path, f"{{cluster: {{nodes: [{seeds}]}}, timeout: 5s, per_second: {seconds}}}")
    second = Charge(Limit(name="l", requests=10, window_us=US_PER_S), b"sidecar:l:{k}")
    async with running_store(store):
        assert (await verdict(store, PLENTY, second)).allowed
        assert (await verdict(store, second)).allowed
        assert [node.ask("DBSIZE") for node in cluster.masters].count(1) == 1
        with redis.Redis(unix_socket_path=valkey.socket_path) as client:
            assert client.keys() == [second.storage_key]
        replies = []
        store.command(second.storage_key, (b"DEL", second.storage_key), PATIENCE_S, replies.append)
        store.command(PLENTY.storage_key, (b"DEL", PLENTY.storage_key), PATIENCE_S, replies.append)
        await until(lambda: replies == [1, 1])
        detail = store.detail()
        assert (detail["topology"], detail["per_second"]["topology"]) == ("cluster", "single")


def test_everything_of_the_section_arrives(tmp_path):
    """Credentials and TLS of servers and Sentinels, the database, the times."""
    certificates = make_certificates(tmp_path)
    (tmp_path / "password").write_text("of the servers\n")
    (tmp_path / "sentinel-password").write_text("of the sentinels\n")
    files = f"{{ca: {certificates.ca}, certificate: {certificates.client}, key: {certificates.client_key}}}"
    store = built(
        tmp_path,
        f"{{username: limiter, password_file: password, tls: {files},"
        f" sentinel: {{master: counters, sentinels: ['a:1'], database: 3, username: asker,"
        f" password_file: sentinel-password, tls: {files}}}}}",
    )
    servers = store.master._login.endpoint(host="h")
    assert (servers.username, servers.password, servers.database) == ("limiter", "of the servers", 3)
    assert servers.tls is not None
    (connection,) = store.master._connections.values()
    sentinels = connection.locator.login.endpoint(host="a")
    assert (sentinels.username, sentinels.password, sentinels.database) == ("asker", "of the sentinels", 0)
    assert sentinels.tls is not None


async def test_without_the_section_nothing_is_charged():
    """A policy without limits has a store that refuses."""
    assert await ask(build_store(None, ""), PLENTY) is StoreFailure.UNREACHABLE


def test_bad_tls_files_are_named(tmp_path):
    """Files that were good when the policy was compiled, and are gone when the store is built."""
    certificates = make_certificates(tmp_path)
    policy = tmp_path / "sidecar.yaml"
    policy.write_text(f"redis: {{url: 'rediss://localhost', tls: {{ca: {certificates.ca}}}}}\n")
    settings = load(policy, 1).settings.redis
    certificates.ca.unlink()
    with pytest.raises(ValueError, match=certificates.ca.name):
        build_store(settings, "")


async def test_a_rotated_password_is_used_without_a_restart(valkey, valkey_admin, tmp_path):
    """The file is read for each connection; one that is gone or empty leaves the last password in use."""
    file = tmp_path / "password"
    file.write_text("first\n")
    rights = ("on", "resetpass", "~*", "+@all")
    valkey_admin.execute_command("ACL", "SETUSER", "rotated", *rights, ">first")
    login = Login(username="rotated", password="first", password_file=file)
    async with running_store(RedisStore(RedisAddress(login, path=valkey.socket_path), timeout_s=PATIENCE_S)) as store:
        valkey_admin.execute_command("ACL", "SETUSER", "rotated", *rights, ">second")
        store.connection.drop()
        await until(lambda: "WRONGPASS" in store.connection.last_error)
        file.write_text("second\n")
        await until_answered(store, PLENTY)
        for broken in ("", "a\nb", "x" * 5_000):
            file.write_text(broken)
            connects = store.counts.connects
            store.connection.drop()
            await until(lambda connects=connects: store.counts.connects > connects)
        assert "second" not in repr(store.connection.endpoint) + str(store.detail())


async def test_rotated_tls_files_are_used_without_a_restart(valkey, tmp_path):
    """New authorities and certificates are taken from the same files; a half-written pair leaves the old one in use."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "ours").mkdir()
    old, new = make_certificates(tmp_path / "old"), make_certificates(tmp_path / "new")
    ca, certificate, key = (tmp_path / "ours" / name for name in ("ca", "certificate", "key"))

    def install(source):
        for ours, theirs in ((ca, source.ca), (certificate, source.client), (key, source.client_key)):
            shutil.copy(theirs, ours)

    install(old)
    login = Login(tls=TlsFiles(ca=ca, certificate=certificate, key=key))
    async with FaultProxy(valkey.socket_path, new.server_context(mutual=True)) as proxy:
        store = RedisStore(RedisAddress(login, host="127.0.0.1", port=proxy.port), timeout_s=PATIENCE_S)
        store.start()
        await until(lambda: "CERTIFICATE_VERIFY_FAILED" in store.connection.last_error)
        before = login.endpoint(host="h").tls
        shutil.copy(new.client, certificate)
        assert login.endpoint(host="h").tls is before
        install(new)
        await until_answered(store, PLENTY)
        await store.close()


async def test_metrics_of_every_topology_have_their_rows(tmp_path, cluster, valkey):
    """Each sample belongs to a row, with as many labels; nodes are named by their addresses."""
    store = PerSecondStore(
        built(tmp_path, f"{{cluster: {{nodes: ['127.0.0.1:{cluster.addresses[0][1]}']}}}}"),
        RedisStore(RedisEndpoint(path=valkey.socket_path)),
    )
    async with running_store(store):
        samples = metric_sources.redis(store, LatencyHistogram())()
    assert all(len(ROWS[sample.name].labels) == len(sample.labels) for sample in samples)
    nodes = [sample.labels for sample in samples if sample.name == "sidecar_redis_node_connected"]
    assert sorted(labels[0] for labels in nodes) == ["main"] * 3 + ["per_second"]
    assert {labels[1] for labels in nodes if labels[0] == "main"} == {
        f"redis://127.0.0.1:{master.port}" for master in cluster.masters
    }


async def test_clocks_that_differ_count_the_same(valkey, monkeypatch):
    """Two sidecars whose clocks are 2 s apart admit together exactly what one would: only Redis's clock counts."""
    charges = [
        Charge(Limit(name="w", requests=50, window_us=HOUR_US, algorithm=algorithm), b"{%b}" % algorithm.encode())
        for algorithm in Algorithm
    ]
    endpoint = RedisEndpoint(path=valkey.socket_path)
    real_time = time.time_ns
    async with redis_store(endpoint) as first, redis_store(endpoint) as second:
        for charge in charges:
            asked = []
            for n in range(120):
                monkeypatch.setattr(time, "time_ns", lambda n=n: real_time() + (n % 2) * 2_000_000_000)
                asked.append(ask((first, second)[n % 2], charge))
            answers = await asyncio.gather(*asked)
            assert all(isinstance(answer, Verdict) for answer in answers)
            assert sum(answer.allowed for answer in answers) == 50


def test_passwords_given_otherwise_are_used():
    """Such as by an environment variable: without a file."""
    assert Login(password=Secret("x").reveal()).endpoint(host="h").password == "x"
