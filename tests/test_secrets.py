"""Nothing that a sidecar writes anywhere holds a secret that it was told: not whole, not in part, in no spelling."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.secret import Secret
from sidecar.demo.processes import wait_until
from sidecar.envoy.pb.ext_authz_pb2 import CheckRequest
from tests.support.confiding import Confidant
from tests.support.deciding import check_request, token
from tests.support.hostile_table import TABLE
from tests.support.secrecy import leaks, secrets_of_token, spellings, suspicious
from tests.support.tokens import AUDIENCE, ISSUER, jwks, make_key
from tests.support.valkey import ValkeyProcess, running

KEY = make_key("ES256")

REDIS_PASSWORD = "redis-Vei7phoo4aiGh2Ohbah9ool3"
BASIC = "alice:basic-Quoh2aiY5see7Ooyoi8bohPh"
API_KEY = "acme_live_0123456789_guheiThieb5aeSh7ohthahbuThohnge4"
COOKIE = "cookie-ohQuoh6goo8ahSh7aighoa9ue"
QUERY = "query-eiPh6ahGh1eiyae6oof9UgooSh"
USER_INFORMATION = "login:userinfo-Aiw4Jeengoo6ahf0qua"
INLINE_PASSWORD = "inline-iePhoh9AephahRi5Aizoon1U"

SAMPLED = 6
"""Every so many cases of the hostile table are sent."""


def policy(directory: Path, valkey: ValkeyProcess) -> dict[str, Any]:
    (directory / "redis-password").write_text(REDIS_PASSWORD + "\n")
    (directory / "keys.json").write_bytes(jwks(KEY))
    authenticated = {"authenticate": {"issuers": ["main"]}}
    return {
        "redis": {"url": valkey.url, "timeout": "4s", "password_file": "redis-password"},
        "issuers": {
            "main": {
                "issuer": ISSUER,
                "audiences": [AUDIENCE],
                "algorithms": ["ES256"],
                "keys": {"jwks_file": "keys.json"},
            }
        },
        "limits": {"each": {"rate": "3/day", "key": {"claim": "sub"}}},
        "upstream": {"headers": {"x-user-id": {"claim": "sub"}}},
        "audit": {"claims": ["client_id"]},
        "rules": [
            {"name": "orders", "match": {"path": {"prefix": "/orders"}}, **authenticated, "limits": ["each"]},
            {"name": "public", "match": {"path": {"prefix": "/public"}}, "anonymous": True},
        ],
    }


@pytest.fixture(scope="module")
def confidant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Confidant]:
    """Everything that can be confided to it was, and much went wrong with it."""
    directory = tmp_path_factory.mktemp("confided")
    with running(ValkeyProcess(directory / "valkey")) as valkey:
        valkey.ask("CONFIG", "SET", "requirepass", REDIS_PASSWORD)
        with Confidant(directory, policy(directory, valkey)) as it:
            it.secrets |= {
                "the Redis password": REDIS_PASSWORD,
                "basic credentials": BASIC,
                "basic credentials, encoded": base64.b64encode(BASIC.encode()).decode(),
                "an API key that nobody made": API_KEY,
                "a cookie": COOKIE,
                "a query parameter": QUERY,
                "user information": USER_INFORMATION,
            }
            show_tokens(it)
            show_elsewhere(it)
            misconfigure(it)
            yield it


def show_tokens(it: Confidant) -> None:
    """Good ones, cold, warm, and too often; hostile ones; one under a policy's other names."""
    good = token(KEY)
    it.secrets |= secrets_of_token(good, "a good token")
    wait_until(lambda: it.ask(check_request("/orders/1", good)).status.code == 0, "Redis is connected")
    for _ in range(5):
        it.ask(check_request("/orders/1", good))
    assert it.ask(check_request("/orders/1", good)).denied_response.status.code == 429
    expired = token(KEY, exp=1)
    forged = token(make_key("ES256", number=5))
    it.secrets |= secrets_of_token(expired, "an expired token") | secrets_of_token(forged, "a forged token")
    for text in (expired, forged):
        assert it.ask(check_request("/orders/1", text)).denied_response.status.code == 401
    for number, hostile in enumerate(TABLE[::SAMPLED]):
        message = CheckRequest.FromString(check_request("/orders/1"))
        for value in hostile.authorization:
            raw = value.encode("utf-8", "surrogatepass")
            message.attributes.request.http.header_map.headers.add(key="authorization", raw_value=raw)
        it.ask(message.SerializeToString())
        if len(hostile.authorization[:1]) and 100 < len(hostile.authorization[0]) < 10_000:
            it.secrets[f"hostile token {number}"] = hostile.authorization[0][-64:]


