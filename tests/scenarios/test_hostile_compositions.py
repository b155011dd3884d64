"""Hostile proofs, API keys, opaque tokens and places against a whole service: denied for their fault, nothing kept."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import pytest_asyncio

from sidecar.core.api_key_format import key_digest, write_key
from sidecar.core.api_key_records import KeyRecord, parse_peppers
from sidecar.core.decision import REASONS, DenyReason
from sidecar.core.dpop import NeedFirstUse
from sidecar.core.introspection import Answer, NeedIntrospection, Unanswered, read_answer
from sidecar.edges.replay_store import ReplayStore
from sidecar.envoy.pb.ext_authz_pb2 import CheckRequest
from sidecar.policy.api_key_file import write_records
from tests.support.deciding import KEY, Deciding, check_request, compiled, deciding, token
from tests.support.hostile_tokens import nested
from tests.support.introspection import answer
from tests.support.proofs import PROOF_KEY, jkt, proof, public_jwk
from tests.support.tokens import AUDIENCE, ISSUER, b64, make_key

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.core.policy import Policy

pytestmark = pytest.mark.asyncio(loop_scope="module")

R = DenyReason
ORIGIN = "https://api.example.com"
SECRET = "s3cretS3cretS3cretS3cretS3c"
API_KEY = write_key("acme_live", "0123456789ab", SECRET)
EXPIRED_KEY = write_key("acme_live", "expired00000", SECRET)
REVOKED_KEY = write_key("acme_live", "revoked00000", SECRET)
ELSEWHERE_KEY = write_key("acme_live", "elsewhere000", SECRET)
UNKNOWN_KEY = write_key("acme_live", "unknown00000", SECRET)
OPAQUE = "opaque-ooch2Ohphoo8aiRah9aish7e"
INACTIVE = "inactive-oSh0ohth7ahW6quu8ooyee"
OTHER_KEY = make_key("ES256", None, 8)
BOUND = token(KEY, cnf={"jkt": jkt()})
GOOD = token(KEY)
PEPPER = f"1: {base64.b64encode(bytes(range(32))).decode()}\n"

Headers = list[tuple[str, str]]


def written_policy() -> dict[str, Any]:
    def rule(name: str, **authenticate: Any) -> dict[str, Any]:
        return {"name": name, "match": {"path": {"prefix": f"/{name}"}}, "authenticate": authenticate}

    by_token, by_key = {"token": {"issuers": ["main"]}}, {"api_key": {"keyrings": ["partners"]}}
    by_endpoint = {"opaque_token": {"introspection": "legacy"}}
    return {
        "redis": {"url": "redis://127.0.0.1:1/0"},
        "issuers": {
            "main": {
                "issuer": ISSUER,
                "audiences": [AUDIENCE],
                "algorithms": ["ES256"],
                "keys": {"jwks_file": "keys.json"},
            }
        },
        "dpop": {"origin": ORIGIN, "on_redis_failure": "local"},
        "api_keys": {
            "partners": {"prefix": "acme", "environment": "live", "pepper_file": "pepper", "file": "keys.yaml"}
        },
        "introspection": {
            "legacy": {
                "url": "https://legacy.example/introspect",
                "client": {"basic": {"id": "sidecar", "secret_file": "client-secret"}},
                "audiences": [AUDIENCE],
            }
        },
        "rules": [
            rule("token", issuers=["main"]),
            rule("keys", any_of=[by_key]),
            rule("opaque", any_of=[by_endpoint]),
            rule("either", any_of=[by_token, by_key, by_endpoint]),
            rule("both", all_of=[by_token, by_key]),
            rule("cookie", any_of=[{"token": {"issuers": ["main"], "in": {"cookie": "session"}}}]),
            rule("query", any_of=[{"token": {"issuers": ["main"], "in": {"query": "access_token"}}}]),
            rule("fresh", any_of=[by_token], step_up={"acr": ["mfa"], "max_age": "5m"}),
        ],
    }


def records() -> bytes:
    """Keys that differ in what is wrong with them."""
    peppers, now = parse_peppers(PEPPER.encode()), datetime.now(UTC)

    def record(key: str, **changes: Any) -> KeyRecord:
        hashed = peppers.hash(key_digest(key))
        return KeyRecord(id=key.split("_")[2], owner="alice", hash=hashed, created_at=now, **changes)

    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    return write_records(
        [
            record(API_KEY),
            record(EXPIRED_KEY, expires_at=long_ago),
            record(REVOKED_KEY, status="revoked", revoked_at=long_ago),
            record(ELSEWHERE_KEY, networks=("203.0.113.0/24",)),
        ]
    )


class Everything(NamedTuple):
    """A service that knows a good credential of each kind."""

    it: Deciding
    policy: Policy
    replays: ReplayStore
    asked: list[str]

    @property
    def left(self) -> dict[str, object]:
        """What is kept of credentials."""
        known = self.policy.keyrings["partners"].known
        return {
            "tokens": (len(self.it.cache), self.it.cache.size_bytes),
            "keys": (len(known), known.unknown, len(known.proofs)),
            "proofs": self.replays.noted_locally,
            "asked": list(self.asked),
        }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def every(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Everything]:
    directory: Path = tmp_path_factory.mktemp("compositions")
    (directory / "pepper").write_text(PEPPER)
    (directory / "client-secret").write_text("secret")
    (directory / "keys.yaml").write_bytes(records())
    policy = compiled(directory, json.dumps(written_policy()))
    asked: list[str] = []

    def ask(need: NeedIntrospection, _deadline: float, done: Callable[[Answer | Unanswered], None]) -> None:
        asked.append(need.token)
        members = answer(exp=int(time.time()) + 600, iat=None) if need.token == OPAQUE else {"active": False}
        done(read_answer(need.policy, json.dumps(members).encode(), time.time_ns() // 1000))

    async with deciding(policy) as it:
        replays = ReplayStore(None, "sidecar", 1.0)
        engines = {NeedIntrospection: ask, NeedFirstUse: replays.ensure}
        service = Everything(Deciding(policy, it.store, it.jwks, engines=engines), policy, replays, asked)
        for path, headers in GOOD_ONES.values():
            response = await service.it.ask(check_request(path, headers=headers()))
            assert response.status.code == 0, (path, response)
        yield service


def bearer(text: str, scheme: str = "Bearer") -> Headers:
    return [("authorization", f"{scheme} {text}")]


def api_key(text: str) -> Headers:
    return [("x-api-key", text)]


def now_s() -> int:
    return int(time.time())


def proved(text: str = BOUND, path: str = "/token", **changes: Any) -> Headers:
    """The bound token with a proof, good but for the changes."""
    settings = {"now_s": now_s(), "url": f"{ORIGIN}{path}"} | changes
    return [*bearer(text, "DPoP"), ("dpop", proof(BOUND, **settings))]


GOOD_ONES: dict[str, tuple[str, Callable[[], Headers]]] = {
    "token": ("/token", lambda: bearer(GOOD)),
    "bound token": ("/token", proved),
    "API key": ("/keys", lambda: api_key(API_KEY)),
    "opaque token": ("/opaque", lambda: bearer(OPAQUE)),
    "both": ("/both", lambda: bearer(GOOD) + api_key(API_KEY)),
    "cookie": ("/cookie", lambda: [("cookie", f"a=b; session={GOOD}")]),
    "query": (f"/query?a=b&access_token={GOOD}", list),
}


def used(jti: str = "used") -> str:
    """A good proof, made now: it is believed for a minute only."""
    return proof(BOUND, now_s=now_s(), url=f"{ORIGIN}/token", jti=jti)


PROOFS: dict[str, tuple[Callable[[], Headers], DenyReason]] = {
    "9449 4.3.1: no proof": (lambda: bearer(BOUND, "DPoP"), R.DPOP_PROOF_MISSING),
    "9449 4.3.1: two proofs": (lambda: [*proved()[:1], ("dpop", f"{used()},{used()}")], R.DPOP_PROOF_INVALID),
    "9449 4.3.2: no token": (lambda: [*bearer(BOUND, "DPoP"), ("dpop", "x")], R.DPOP_PROOF_INVALID),
    "9449 4.3.3: no jti": (lambda: proved(jti=None), R.DPOP_PROOF_INVALID),
    "9449 4.3.3: jti too long": (lambda: proved(jti="j" * 257), R.DPOP_PROOF_INVALID),
    "9449 4.3.3: no htm": (lambda: proved(htm=None), R.DPOP_PROOF_INVALID),
    "9449 4.3.3: no htu": (lambda: proved(htu=None), R.DPOP_PROOF_INVALID),
    "9449 4.3.3: no iat": (lambda: proved(iat=None), R.DPOP_PROOF_INVALID),
    "9449 4.3.4: typ JWT": (lambda: proved(header={"typ": "JWT"}), R.DPOP_PROOF_INVALID),
    "9449 4.3.4: no typ": (lambda: proved(header={"typ": None}), R.DPOP_PROOF_INVALID),
    "9449 4.3.5: alg none": (lambda: proved(header={"alg": "none"}), R.DPOP_PROOF_INVALID),
    "9449 4.3.5: alg HS256": (lambda: proved(header={"alg": "HS256"}), R.DPOP_PROOF_INVALID),
    "9449 4.3.5: alg of another key": (lambda: proved(header={"alg": "EdDSA"}), R.DPOP_PROOF_INVALID),
    "9449 4.3.6: another's signature": (lambda: proved(key=OTHER_KEY, header={"jwk": public_jwk(PROOF_KEY)}),
        R.DPOP_PROOF_INVALID),
    "9449 4.3.7: a private key": (lambda: proved(header={"jwk": public_jwk(PROOF_KEY) | {"d": "AQAB"}}),
        R.DPOP_PROOF_INVALID),
    "9449 4.3.7: no key": (lambda: proved(header={"jwk": None}), R.DPOP_PROOF_INVALID),
    "9449 4.3.8: another method": (lambda: proved(htm="POST"), R.DPOP_PROOF_INVALID),
    "9449 4.3.8: the method in small letters": (lambda: proved(htm="get"), R.DPOP_PROOF_INVALID),
    "9449 4.3.9: another path": (lambda: proved(htu=f"{ORIGIN}/tokens"), R.DPOP_PROOF_INVALID),
    "9449 4.3.9: another host": (lambda: proved(htu="https://evil.example/token"), R.DPOP_PROOF_INVALID),
    "9449 4.3.9: another scheme": (lambda: proved(htu="http://api.example.com/token"), R.DPOP_PROOF_INVALID),
    "9449 4.3.9: another port": (lambda: proved(htu="https://api.example.com:8443/token"), R.DPOP_PROOF_INVALID),
    "9449 4.3.9: user information": (lambda: proved(htu="https://a@api.example.com/token"), R.DPOP_PROOF_INVALID),
    "9449 4.3.11: too old": (lambda: proved(now_s=now_s() - 120), R.DPOP_PROOF_INVALID),
    "9449 4.3.11: in the future": (lambda: proved(now_s=now_s() + 120), R.DPOP_PROOF_INVALID),
    "9449 4.3.11: iat text": (lambda: proved(iat=str(now_s())), R.DPOP_PROOF_INVALID),
    "9449 4.3.11: iat true": (lambda: proved(iat=True), R.DPOP_PROOF_INVALID),
    "9449 4.3.12: no ath": (lambda: proved(ath=None), R.DPOP_PROOF_INVALID),
    "9449 4.3.12: ath of another token": (lambda: proved(ath=b64(bytes(32))), R.DPOP_PROOF_INVALID),
    "9449 4.3.12: another key than the token's": (lambda: proved(key=OTHER_KEY), R.DPOP_KEY_MISMATCH),
    "9449 11.1: crit": (lambda: proved(header={"crit": ["x"]}), R.DPOP_PROOF_INVALID),
    "9449 11.1: jku": (lambda: proved(header={"jku": "https://evil.example"}), R.DPOP_PROOF_INVALID),
    "9449 7.1: a bound token as a bearer": (lambda: bearer(BOUND), R.TOKEN_SCHEME_MISMATCH),
    "9449 7.1: a bearer token as a bound one": (lambda: proved(GOOD), R.TOKEN_SCHEME_MISMATCH),
    "3.1.22: bound to a certificate": (lambda: bearer(token(KEY, cnf={"x5t#S256": b64(bytes(32))})),
        R.TOKEN_BINDING_UNSUPPORTED),
    "3.1.22: bound in an unknown way": (lambda: bearer(token(KEY, cnf={"new": 1})), R.TOKEN_BINDING_UNSUPPORTED),
    "3.1.22: bound in two ways": (lambda: bearer(token(KEY, cnf={"jkt": jkt(), "new": 1}), "DPoP"),
        R.TOKEN_BINDING_UNSUPPORTED),
    "3.1.5: a proof nested too deep": (lambda: proved(x=nested(40)), R.DPOP_PROOF_INVALID),
}  # fmt: skip


def spoiled(text: str, at: int) -> str:
    return text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]


KEYS: dict[str, tuple[Callable[[], Headers], DenyReason]] = {
    "no key": (list, R.CREDENTIAL_MISSING),
    "an empty key": (lambda: api_key(""), R.CREDENTIAL_MALFORMED),
    "two keys": (lambda: api_key(f"{API_KEY},{API_KEY}"), R.CREDENTIAL_REPEATED),
    "a key with a space": (lambda: api_key(f"{API_KEY} x"), R.CREDENTIAL_MALFORMED),
    "5.1: the checksum": (lambda: api_key(spoiled(API_KEY, len(API_KEY) - 1)), R.API_KEY_MALFORMED),
    "5.1: the secret, checksum as it was": (lambda: api_key(spoiled(API_KEY, 30)), R.API_KEY_MALFORMED),
    "5.1: the id, checksum as it was": (lambda: api_key(spoiled(API_KEY, 12)), R.API_KEY_MALFORMED),
    "5.1: without a checksum": (lambda: api_key(API_KEY[:-6]), R.API_KEY_MALFORMED),
    "5.1: in capitals": (lambda: api_key(API_KEY.upper()), R.API_KEY_MALFORMED),
    "5.1: one character more": (lambda: api_key(f"{API_KEY}0"), R.API_KEY_MALFORMED),
    "5.1: another family": (lambda: api_key(write_key("other_live", "0123456789ab", SECRET)), R.API_KEY_INVALID),
    "5.1: another environment": (lambda: api_key(write_key("acme_test", "0123456789ab", SECRET)), R.API_KEY_INVALID),
    "5.1: unknown id": (lambda: api_key(UNKNOWN_KEY), R.API_KEY_INVALID),
    "5.1: wrong secret (Tyk #2432)": (lambda: api_key(write_key("acme_live", "0123456789ab", SECRET[::-1])),
        R.API_KEY_INVALID),
    "5.1: expired, and the secret is wrong": (lambda: api_key(write_key("acme_live", "expired00000", SECRET[::-1])),
        R.API_KEY_INVALID),
    "5.1: expired": (lambda: api_key(EXPIRED_KEY), R.API_KEY_EXPIRED),
    "5.1: revoked": (lambda: api_key(REVOKED_KEY), R.API_KEY_REVOKED),
    "5.1: another network": (lambda: api_key(ELSEWHERE_KEY), R.API_KEY_NOT_ALLOWED_HERE),
    "a token in its place": (lambda: api_key(GOOD), R.API_KEY_MALFORMED),
    "megabytes": (lambda: api_key("x" * 1_000_000), R.API_KEY_MALFORMED),
}  # fmt: skip

OTHERS: dict[str, tuple[str, Callable[[], Headers], DenyReason]] = {
    "opaque: a character that no token has": ("/opaque", lambda: bearer(f"{OPAQUE}*"), R.TOKEN_MALFORMED),
    "opaque: too long": ("/opaque", lambda: bearer("x" * 5000), R.TOKEN_MALFORMED),
    "opaque: a line feed": ("/opaque", lambda: bearer(f"{OPAQUE}\n"), R.TOKEN_MALFORMED),
    "opaque: a space": ("/opaque", lambda: bearer(f"{OPAQUE} x"), R.TOKEN_MALFORMED),
    "either: two kinds": ("/either", lambda: bearer(GOOD) + api_key(API_KEY), R.CREDENTIAL_REPEATED),
    "either: a good one and a bad one": ("/either", lambda: bearer("x.y.z") + api_key(API_KEY), R.CREDENTIAL_REPEATED),
    "either: none": ("/either", list, R.CREDENTIAL_MISSING),
    "both: the key alone": ("/both", lambda: api_key(API_KEY), R.CREDENTIAL_MISSING),
    "both: the token alone": ("/both", lambda: bearer(GOOD), R.CREDENTIAL_MISSING),
    "both: a bad key": ("/both", lambda: bearer(GOOD) + api_key(UNKNOWN_KEY), R.API_KEY_INVALID),
    "cookie: twice": ("/cookie", lambda: [("cookie", f"session={GOOD}; session={GOOD}")], R.CREDENTIAL_REPEATED),
    "cookie: quoted": ("/cookie", lambda: [("cookie", f'session="{GOOD}"')], R.CREDENTIAL_MALFORMED),
    "cookie: in a header": ("/cookie", lambda: bearer(GOOD), R.CREDENTIAL_MISSING),
    "cookie: another case": ("/cookie", lambda: [("cookie", f"Session={GOOD}")], R.CREDENTIAL_MISSING),
    "query: twice": (f"/query?access_token={GOOD}&access_token=x", list, R.CREDENTIAL_REPEATED),
    "query: twice, once encoded": (f"/query?access_token={GOOD}&access%5ftoken=x", list, R.CREDENTIAL_REPEATED),
    "query: after a semicolon": (f"/query?a=b;access_token={GOOD}", list, R.CREDENTIAL_MALFORMED),
    "query: in a header (RFC 6750 section 2)": ("/query", lambda: bearer(GOOD), R.CREDENTIAL_MISSING),
    "step-up: no acr": ("/fresh", lambda: bearer(GOOD), R.STEP_UP_REQUIRED),
    "step-up: another acr": ("/fresh", lambda: bearer(_stepped("pwd", now_s())), R.STEP_UP_REQUIRED),
    "step-up: long ago": ("/fresh", lambda: bearer(_stepped("mfa", now_s() - 301)), R.STEP_UP_REQUIRED),
    "step-up: auth_time true": ("/fresh", lambda: bearer(_stepped("mfa", True)), R.STEP_UP_REQUIRED),
}


def _stepped(acr: str, auth_time: Any) -> str:
    return token(KEY, acr=acr, auth_time=auth_time)


LEAVES_TOKEN = ("3.1.22", "9449", "step-up")
"""A token that is good but for its proof, or what else the rule asks, was verified and is kept; its proof never is."""

CASES = {
    **{name: ("/token", *case) for name, case in PROOFS.items()},
    **{f"API key: {name}": ("/keys", *case) for name, case in KEYS.items()},
    **OTHERS,
}


@pytest.mark.parametrize(("path", "headers", "reason"), CASES.values(), ids=CASES.keys())
async def test_hostile_credentials_of_each_kind(
    every: Everything, request: pytest.FixtureRequest, path: str, headers: Callable[[], Headers], reason: DenyReason
) -> None:
    """Denied for the fault, with the reason's statuses; no proof, key or answer is kept, and no endpoint is asked."""
    before = every.left
    response = await every.it.ask(check_request(path, headers=headers()))
    assert response.dynamic_metadata["reason"] == reason.value, every.it.events[-1].decision.detail
    assert response.WhichOneof("http_response") == "denied_response"
    assert response.status.code == REASONS[reason].grpc_status
    assert response.denied_response.status.code == REASONS[reason].http_status
    after = every.left
    if request.node.callspec.id.startswith(LEAVES_TOKEN):
        before.pop("tokens"), after.pop("tokens")
    if reason in {R.API_KEY_EXPIRED, R.API_KEY_REVOKED, R.API_KEY_NOT_ALLOWED_HERE, R.API_KEY_INVALID}:
        before.pop("keys"), after.pop("keys")  # the record was looked up
    assert after == before
    assert every.it.bugs == []


