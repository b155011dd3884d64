"""What a policy means once it is compiled."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from sidecar.core.authz import AllOf, AnyOf, RoleCondition, ScopeCondition
from sidecar.core.credentials import Removed
from sidecar.core.descriptors import Domain
from sidecar.core.issuer import COMPAT, RFC9068, SUPPORTED, FetchSettings, JwksFile, JwksUrl, OidcDiscovery
from sidecar.core.limits import Algorithm, Charge, OnFailure
from sidecar.core.rules import ExactPath, HeaderMatch, TemplatePath
from sidecar.core.selectors import (
    AddressSelector,
    ClaimSelector,
    ConstantSelector,
    HeaderSelector,
    PathParameterSelector,
)
from sidecar.policy.compile import load, masked
from sidecar.policy.compile_rules import challenge, identity_headers
from sidecar.policy.compile_settings import server_limits
from sidecar.policy.document import LIMITS_PER_RULE_MAX, Issuer
from sidecar.policy.faults import PolicyError
from sidecar.policy.fields import NAME_PATTERN
from sidecar.policy.files import SECRET_BYTES_MAX
from sidecar.policy.sections import TransportLimits
from sidecar.transport.service import ServerLimits, TcpAddress, UnixAddress

GOOD = Path(__file__).parent / "good"


@pytest.fixture(scope="module")
def full(full_directory):
    return load(full_directory / "sidecar.yaml", 3)


@pytest.fixture
def written(tmp_path):
    def load_text(text: str):
        path = tmp_path / "sidecar.yaml"
        path.write_text(text)
        return load(path, 1)

    return load_text


def rule_named(compiled, name):
    return next(rule for rule in compiled.policy.rules.rules if rule.name == name)


def test_settings_are_what_the_file_says(full, full_directory):
    """Durations become seconds, addresses are parsed, and files are found beside the policy."""
    settings, directory = full.settings, full_directory
    tcp = (TcpAddress("127.0.0.1", 9090), TcpAddress("::1", 9090))
    assert settings.listen == (*tcp, UnixAddress("/run/sidecar/sidecar.sock"))
    assert (settings.engine, settings.workers, settings.check_timeout_s) == ("http2", 2, 0.1)
    assert settings.tls is not None
    assert settings.tls.certificate == str(directory / "tls/server.crt")
    assert settings.limits == ServerLimits(message_bytes_max=1048576, concurrent_streams_max=100, keepalive_idle_s=90.0)
    assert (settings.drain_grace_s, settings.admin) == (10.0, TcpAddress("127.0.0.1", 9091))
    assert (settings.local_share, settings.log_level) == (0.25, "warning")
    assert settings.audit == str(directory / "audit.jsonl")
    assert settings.ratelimit_directory == str(directory / "ratelimit")
    assert full.policy.ratelimit.options.on_failure is OnFailure.ALLOW


def test_redis_settings_hold_the_password_and_never_show_it(full):
    """The password comes from its file without the newline, and no representation gives it away."""
    redis = full.settings.redis
    assert redis is not None
    assert redis.address == TcpAddress("redis.example", 6380)
    assert (redis.database, redis.username, redis.timeout_s, redis.key_prefix) == (3, "limiter", 0.02, "shop")
    assert redis.password is not None
    assert redis.password.reveal() == "limiter-password"
    assert redis.tls is not None
    assert redis.tls.server_name == "redis.internal"
    assert "limiter-password" not in repr(full.settings)


def test_issuers_are_what_the_file_says(full, full_directory):
    """By `iss`; claims are paths, media types lose their prefix, keys come from one of three sources."""
    main = full.policy.issuers["https://issuer.example"]
    assert main.keys == OidcDiscovery("https://issuer.example")
    assert (main.leeway_s, main.max_lifetime_s, main.refresh_s, main.keys_stale_s_max) == (300, 3600, 60, 86400)
    assert main.token_types == {"at+jwt"}
    assert (main.scope_claim, main.roles_claim) == (("scp",), ("realm_access", "roles"))
    assert (main.fetch.timeout_s, main.token_bytes_max, main.require_expiry) == (2.5, 4096, False)
    from_file = full.policy.issuers["not-a-url"]
    assert from_file.keys == JwksFile(str(full_directory / "keys/jwks.json"))
    assert from_file.roles_claim == ("https://issuer.example/roles", "names")
    assert (from_file.audiences, from_file.required) == (frozenset(), False)
    test = full.policy.issuers["test"]
    assert isinstance(test.keys, JwksUrl)
    assert (test.profile, test.loose_audience, test.token_types) == (COMPAT, True, {"", "jwt"})
    secret = full.policy.issuers["https://secret.example"]
    assert secret.keys == JwksFile(str(full_directory / "keys/symmetric.json"), symmetric=True)
    assert (secret.profile, secret.token_types) == (RFC9068, {"at+jwt"})


def test_how_keys_are_fetched_is_what_the_file_says(full, full_directory):
    """Every setting of `fetch`, and what else bounds and keeps keys."""
    main = full.policy.issuers["https://issuer.example"]
    assert main.fetch == FetchSettings(
        ca_file=str(full_directory / "tls/issuer-ca.pem"),
        client_certificate=str(full_directory / "tls/redis.crt"),
        client_key=str(full_directory / "tls/redis.key"),
        proxy="http://proxy.internal:3128",
        headers=(("x-gateway-key", str(full_directory / "secrets/redis-password")),),
        bearer_token_file=str(full_directory / "secrets/redis-password"),
        timeout_s=2.5,
        connect_timeout_s=1.0,
        read_timeout_s=0.5,
        body_bytes_max=65536,
        private_addresses=True,
    )
    assert (main.keys_max, main.keys_persist) == (20, str(full_directory / "main-keys.json"))
    assert full.policy.issuers["test"].fetch == FetchSettings(insecure_http=True)


def test_claims_that_an_issuer_must_and_must_not_send(full):
    """As paths, also of the tier and the tenant."""
    main = full.policy.issuers["https://issuer.example"]
    assert main.required_claims == (("jti",), ("realm_access", "roles"), ("https://issuer.example/org",))
    assert main.forbidden_claims == (("act",),)
    assert (main.tier_claim, main.tenant_claim, main.max_age_s) == (("plan",), ("org", "id"), 7200)


def test_a_rule_is_what_the_file_says(full):
    """Names are in lower case and paths canonical; what never changes of a challenge is quoted already."""
    rule = rule_named(full, "read-order")
    assert rule.match.host == "*.example.com"
    assert rule.match.path == TemplatePath("/orders,/{id}")
    assert rule.match.methods == {"GET", "HEAD"}
    assert rule.match.headers == (HeaderMatch("x-api-version", "2"), HeaderMatch("x-preview"))
    assert set(rule.issuers) == {"https://issuer.example", "not-a-url"}
    any_of = AnyOf((RoleCondition("admin"), ScopeCondition("orders:all")))
    assert rule.authorize == AllOf((ScopeCondition("orders:read"), any_of))
    assert rule.challenge_scope == "orders:read orders:all"
    assert rule.challenge == (
        'realm="the \\"orders\\"", resource_metadata="https://api.example.com/.well-known/oauth-protected-resource"'
    )
    assert rule.removed == Removed(headers=())


def test_a_rules_headers_are_added_to_the_defaults_and_win(full):
    """The same name in a rule replaces the default."""
    assert dict(rule_named(full, "read-order").upstream_headers) == {
        "x-user-id": ClaimSelector(("sub",)),
        "x-scopes": ConstantSelector("none"),
        "x-order": PathParameterSelector("id"),
    }


def test_identity_headers_are_those_of_every_rule_with_their_twins(full):
    """Every rule removes what any rule may set, so that no client can send it where a rule does not."""
    expected = {"x-user-id", "x_user_id", "x-scopes", "x_scopes", "x-order", "x_order"}
    expected |= {"x-internal-token", "x_internal_token"}
    assert all(set(rule.identity_headers) == expected for rule in full.policy.rules.rules)
    assert identity_headers(["X-A", "plain"]) == ("x-a", "x_a", "plain")


def test_limits_are_bound_to_prefixed_counters(full):
    """The prefix is the policy's and the limit's name."""
    per_user, per_order = rule_named(full, "read-order").limits
    assert per_user.key == (
        ClaimSelector(("sub",)),
        HeaderSelector("x-tenant"),
        AddressSelector(),
        ConstantSelector("x"),
    )
    assert (per_user.limit.requests, per_user.limit.window_us) == (100, 60_000_000)
    assert (per_user.key_prefix, per_user.on_failure) == (b"shop:per-user:", OnFailure.LOCAL)
    assert per_order.limit.algorithm is Algorithm.FIXED_WINDOW
    assert (per_order.key_prefix, per_order.on_failure) == (b"shop:per-order:", OnFailure.ERROR)


def test_a_limit_has_the_same_counters_wherever_it_is_named():
    """Two rules with one limit share it."""
    compiled = load(GOOD / "anchors.yaml", 1)
    assert rule_named(compiled, "a").limits == rule_named(compiled, "b").limits


@pytest.mark.parametrize(
    ("before", "after"),
    [("rate: 9/second", "rate: 9/minute"), ("rate: 9/second", "rate: 9/second, algorithm: fixed_window")],
)
def test_a_change_of_algorithm_or_window_starts_other_counters(written, before, after):
    """State of one kind is never read as state of another."""
    text = """
