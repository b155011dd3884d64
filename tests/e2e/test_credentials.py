"""Credentials in cookies and queries through real Envoys: what is proved, and what of it the upstream sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.gateway import NEWEST, OLDEST, Gateway, Lab

if TYPE_CHECKING:
    from sidecar.demo.issuer import DemoIssuer

LISTENERS = ("closed", "bare-open", "raw-open")


def in_places(document: dict[str, Any]) -> None:
    """Tokens in a cookie or in the query; rules that look for none of these; and one that forwards them."""
    token = {"issuers": ["demo"]}
    any_of = [
        {"token": token},
        {"token": {**token, "in": {"cookie": "session"}}},
        {"token": {**token, "in": {"query": "access_token"}}},
    ]
    document["rules"] += [
        {"name": "placed", "match": {"path": {"prefix": "/placed"}}, "authenticate": {"any_of": any_of}},
        {
            "name": "several",
            "match": {"path": {"prefix": "/several"}},
            "authenticate": {"any_of": [{"token": token}, {"api_key": {"keyrings": ["partners"]}}]},
        },
        {"name": "unplaced", "match": {"path": {"prefix": "/unplaced"}}, "anonymous": True},
        {
            "name": "forwarded",
            "match": {"path": {"prefix": "/forwarded"}},
            "authenticate": {"any_of": any_of},
            "upstream": {"credential": "forward"},
        },
    ]


@pytest.fixture(params=[OLDEST, NEWEST])
def placed(request: pytest.FixtureRequest, lab: Lab) -> Gateway:
    pepper = lab.directory / "pepper"
    pepper.write_text("1: " + "b25l" * 11)

    def change(document: dict[str, Any]) -> None:
        document["api_keys"] = {"partners": {"prefix": "acme", "pepper_file": str(pepper)}}
        in_places(document)

    return lab.gateway(lab.sidecar(change), request.param)


def test_what_is_proved_never_reaches_the_upstream(placed: Gateway, issuer: DemoIssuer) -> None:
    """The cookie and the parameter are gone, in whatever spelling; all else is as it was sent."""
    token = issuer.token()
    for listener in LISTENERS:
        for sent, seen in (
            (f"session={token}", None),
            (f"a=1; session={token}; b=%20", "a=1; b=%20"),
            (f"a=1;session={token};b", "a=1;b"),
        ):
            reply = placed.get(listener, "/placed/x?q=1", headers=[("cookie", sent)])
            assert (reply.status, reply.json()["path"]) == (200, "/placed/x?q=1")
            assert reply.json()["headers"].get("cookie") == seen
            assert reply.json()["headers"]["x-user-id"] == "alice"
        for target, path in (
            (f"/placed/x?access_token={token}", "/placed/x"),
            (f"/placed/a,b?q=%2F&access_token={token}&q=a+b&&r", "/placed/a,b?q=%2F&q=a+b&&r"),
            (f"/placed/x?acces%73_token={token}&?=1", "/placed/x??=1"),
        ):
            reply = placed.get(listener, target, headers=[("cookie", "a=1")])
            assert (reply.status, reply.json()["path"]) == (200, path)
            assert reply.json()["headers"]["cookie"] == "a=1"
            assert token not in str(reply.json())


def test_two_credentials_are_one_too_many(placed: Gateway, issuer: DemoIssuer) -> None:
    """In two places, or twice in one: a 400, and the upstream is not asked."""
    token = issuer.token()
    bearer, cookie = ("authorization", f"Bearer {token}"), ("cookie", f"session={token}")
    for listener in LISTENERS:
        for target, headers in (
            ("/placed/x", [bearer, cookie]),
            ("/placed/x", [cookie, cookie]),
            (f"/placed/x?access_token={token}", [cookie]),
            (f"/placed/x?access_token={token}&access_token={token}", []),
        ):
            reply = placed.get(listener, target, headers=headers)
            problem = (
                "malformed" if headers == [cookie, cookie] and listener != "raw-open" else "repeated"
            )  # joined by ","
            assert (reply.status, reply.json()["type"]) == (400, f"urn:sidecar:problem:credential_{problem}")


def test_what_another_rule_looks_for_is_removed_all_the_same(placed: Gateway, issuer: DemoIssuer) -> None:
    """A rule that asks for nothing hands no credential on; one that forwards hands on its own."""
    token = issuer.token()
    for listener in LISTENERS:
        everything = [("cookie", f"session={token}; a=1"), ("authorization", f"Bearer {token}")]
        reply = placed.get(listener, f"/unplaced?access_token={token}&a=1", headers=everything)
        assert (reply.status, reply.json()["path"]) == (200, "/unplaced?a=1")
        assert reply.json()["headers"]["cookie"] == "a=1"
        assert token not in str(reply.json())
        reply = placed.get(listener, "/unplaced", headers=[("cookie", "a=1"), ("cookie", f"session={token}")])
        assert (reply.status, reply.json()["headers"]["cookie"]) == (200, "a=1")
        reply = placed.get(listener, f"/forwarded?access_token={token}&a=1")
        assert (reply.status, reply.json()["path"]) == (200, f"/forwarded?access_token={token}&a=1")


def test_challenges_name_what_is_accepted(placed: Gateway) -> None:
    """Without a credential, or with one that is none: 401 with a challenge."""
    for listener in LISTENERS:
        reply = placed.get(listener, "/placed/x", headers=[("cookie", "a=1")])
        assert (reply.status, reply.header("www-authenticate")) == (401, 'Bearer realm="sidecar"')
        reply = placed.get(listener, "/placed/x", headers=[("cookie", "session=eyJ")])
        assert (reply.status, 'error="invalid_token"' in reply.header("www-authenticate")) == (401, True)
        reply = placed.get(listener, "/several")
        challenges = [value for name, value in reply.headers if name == "www-authenticate"]
        assert (reply.status, challenges) == (401, ['Bearer realm="sidecar"', 'ApiKey realm="sidecar"'])


def test_a_key_that_is_not_asked_for_stays_here(placed: Gateway, issuer: DemoIssuer) -> None:
    """In either spelling of its header, on rules for tokens and for nobody."""
    for listener in LISTENERS[1:]:  # the first refuses underscores
        for name in ("x-api-key", "X_API_KEY", "x-api_key"):
            key = [(name, "acme_secret")]
            for reply in (
                placed.get(listener, "/placed/x", issuer.token(), key),
                placed.get(listener, "/unplaced", headers=key),
                placed.get(listener, "/forwarded", issuer.token(), key),
            ):
                assert (reply.status, "acme_secret" in str(reply.json())) == (200, False)