async def test_a_proof_serves_once(every: Everything) -> None:
    """The same proof again is refused (RFC 9449 section 11.1)."""
    headers = [*bearer(BOUND, "DPoP"), ("dpop", used())]
    codes = [(await every.it.ask(check_request("/token", headers=headers))).status.code for _ in range(3)]
    assert codes[0] == 0
    assert 0 not in codes[1:]


async def test_an_inactive_token_is_asked_about_and_not_believed(every: Everything) -> None:
    """What the endpoint says decides."""
    response = await every.it.ask(check_request("/opaque", INACTIVE))
    assert response.dynamic_metadata["reason"] == R.TOKEN_INACTIVE.value
    assert every.asked[-1] == INACTIVE


async def test_unknown_and_wrong_keys_are_told_apart_by_nothing(every: Everything) -> None:
    """Byte by byte the same answer."""
    wrong = write_key("acme_live", "0123456789ab", SECRET[::-1])
    answers = [await every.it.ask(check_request("/keys", headers=api_key(key))) for key in (UNKNOWN_KEY, wrong)]
    assert answers[0].SerializeToString(deterministic=True) == answers[1].SerializeToString(deterministic=True)


FUZZED = 1500
NEVER = {R.INTERNAL, R.DEADLINE_EXCEEDED, R.OVERLOADED, R.SHUTTING_DOWN, R.NO_RULE}
NAMES = ("authorization", "dpop", "x-api-key", "cookie", "x-forwarded-client-cert", "client-cert", "content-type")
PIECES = (
    b"",
    b".",
    b",",
    b";",
    b"=",
    b" ",
    b'"',
    b"\\",
    b"%",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"Bearer ",
    b"eyJ",
    b"{}",
)


