"""Nothing that a sidecar writes anywhere holds a secret that it was told: not whole, not in part, in no spelling."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.core.secret import Secret
from sidecar.demo.processes import wait_until
from sidecar.envoy.pb.ext_authz_pb2 import CheckRequest
from tests.support.confiding import Confidant
from tests.support.deciding import check_request, token
from tests.support.hostile_table import TABLE
from tests.support.introspection import Endpoint, answer
from tests.support.proofs import jkt, proof
from tests.support.secrecy import leaks, secrets_of_token, spellings, suspicious
from tests.support.tokens import AUDIENCE, ISSUER, jwks, make_key
from tests.support.valkey import ValkeyProcess, running

KEY = make_key("ES256")

REDIS_PASSWORD = "redis-Vei7phoo4aiGh2Ohbah9ool3"
BASIC = "alice:basic-Quoh2aiY5see7Ooyoi8bohPh"
CLIENT_SECRET = "client-eY8thaighiesh4ohmeiPh7oo"
NONCE_KEY = "nonces-ahk8ohTh4Ooqu2ahquah4Aiphoo0thei"
OPAQUE = "opaque-ooch2Ohphoo8aiRah9aish7e"
UNKNOWN = "unknown-ieR5ohchaiphei5aiNeer8oh"
API_KEY = "acme_live_0123456789_guheiThieb5aeSh7ohthahbuThohnge4"
COOKIE = "cookie-ohQuoh6goo8ahSh7aighoa9ue"
QUERY = "query-eiPh6ahGh1eiyae6oof9UgooSh"
USER_INFORMATION = "login:userinfo-Aiw4Jeengoo6ahf0qua"
INLINE_PASSWORD = "inline-iePhoh9AephahRi5Aizoon1U"

SAMPLED = 6
"""Every so many cases of the hostile table are sent."""


def private_key(path: Path) -> str:
    """An EC key in a PEM file; its text."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem)
    return pem.decode()


def confided_files(directory: Path) -> dict[str, str]:
    """Files that hold a secret each; the secrets."""
    pepper = base64.b64encode(secrets.token_bytes(32)).decode()
    (directory / "redis-password").write_text(REDIS_PASSWORD + "\n")
    (directory / "pepper").write_text(f"1: {pepper}\n")
    (directory / "client-secret").write_text(CLIENT_SECRET + "\n")
    (directory / "nonce-key").write_text(NONCE_KEY + "\n")
    (directory / "internal").mkdir()
    return {
        "the Redis password": REDIS_PASSWORD,
        "a pepper": pepper,
        "a pepper, in hexadecimal": base64.b64decode(pepper).hex(),
        "the client's secret": CLIENT_SECRET,
        "the client's secret, sent": base64.b64encode(f"sidecar:{CLIENT_SECRET}".encode()).decode(),
        "the nonces' key": NONCE_KEY,
        "the client's key": private_key(directory / "client.pem"),
        "the key of internal tokens": private_key(directory / "internal" / "2026-01-01.pem"),
    }


