"""What `dpop` and `certificates` mean once they are compiled."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

from sidecar.core.certificates import CertificateSource, XfccElement
from sidecar.core.dpop_nonces import Freshness
from sidecar.policy.compile import load, masked

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.core.issuer import IssuerPolicy

NOW_US = 1_800_000_000_000_000

ISSUERS = """
issuers:
  main: {issuer: "https://issuer.example", audiences: [a], algorithms: [ES256], keys: {discovery: true}MORE}
"""


def issuer(directory: Path, text: str, more: str = "") -> IssuerPolicy:
    path = directory / "sidecar.yaml"
    path.write_text(text + ISSUERS.replace("MORE", more))
    return load(path, 1).policy.issuers["https://issuer.example"]


def test_nothing_is_bound_by_default(tmp_path: Path) -> None:
    """Without the sections bound tokens are refused, and nothing is looked at."""
    assert issuer(tmp_path, "").binding is None


def test_defaults_are_strict(tmp_path: Path) -> None:
    """`dpop: {}` is enough: asymmetric algorithms, a minute, the request's own URL, Redis or a denial."""
    binding = issuer(tmp_path, "redis: {url: embedded}\ndpop: {}").binding
    assert binding is not None
    assert binding.dpop is not None
    assert binding.dpop.algorithms == {"ES256", "EdDSA", "Ed25519", "PS256"}
    assert (binding.dpop.origin, binding.dpop.age_s_max, binding.dpop.leeway_s) == ("", 60, 5)
    assert (binding.dpop.nonces, binding.dpop.replay_local, binding.dpop.remembered_ms) == (None, False, 70_000)
    assert (binding.certificates, binding.require_dpop) == (None, False)


def test_everything_that_is_said_arrives(tmp_path: Path) -> None:
    """Origin in its one spelling, nonces by their files, the trust by its name; no secret in what operators see."""
    (tmp_path / "new").write_text("n" * 32 + "\n")
    (tmp_path / "old").write_text("o" * 43)
    text = """
dpop:
  algorithms: [ES256]
  origin: https://Api.example.com:443/v1/
  max_age: 30s
  leeway: 2s
  nonce: {key_files: [new, old], lifetime: 1m}
  on_redis_failure: local
certificates:
  mesh:
    source: xfcc
    xfcc_element: last
    proxies: [10.0.0.0/8, "fd00::1"]
    trust_domains: [prod.example.com]
    dns_names: ["*.Clients.example.com"]
    common_name: true
"""
    binding = issuer(tmp_path, text, ", require_dpop: true, client_certificates: mesh").binding
    assert binding is not None
    assert binding.require_dpop
    dpop, trust = binding.dpop, binding.certificates
    assert dpop is not None
    assert dpop.nonces is not None
    assert (dpop.origin, dpop.age_s_max, dpop.leeway_s, dpop.replay_local) == (
        "https://api.example.com/v1",
        30,
        2,
        True,
    )
    assert dpop.nonces.judge(dpop.nonces.current(NOW_US), NOW_US) is Freshness.CURRENT
    assert [len(key.reveal()) for key in dpop.nonces.keys] == [32, 43]
    assert trust is not None
    assert (trust.name, trust.source, trust.xfcc_element) == ("mesh", CertificateSource.XFCC, XfccElement.LAST)
    assert trust.proxies == (ip_network("10.0.0.0/8"), ip_network("fd00::1"))
    assert (trust.trust_domains, trust.dns_names) == ({"prod.example.com"}, ("*.clients.example.com",))
    assert trust.common_name
    shown = str(masked(load(tmp_path / "sidecar.yaml", 1)))
    assert "nnnn" not in shown + repr(binding)


def test_a_reload_of_the_same_policy_is_the_same_policy(tmp_path: Path) -> None:
    """Equal by value: verified tokens stay in the cache."""
    text = "redis: {url: embedded}\ndpop: {}\ncertificates: {mesh: {source: peer_certificate}}\n"
    assert issuer(tmp_path, text, ", client_certificates: mesh") == issuer(
        tmp_path, text, ", client_certificates: mesh"
    )


def test_opaque_tokens_are_bound_alike(tmp_path: Path) -> None:
    """An introspection endpoint's section says the same of its tokens."""
    (tmp_path / "secret").write_text("s" * 32)
    path = tmp_path / "sidecar.yaml"
    path.write_text("""
redis: {url: embedded}
dpop: {}
introspection:
  legacy:
    url: https://issuer.example/introspect
    client: {basic: {id: sidecar, secret_file: secret}}
    audiences: [a]
    require_dpop: true
""")
    binding = load(path, 1).policy.introspection["legacy"].rules.binding
    assert binding is not None
    assert binding.require_dpop
    assert binding.dpop is not None
