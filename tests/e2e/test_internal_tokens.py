"""Internal tokens through real Envoys: what the upstream is sent in place of the credential, and that it verifies."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.core import token as tokens
from sidecar.core.keys import parse_jwks
from sidecar.core.principal import Principal
from tests.support.gateway import NEWEST, OLDEST, Lab
from tests.support.internal_keys import INTERNAL_ISSUER, write_keys
from tests.support.tokens import issuer_policy

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.demo.issuer import DemoIssuer
    from sidecar.demo.stack import Sidecar

CARRIERS = {"authorization", "x-internal-token", "x_internal_token"}
LISTENERS = ("closed", "bare-open", "raw-open")


def signing(document: dict[str, Any], keys: Path, header: str) -> None:
    """A rule that replaces credentials, and one that proves nobody."""
    section = {"issuer": INTERNAL_ISSUER, "audiences": ["upstreams"], "keys": str(keys), "header": header}
    document["internal_tokens"] = section
    document["rules"] += [
        {
            "name": "replaced",
            "match": {"path": {"prefix": "/replaced"}},
            "authenticate": {"issuers": ["demo"]},
            "upstream": {"credential": "replace"},
        },
        {"name": "unproved", "match": {"path": {"prefix": "/unproved"}}, "anonymous": True},
    ]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(("header", "scheme"), [("authorization", "Bearer "), ("x-internal-token", "")])
def test_upstreams_verify_who_vouched(version: str, header: str, scheme: str, lab: Lab, issuer: DemoIssuer) -> None:
    """One token under the published keys, in its header alone; never the caller's own, never one that a client sent."""
    keys = write_keys(lab.directory / "internal-keys", "2026-01-01.pem")
    sidecar = lab.sidecar(lambda document: signing(document, keys, header))
    gateway = lab.gateway(sidecar, version)
    credential = issuer.token()
    for listener in LISTENERS:
        forged = [("x-internal-token", "forged")] if header != "authorization" else []
        if forged and listener != "closed":  # which lets Envoy itself refuse underscores
            forged.append(("x_internal_token", "forged"))
        reply = gateway.get(listener, "/replaced/x", credential, forged)
        assert reply.status == 200
        seen = {name: value for name, value in reply.json()["headers"].items() if name in CARRIERS}
        assert seen.keys() == {header}
        assert seen[header].startswith(scheme)
        assert proved(sidecar, seen[header].removeprefix(scheme)).subject == "alice"
        assert credential not in str(reply.json())
        unproved = gateway.get(listener, "/unproved/x", credential, forged)
        assert unproved.status == 200
        assert not CARRIERS & unproved.json()["headers"].keys()


def proved(sidecar: Sidecar, text: str) -> Principal:
    """Whom an upstream takes for the caller."""
    published = sidecar.admin("/.well-known/jwks.json")
    assert published is not None
    read = tokens.parse(text, 16 * 1024)
    assert isinstance(read, tokens.UnverifiedToken)
    policy = issuer_policy(issuer=INTERNAL_ISSUER, audiences=frozenset({"upstreams"}))
    found: Any = tokens.verify(read, policy, parse_jwks(published.body), time.time_ns() // 1000)
    assert isinstance(found, Principal), found
    return found
