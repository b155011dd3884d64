"""The section `introspection` as it is compiled: what each key means, and what is left where it says nothing."""

from __future__ import annotations

import pytest

from sidecar.core.introspection import ClientSecretBasic, IntrospectionPolicy, PrivateKeyJwt, TlsClientAuth
from sidecar.policy.compile import load, masked
from sidecar.policy.faults import PolicyError


@pytest.fixture(scope="module")
def full(full_directory):
    return load(full_directory / "sidecar.yaml", 1)


def test_an_endpoint_is_what_the_file_says(full, full_directory):
    """Every key, in the units of the core."""
    legacy = full.policy.introspection["legacy"]
    assert legacy.client == ClientSecretBasic("sidecar", str(full_directory / "secrets/redis-password"))
    assert (legacy.name, legacy.url) == ("legacy", "https://issuer.example/introspect")
    assert (legacy.active_s, legacy.inactive_s, legacy.timeout_s) == (30.0, 0.5, 1.0)
    assert (legacy.rate_count, legacy.rate_us) == (50, 10_000_000)
    assert (legacy.concurrent_max, legacy.queue_max, legacy.token_bytes_max) == (4, 0, 512)
    assert (legacy.on_failure_error, legacy.token_type_hint, legacy.insecure_http) == (True, False, False)
    assert legacy.ca_file == str(full_directory / "tls/issuer-ca.pem")
    assert legacy.subject_claim == "username"
    rules = legacy.rules
    assert (rules.issuer, rules.audiences, rules.leeway_s) == ("https://issuer.example", {"orders-api"}, 10)
    assert (rules.require_audience, rules.require_expiry) == (True, True)
    assert (rules.scope_claim, rules.roles_claim) == (("scp",), ("realm_access", "roles"))
    assert (rules.tier_claim, rules.tenant_claim) == (("plan",), ("org", "id"))


def test_clients_prove_themselves_in_other_ways(full, full_directory):
    """By a key, whose JWT is for the endpoint unless the policy says otherwise, and by a certificate."""
    signing, mutual = full.policy.introspection["signing"], full.policy.introspection["mutual"]
    key = str(full_directory / "tls/redis.key")
    assert signing.client == PrivateKeyJwt("sidecar", key, "k1", "https://issuer.example")
    assert mutual.client == TlsClientAuth("sidecar", str(full_directory / "tls/redis.crt"), key)
    assert (signing.rules.require_audience, signing.rules.require_expiry) == (False, False)


def test_what_is_left_out_is_strict(full):
    """The defaults of the section are those of the core, and refuse rather than accept."""
    mutual = full.policy.introspection["mutual"]
    written = IntrospectionPolicy(name="mutual", url=mutual.url, client=mutual.client, rules=mutual.rules)
    assert mutual == written
    assert mutual.rules.binding is None


def test_nothing_secret_is_shown(full):
    """Neither a URL's query nor what a file holds."""
    assert "hunter2" not in str(masked(full))
    assert "limiter-password" not in repr(full.policy.introspection)


def test_a_certificate_needs_tls(tmp_path, full_directory):
    """Over http:// no certificate is shown: a fault, not a question that proves nothing."""
    policy = tmp_path / "sidecar.yaml"
    tls = full_directory / "tls"
    policy.write_text(
        "introspection: {a: {url: 'http://127.0.0.1/x', insecure_http: true, audiences: [a], client: "
        f"{{certificate: {{id: s, certificate: '{tls}/redis.crt', key: '{tls}/redis.key'}}}}}}}}\n"
    )
    with pytest.raises(PolicyError, match="not https://, so no certificate is shown"):
        load(policy, 1)
