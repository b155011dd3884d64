"""`authenticate`, compiled: which way a rule goes, where it looks, and what is taken off its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sidecar.core.api_keys import ApiKeyMethod
from sidecar.core.authn import CREDENTIALS_MAX, Composition, StepUp, TokenMethod
from sidecar.core.certificates import CertificateMethod
from sidecar.core.credentials import CookiePlace, HeaderPlace, QueryPlace, Removed, Shape
from sidecar.core.introspection import OpaqueTokens
from sidecar.policy.compile import load
from sidecar.policy.compile_authenticate import BEARER
from sidecar.policy.faults import PolicyError

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.core.rules import Rule

HEAD = """
redis: {url: "redis://127.0.0.1:1/0"}
issuers:
  main: {issuer: "https://issuer.example", audiences: [a], algorithms: [RS256], keys: {discovery: true}}
introspection:
  legacy:
    url: https://legacy.example/introspect
    audiences: [a]
    client: {basic: {id: sidecar, secret_file: secret}}
api_keys: {partners: {prefix: acme, pepper_file: pepper}}
certificates: {mesh: {source: xfcc, trust_domains: [mesh.example]}}
rules:
"""
TOKEN = "token: {issuers: [main]}"
COOKIE = "token: {issuers: [main], in: {cookie: session}}"


@pytest.fixture
def rules(tmp_path: Path):
    """Compiles rules, each given by what it authenticates with and its `upstream`."""
    (tmp_path / "secret").write_text("opensesame")
    (tmp_path / "pepper").write_text("1: " + "b25l" * 11)

    def compiled(*sections: str) -> list[Rule]:
        path = tmp_path / "sidecar.yaml"
        texts = [f"  - {{name: r{n}, match: {{path: {{exact: /{n}}}}}, {each}}}\n" for n, each in enumerate(sections)]
        path.write_text(HEAD + "".join(texts))
        return list(load(path, 1).policy.rules.rules)

    return compiled


def test_bearer_tokens_alone_go_the_short_way(rules):
    """However they are written: the hot path knows nothing of compositions."""
    for written in ("issuers: [main]", f"any_of: [{{{TOKEN}}}]", f"all_of: [{{{TOKEN}}}]"):
        [rule] = rules(f"authenticate: {{{written}}}")
        assert (list(rule.issuers), rule.composition) == (["https://issuer.example"], None)
    for written in ("issuers: [main], step_up: {acr: [mfa]}", "issuers: [main], tenant: {constant: a}"):
        [rule] = rules(f"authenticate: {{{written}}}")
        assert (rule.issuers, type(rule.composition)) == ({}, Composition)


def test_each_kind_has_its_method_and_its_place(rules):
    """Defaults, places of one's own, and the shapes of those that share one."""
    [rule] = rules(
        f"authenticate: {{any_of: [{{{TOKEN}}}, {{{COOKIE}}}, {{opaque_token: {{introspection: legacy}}}}, "
        "{api_key: {keyrings: [partners]}}, {api_key: {keyrings: [partners], in: {header: Authorization}}}, "
        "{token: {issuers: [main], in: {query: access_token}}}, {certificate: {trust: mesh}}], step_up: {max_age: 1m}}"
    )
    composition = rule.composition
    assert [type(method) for method in composition.methods] == [
        TokenMethod,
        TokenMethod,
        OpaqueTokens,
        ApiKeyMethod,
        ApiKeyMethod,
        TokenMethod,
    ]
    assert [method.place for method in composition.methods] == [
        HeaderPlace("authorization", BEARER.schemes, Shape.TOKEN),
        CookiePlace("session"),
        HeaderPlace("authorization", BEARER.schemes, Shape.OPAQUE),
        HeaderPlace("x-api-key"),
        HeaderPlace("authorization", ("apikey",)),
        QueryPlace("access_token"),
    ]
    assert [type(method) for method in composition.ambient] == [CertificateMethod]
    assert (composition.every, composition.step_up) == (False, StepUp((), 60))
    assert [scheme.name for scheme in rule.challenge_schemes] == ["Bearer", "ApiKey", "ClientCertificate"]


def test_where_all_are_asked_for_none_is_ambient(rules):
    """A certificate is one of those that must be shown."""
    [rule] = rules(f"authenticate: {{all_of: [{{{TOKEN}}}, {{certificate: {{trust: mesh}}}}]}}")
    assert [type(method) for method in rule.composition.methods] == [TokenMethod, CertificateMethod]
    assert (rule.composition.every, rule.composition.ambient) == (True, ())


def test_what_any_rule_looks_for_is_taken_off_all(rules):
    """Unless it is forwarded: then a rule's own stays, and with an anonymous rule everything."""
    forward = "upstream: {credential: forward}"
    query = "token: {issuers: [main], in: {query: access_token}}"
    found = rules(
        f"authenticate: {{any_of: [{{{COOKIE}}}, {{api_key: {{keyrings: [partners]}}}}]}}",
        f"authenticate: {{any_of: [{{{query}}}]}}, {forward}",
        f"authenticate: {{issuers: [main]}}, {forward}",
        "anonymous: true",
        f"anonymous: true, {forward}",
    )
    everything = Removed(("authorization", "x-api-key"), frozenset({"session"}), frozenset({"access_token"}))
    assert [rule.removed for rule in found] == [
        everything,
        Removed(everything.headers, everything.cookies, frozenset()),
        Removed(("x-api-key",), everything.cookies, everything.parameters),
        everything,
        Removed((), frozenset(), frozenset()),
    ]
    assert all(("cookie" in rule.answer_headers) == bool(rule.removed.cookies) for rule in found)


def test_credentials_are_bounded(rules):
    """As many as the limit, and no more, in the file and in the composition itself."""
    many = [f"{{token: {{issuers: [main], in: {{header: x-{n}}}}}}}" for n in range(CREDENTIALS_MAX + 1)]
    [rule] = rules(f"authenticate: {{any_of: [{', '.join(many[:-1])}]}}")
    assert len(rule.composition.methods) == CREDENTIALS_MAX
    with pytest.raises(PolicyError, match=f"at most {CREDENTIALS_MAX} items"):
        rules(f"authenticate: {{any_of: [{', '.join(many)}]}}")
    for methods in ((), rule.composition.methods + rule.composition.methods[:1]):
        with pytest.raises(ValueError, match=f"1 to {CREDENTIALS_MAX}"):
            Composition(methods=methods)