def policy(directory: Path, redis_url: str, endpoint_url: str) -> dict[str, Any]:
    """Every kind of credential, and a file for every kind of secret."""
    (directory / "keys.json").write_bytes(jwks(KEY))

    def rule(name: str, **authenticate: Any) -> dict[str, Any]:
        return {"name": name, "match": {"path": {"prefix": f"/{name}"}}, "authenticate": authenticate}

    endpoint = {"url": endpoint_url, "insecure_http": True, "audiences": [AUDIENCE], "require_expiry": False}
    basic = {"id": "sidecar", "secret_file": "client-secret"}
    return {
        "redis": {"url": redis_url, "timeout": "4s", "password_file": "redis-password"},
        "issuers": {
            "main": {
                "issuer": ISSUER,
                "audiences": [AUDIENCE],
                "algorithms": ["ES256"],
                "keys": {"jwks_file": "keys.json"},
            }
        },
        "dpop": {"origin": "https://api.example.com", "nonce": {"key_files": ["nonce-key"]}},
        "api_keys": {"partners": {"prefix": "acme", "environment": "live", "pepper_file": "pepper"}},
        "introspection": {
            "basic": endpoint | {"client": {"basic": basic}},
            "signed": endpoint | {"client": {"private_key_jwt": {"id": "sidecar", "key": "client.pem"}}},
            "lost": endpoint | {"url": "http://127.0.0.1:1/introspect", "client": {"basic": basic}},
        },
        "internal_tokens": {"issuer": "https://sidecar.internal", "audiences": ["upstreams"], "keys": "internal"},
        "revocation": {},
        "limits": {"each": {"rate": "3/day", "key": {"claim": "sub"}}},
        "upstream": {"headers": {"x-user-id": {"claim": "sub"}}},
        "audit": {"claims": ["client_id"]},
        "rules": [
            {**rule("orders", issuers=["main"]), "limits": ["each"]},
            {**rule("replaced", issuers=["main"]), "upstream": {"credential": "replace"}},
            rule("keys", any_of=[{"api_key": {"keyrings": ["partners"]}}]),
            rule("basic", any_of=[{"opaque_token": {"introspection": "basic"}}]),
            rule("signed", any_of=[{"opaque_token": {"introspection": "signed"}}]),
            rule("lost", any_of=[{"opaque_token": {"introspection": "lost"}}]),
            rule("cookie", any_of=[{"token": {"issuers": ["main"], "in": {"cookie": "session"}}}]),
            rule("query", any_of=[{"token": {"issuers": ["main"], "in": {"query": "access_token"}}}]),
            {"name": "public", "match": {"path": {"prefix": "/public"}}, "anonymous": True},
        ],
    }


@contextmanager
def endpoint_in_thread() -> Iterator[Endpoint]:
    """An introspection endpoint that knows one token."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    endpoint = Endpoint({OPAQUE: answer(exp=None, iat=None)})
    try:
        asyncio.run_coroutine_threadsafe(endpoint.__aenter__(), loop).result(10)
        yield endpoint
    finally:
        asyncio.run_coroutine_threadsafe(endpoint.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="module")
def confidant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Confidant]:
    """Everything that can be confided to it was, and much went wrong with it."""
    directory = tmp_path_factory.mktemp("confided")
    with running(ValkeyProcess(directory / "valkey")) as valkey, endpoint_in_thread() as endpoint:
        valkey.ask("CONFIG", "SET", "requirepass", REDIS_PASSWORD)
        confided = confided_files(directory)
        with Confidant(directory, policy(directory, valkey.url, endpoint.url)) as it:
            it.secrets |= confided | {
                "basic credentials": BASIC,
                "basic credentials, encoded": base64.b64encode(BASIC.encode()).decode(),
                "an API key that nobody made": API_KEY,
                "an opaque token": OPAQUE,
                "an opaque token that nobody knows": UNKNOWN,
                "a cookie": COOKIE,
                "a query parameter": QUERY,
                "user information": USER_INFORMATION,
            }
            show_tokens(it)
            show_bound_tokens(it)
            show_replaced(it)
            show_api_keys(it)
            show_opaque_tokens(it)
            show_elsewhere(it)
            revoke(it)
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


def show_bound_tokens(it: Confidant) -> None:
    """With a proof that lacks a nonce, with a good one, and with one that was used before."""
    text = token(KEY, sub="carol", cnf={"jkt": jkt()})
    it.secrets |= secrets_of_token(text, "a bound token")
    url, now_s, nonce = "https://api.example.com/orders/1", time.time(), {}
    for number in range(2):
        shown = proof(text, now_s=now_s, url=url, **nonce)
        it.secrets |= secrets_of_token(shown, f"proof {number}")
        headers = [("authorization", f"DPoP {text}"), ("dpop", shown)]
        found = it.ask(check_request("/orders/1", headers=headers))
        offered = {each.header.key: each.header.value for each in found.denied_response.headers}
        nonce = {"nonce": offered.get("dpop-nonce", "")}
    assert found.status.code == 0, found
    assert it.ask(check_request("/orders/1", headers=headers)).denied_response.status.code == 401
    assert it.ask(check_request("/orders/1", text)).denied_response.status.code == 401


def show_replaced(it: Confidant) -> None:
    """The upstream is told a token of the sidecar's own: it belongs there, and nowhere else."""
    good = token(KEY, sub="dave")
    it.secrets |= secrets_of_token(good, "a token that is replaced")
    found = it.ask(check_request("/replaced", good))
    headers = {each.header.key: each.header.value for each in found.ok_response.headers}
    it.answers.pop()
    it.secrets |= secrets_of_token(headers["authorization"].removeprefix("Bearer "), "an internal token")
    it.run("explain", "policy.yaml", "--path", "/replaced", "--header", f"authorization:Bearer {good}")