redis: {url: embedded}
limits: {l: {rate: 9/second, key: {constant: x}}}
rules: [{name: a, match: {path: {exact: /}}, anonymous: true, limits: [l]}]
"""

    def storage_key(changed):
        binding = rule_named(written(changed), "a").limits[0]
        return Charge(binding.limit, binding.key_prefix + b"hash").storage_key

    assert storage_key(text) != storage_key(text.replace(before, after))
    assert storage_key(text) == storage_key(text.replace("9/second", "10/second")) == b"sidecar:l:hash:s1000000"


@pytest.mark.parametrize("domain", ["shop", "", "a:b/c", "rl"])
def test_no_limit_can_have_the_name_that_a_rate_limit_domain_counts_under(domain):
    """The part of a domain's counter keys that stands where a limit's name stands is no name."""
    label = Domain(domain, []).key_label.decode()
    assert label.count(":") == 1
    assert re.fullmatch(NAME_PATTERN, label.removesuffix(":")) is None


def test_an_empty_policy_listens_and_denies():
    """Nothing is let through by a policy that says nothing."""
    compiled = load(GOOD / "empty.yaml", 1)
    assert compiled.policy.rules.match("a.example", "/", "GET", {}) is None
    assert compiled.settings.redis is None
    assert compiled.settings.listen == (TcpAddress("127.0.0.1", 9090),)


def test_words_and_numbers_of_yaml_1_1_are_text():
    """`yes`, `on`, `off`, `010` and dates are what they look like."""
    compiled = load(GOOD / "words.yaml", 1)
    issuer = compiled.policy.issuers["2020-01-01"]
    assert (issuer.name, issuer.audiences) == ("yes", {"on", "010", "1:30", "0x1f", "1_000"})
    rule = rule_named(compiled, "no")
    assert rule.match.path == ExactPath("/on")
    assert rule.authorize == AnyOf((RoleCondition("off"), ScopeCondition("y")))


def test_defaults_of_the_document_are_those_of_the_core():
    """An empty section means the same as no section, and each limit of the transport has a key."""
    assert server_limits(TransportLimits()) == ServerLimits()
    written_names = {name.removesuffix("_s") for name in (f.name for f in dataclasses.fields(ServerLimits))}
    assert written_names == set(TransportLimits.model_fields)


def test_the_documents_algorithms_are_those_of_the_core():
    """The choices that the schema offers are exactly what can be verified."""
    assert set(Issuer.model_json_schema()["properties"]["algorithms"]["items"]["enum"]) == SUPPORTED


def test_masked_is_json_and_holds_no_secret(full):
    """The admin listener shows generation and document; neither passwords nor the queries of URLs."""
    text = json.dumps(masked(full))
    assert masked(full)["generation"] == 3
    assert "read-order" in text
    assert "hunter2" not in text
    assert "limiter-password" not in text
    assert "http://127.0.0.1:8080/keys?***" in text


def test_challenge_parameters_are_quoted_strings():
    """Quotes and backslashes are escaped."""
    assert challenge('a"b\\c', None) == 'realm="a\\"b\\\\c"'


@pytest.mark.parametrize("size", [SECRET_BYTES_MAX, SECRET_BYTES_MAX + 1])
def test_a_secrets_file_is_bounded(tmp_path, size):
    """One byte more than the limit is a fault, and the text is not in it."""
    (tmp_path / "password").write_text("x" * size + "\n")
    policy = tmp_path / "sidecar.yaml"
    policy.write_text("redis: {url: redis://localhost, password_file: password}\n")
    if size > SECRET_BYTES_MAX:
        with pytest.raises(PolicyError, match="no usable secret") as caught:
            load(policy, 1)
        assert "xxxx" not in str(caught.value)
    else:
        settings = load(policy, 1).settings
        assert settings.redis is not None
        assert settings.redis.password


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb\n", b"\xff", b"a\x00b"])
def test_a_file_without_a_usable_secret_is_a_fault(tmp_path, content):
    """Empty, several lines, not UTF-8, control characters."""
    (tmp_path / "password").write_bytes(content)
    policy = tmp_path / "sidecar.yaml"
    policy.write_text("redis: {url: redis://localhost, password_file: password}\n")
    with pytest.raises(PolicyError, match="no usable secret"):
        load(policy, 1)


def test_limits_of_a_rule_are_bounded(written):
    """The largest number of limits loads; `bad/rule-limits-too-many.yaml` has one more."""
    names = [f"l{n}" for n in range(LIMITS_PER_RULE_MAX)]
    limits = "".join(f"  {name}: {{rate: 1/second, key: {{constant: x}}}}\n" for name in names)
    rule = f"rules: [{{name: a, match: {{path: {{exact: /}}}}, anonymous: true, limits: [{', '.join(names)}]}}]\n"
    compiled = written(f"redis: {{url: embedded}}\nlimits:\n{limits}{rule}")
    assert len(rule_named(compiled, "a").limits) == LIMITS_PER_RULE_MAX


def test_conflicts_are_reported_all_at_once(written):
    """Each rule in conflict with an earlier one has a fault of its own."""
    rules = "".join(f"  - {{name: r{n}, match: {{path: {{exact: /}}}}, anonymous: true}}\n" for n in range(5))
    with pytest.raises(PolicyError) as caught:
        written(f"rules:\n{rules}")
    assert [fault.line for fault in caught.value.faults] == [3, 4, 5, 6]


def test_thousands_of_rules_load_and_match(written):
    """Size is no fault."""
    rules = "".join(
        f"  - {{name: r{n}, match: {{path: {{template: '/r{n}/{{id}}'}}}}, anonymous: true}}\n" for n in range(2000)
    )
    matched = written(f"rules:\n{rules}").policy.rules.match("a.example", "/r1999/5", "GET", {})
    assert matched is not None
    assert (matched[0].name, dict(matched[1])) == ("r1999", {"id": "5"})
