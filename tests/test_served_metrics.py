"""The metrics of a serving process: every row of the table has a part that fills it."""

from __future__ import annotations

import base64
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.check import CHECK
from sidecar.demo.processes import free_port, wait_until
from sidecar.edges.metrics_table import METRICS
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest
from sidecar.envoy.ratelimit import SHOULD_RATE_LIMIT
from tests.support.deciding import check_request
from tests.support.tokens import jwks, make_key

OF_THE_SUPERVISOR = {"sidecar_workers", "sidecar_worker_restarts_total"}
OF_DEGRADED_DECISIONS = {"sidecar_decisions_degraded_total"}
OF_XDS = {row.name for row in METRICS if row.name.startswith("sidecar_xds_")}

POLICY = """
server: {listen: "unix:grpc.sock"}
admin: {listen: "127.0.0.1:PORT"}
redis: {url: embedded}
issuers:
  main: {issuer: "https://issuer.example", audiences: [a], algorithms: [RS256], keys: {jwks_file: jwks.json}}
limits:
  all: {rate: 5/minute, key: {constant: x}}
  ghost: {rate: 0/minute, key: {constant: x}, shadow: true}
rules:
  - {name: open, match: {path: {prefix: /open}}, anonymous: true, limits: [all, ghost]}
  - name: proved
    match: {path: {prefix: /proved}}
    authenticate:
      any_of:
        - token: {issuers: [main]}
        - opaque_token: {introspection: far}
        - api_key: {keyrings: [ours, kept]}
api_keys: {ours: {prefix: k, pepper_file: pepper, file: keys.yaml}, kept: {prefix: r, pepper_file: pepper}}
introspection:
  far:
    url: "http://127.0.0.1:1/"
    insecure_http: true
    audiences: [a]
    client: {basic: {id: me, secret_file: secret}}
revocation: {}
abuse: {failed_authentications: {rate: 5/minute}}
ratelimit: {directory: ratelimit}
audit: {destination: {file: audit.log}}
"""


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[str]:
    """The admin listener of a sidecar in a process of its own, which has answered one call of each kind."""
    port = free_port()
    (tmp_path / "jwks.json").write_bytes(jwks(make_key("RS256").jwk))
    (tmp_path / "pepper").write_text(f"1: {base64.b64encode(bytes(32)).decode()}\n")
    (tmp_path / "keys.yaml").write_text("keys: []\n")
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "ratelimit").mkdir()
    limit = "descriptors: [{key: k, rate_limit: {unit: hour, requests_per_unit: 5}}]"
    (tmp_path / "ratelimit" / "d.yaml").write_text(f"domain: d\n{limit}\n")
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.replace("PORT", str(port)).replace("grpc.sock", str(tmp_path / "grpc.sock")))
    sidecar = [sys.executable, "-m", "sidecar"]
    create = [*sidecar, "keys", "create", "--config", str(policy), "--keyring", "ours", "--owner", "me"]
    key = subprocess.run(create, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    process = subprocess.Popen([*sidecar, "serve", "--config", str(policy)])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: (tmp_path / "grpc.sock").exists() and _answers(f"{url}/readyz"), "the sidecar is ready")
        with grpc.insecure_channel(f"unix:{tmp_path / 'grpc.sock'}") as channel:
            for path, message in (
                (CHECK, check_request("/open/a")),
                (CHECK, check_request("/proved", headers=[("x-api-key", key)])),
                (SHOULD_RATE_LIMIT, _rate_limit_request()),
            ):
                channel.unary_unary(path)(message, timeout=5)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _rate_limit_request() -> bytes:
    request = RateLimitRequest(domain="d")
    request.descriptors.add().entries.add(key="k", value="v")
    return request.SerializeToString()


def test_every_row_is_filled(admin: str) -> None:
    """A row that nothing fills is a promise of docs/metrics.md that is not kept."""
    with urllib.request.urlopen(f"{admin}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    filled = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    names = {row.name for row in METRICS}
    missing = {name for name in names if not {name, f"{name}_count"} & filled}
    assert missing == OF_THE_SUPERVISOR | OF_DEGRADED_DECISIONS | OF_XDS