def show_elsewhere(it: Confidant) -> None:
    """Credentials where people put them, whether or not anybody looks for them there."""
    good = token(KEY, sub="bob")
    it.secrets |= secrets_of_token(good, "a token in the wrong place")
    for path in ("/public", "/orders/1", "/nowhere"):
        it.ask(check_request(f"{path}?access_token={good}&key={QUERY}"))
        it.ask(check_request(f"{path}/{good}"))
        it.ask(check_request(path, host=f"{USER_INFORMATION}@api.example.com"))
        it.ask(
            check_request(
                path,
                headers=[
                    ("authorization", f"Basic {base64.b64encode(BASIC.encode()).decode()}"),
                    ("x-api-key", API_KEY),
                    ("cookie", f"session={COOKIE}; token={good}"),
                    ("x-request-id", good),
                    ("dpop", good),
                ],
            )
        )
    it.ask(b"\xff" + good.encode())
    headers = ("--header", f"authorization:Bearer {good}", "--header", f"x-api-key:{API_KEY}")
    for path in ("/orders/1", f"/orders/{good}?access_token={good}", "/public"):
        for form in ("text", "json"):
            it.run("explain", "policy.yaml", "--path", path, *headers, "--output", form)


def misconfigure(it: Confidant) -> None:
    """A secret in the policy itself, where none belongs: refused, and not repeated."""
    it.secrets["an inline password"] = INLINE_PASSWORD
    document = json.loads(it.policy_file.read_text())
    wrong: list[dict[str, Any]] = [
        {"redis": document["redis"] | {"password": INLINE_PASSWORD}},
        {"redis": document["redis"] | {"url": f"redis://user:{INLINE_PASSWORD}@127.0.0.1:1/0"}},
    ]
    good = it.policy_file.read_text()
    for change in wrong:
        it.reload(json.dumps(document | change))
        it.run("check", "policy.yaml")
    it.policy_file.write_text(good)


def test_nothing_that_is_written_holds_a_secret(confidant: Confidant) -> None:
    """Log, audit, metrics, admin answers, CheckResponses, other commands: no secret, no part of one, in no spelling."""
    written = confidant.written
    assert all(written[where] for where in ("stderr", "audit.jsonl", "answers", "admin /metrics", "admin /policy"))
    assert leaks(written, confidant.secrets) == []
    assert suspicious(written) == []


def test_it_was_a_run_worth_looking_at(confidant: Confidant) -> None:
    """Allowed, denied, limited and refused requests were written down, and a refused policy."""
    audit = confidant.written["audit.jsonl"].decode()
    assert len(audit.splitlines()) > 50
    for word in ("token_expired", "token_signature_invalid", "limit_exceeded", "credential_missing", "path"):
        assert word in audit
    assert b"policy_refused" in confidant.log()


@pytest.mark.parametrize("spelling", ["raw", "hex", "base64", "shifted", "url", "json", "half"])
def test_the_search_finds_what_it_is_for(spelling: str) -> None:
    """Each spelling of a secret in the middle of other text is found: a search that finds nothing proves nothing."""
    secret = 'pa+ss"wörd/Aeb8ohng4aiGhoh3Eigh6'
    text = {
        "raw": secret.encode(),
        "hex": secret.encode().hex().encode(),
        "base64": base64.b64encode(secret.encode()),
        "shifted": base64.urlsafe_b64encode(b"user:" + secret.encode() + b"!"),
        "url": b"pa%2Bss%22w%C3%B6rd%2FAeb8ohng4aiGhoh3Eigh6",
        "json": json.dumps(secret).encode(),
        "half": secret[5:30].encode(),
    }[spelling]
    assert leaks({"here": b"x=" + text + b";"}, {"it": secret})
    assert leaks({"here": b"nothing"}, {"it": secret}) == []


def test_pem_files_are_found_by_their_body() -> None:
    """Without the lines around it, as one line, and as the bytes it stands for."""
    body = base64.b64encode(bytes(range(100))).decode()
    pem = f"-----BEGIN PRIVATE KEY-----\n{body[:64]}\n{body[64:]}\n-----END PRIVATE KEY-----\n"
    for text in (body, pem.replace("\n", "\\n"), bytes(range(100)).hex()):
        assert leaks({"here": text.encode()}, {"it": pem})
    assert suspicious({"here": pem.encode()}) == ["here"]


def test_secrets_print_as_stars() -> None:
    """However they are shown."""
    secret = Secret(REDIS_PASSWORD)
    shown = f"{secret} {secret!r} {secret!s} {secret:>10} {[secret]} {{secret}}"
    assert not any(text.decode() in shown for text in spellings(REDIS_PASSWORD).values())