def mutated(chance: random.Random, raw: bytes) -> bytes:
    """With something put in, taken out, or doubled, at one to three places."""
    changed = bytearray(raw)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(changed) + 1)
        end = min(len(changed), at + chance.randint(0, 8))
        changed[at:end] = chance.choice([chance.choice(PIECES), chance.randbytes(2), bytes(changed[at:end]) * 2])
    return bytes(changed)


def raw_request(path: str, headers: dict[str, bytes]) -> bytes:
    """A CheckRequest whose headers are bytes."""
    request = CheckRequest.FromString(check_request(path))
    fields = request.attributes.request.http.header_map.headers
    fields.add(key=":path", raw_value=path.encode())
    for name, value in headers.items():
        fields.add(key=name, raw_value=value)
    return request.SerializeToString()


async def test_whatever_is_shown_is_decided(every: Everything) -> None:
    """Permitted: a denial for a reason of the credential's, or what an unchanged credential proves. No bug, ever."""
    chance = random.Random(9449)
    allowed = 0
    for _ in range(FUZZED):
        path, headers = chance.choice(list(GOOD_ONES.values()))
        shown = {name: value.encode() for name, value in headers()}
        name = chance.choice([*shown, *NAMES])
        shown[name] = mutated(chance, shown.get(name, b""))
        response = await every.it.ask(raw_request(path, shown))
        if response.status.code == 0:
            allowed += 1
            assert response.dynamic_metadata["subject"] == "alice"
        else:
            assert R(response.dynamic_metadata["reason"]) not in NEVER
    assert every.it.bugs == []
    assert 0 < allowed < FUZZED