def show_api_keys(it: Confidant) -> None:
    """Made, used, used wrongly, rotated, used again, and revoked."""
    config = ("--config", "policy.yaml", "--keyring", "partners")
    key = it.confide("keys", "create", *config, "--owner", "erin", "--expires", "1d").strip()
    key_id = key.split("_")[2]
    wait_until(
        lambda: it.ask(check_request("/keys", headers=[("x-api-key", key)])).status.code == 0, "the key is known"
    )
    rotated = it.confide("keys", "rotate", *config, key_id).strip()
    it.secrets |= {"an API key": key.split("_")[-1], "an API key, rotated": rotated.split("_")[-1]}
    wrong = [key[:-1] + "0", key[:-7] + rotated[-7:], f"{key} ", rotated.replace(key_id, "000000000000")]
    for each in (rotated, key, *wrong):
        it.ask(check_request("/keys", headers=[("x-api-key", each)]))
        it.ask(check_request("/keys", headers=[("authorization", f"ApiKey {each}"), ("x-api-key", each)]))
    it.run("keys", "list", *config)
    it.run("keys", "show", *config, key_id)
    it.run("keys", "show", *config, key)
    it.run("keys", "revoke", *config, key_id)
    wait_until(
        lambda: it.ask(check_request("/keys", headers=[("x-api-key", rotated)])).status.code != 0, "it is revoked"
    )


def show_opaque_tokens(it: Confidant) -> None:
    """Known, unknown, malformed, and where the endpoint cannot be asked."""
    for path in ("/basic", "/signed", "/lost"):
        for text in (OPAQUE, UNKNOWN, f"{UNKNOWN}*"):
            found = it.ask(check_request(path, text))
            assert (found.status.code == 0) is (text == OPAQUE and path != "/lost"), (path, found)


def revoke(it: Confidant) -> None:
    """What commands of the operator's say."""
    config = ("--config", "policy.yaml")
    it.run("revoke", "token", *config, "--issuer", "main", "--jti", "7f1c-revoked", "--note", "leaked")
    it.run("revoke", "list", *config)
    revoked = token(KEY, sub="frank", jti="7f1c-revoked")
    it.secrets |= secrets_of_token(revoked, "a revoked token")
    shown = check_request("/cookie", headers=[("cookie", f"session={revoked}")])
    wait_until(lambda: it.ask(shown).status.code != 0, "the revocation is known")


def show_elsewhere(it: Confidant) -> None:
    """Credentials where people put them, whether or not anybody looks for them there."""
    good = token(KEY, sub="bob")
    it.secrets |= secrets_of_token(good, "a token in the wrong place")
    for path in ("/public", "/orders/1", "/nowhere"):
        it.ask(check_request(f"{path}?access_token={good}"))
        it.ask(check_request(f"{path}?page=2&access_token={QUERY}"))
        it.ask(check_request(f"{path}/{good}"))
        it.ask(check_request(path, host=f"{USER_INFORMATION}@api.example.com"))
        it.ask(
            check_request(
                path,
                headers=[
                    ("authorization", f"Basic {base64.b64encode(BASIC.encode()).decode()}"),
                    ("x-api-key", API_KEY),
                    ("cookie", f"theme=dark; session={COOKIE}"),
                    ("x-request-id", good),
                    ("dpop", good),
                ],
            )
        )
    for session in (good, f'"{good}"', f"{good}; session={good}"):
        it.ask(check_request("/cookie", headers=[("cookie", f"session={session}")]))
    for query in (good, f"{good}&access_token={good}", f"+{good}"):
        it.ask(check_request(f"/query?access_token={query}"))
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
