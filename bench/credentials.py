"""What each kind of credential costs a whole decision, in one process without a transport; and mixed traffic.

    python -m bench.credentials

A Check in bytes in, a CheckResponse in bytes out, CPU time of this process: scope rule, an identity header, one exact
limit that is counted in process. What is compared is measured in turn. The baseline of each row is the warm bearer
token's decision of the same round.

Budget: a DPoP-bound token, cold, and a proof that is verified anew: at most 2.2 times a cold ES256 token. Redis, which
says whether a proof was used before, answers at once here.

Then the same through HTTP/2 with a limit in Redis and audit, as `bench.decision` has it.
Budgets there: a warm API key, and a malformed token that is refused, each cost no more than a warm token.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import process_time_ns
from typing import TYPE_CHECKING, Any

from bench.measure import FULL, Budget, Scale, Subject, alone, head, in_turn, line
from bench.setting import CHECK, HEADERS, Setting
from sidecar.check import CheckService
from sidecar.core.api_key_format import family_of, key_digest, write_key
from sidecar.core.api_key_records import KeyRecord, parse_peppers
from sidecar.core.dpop import NeedFirstUse
from sidecar.core.introspection import NeedIntrospection, read_answer, token_key
from sidecar.core.token_cache import TokenCache
from sidecar.edges.introspection import IntrospectionEngine
from sidecar.edges.jwks import JwksEngine
from sidecar.edges.local_store import LocalStore
from sidecar.envoy.pb.ext_authz_pb2 import CheckRequest, CheckResponse
from sidecar.policy.api_key_file import write_records
from sidecar.policy.compile import load
from tests.support.proofs import jkt, proof
from tests.support.tokens import SigningKey, jwks, make_key

if TYPE_CHECKING:
    from sidecar.core.policy import Policy
    from sidecar.transport.service import Status

AUDIENCE = "orders-api"
ORIGIN = "https://api.example.com"
ISSUERS = {"main": "ES256", "second": "EdDSA", "third": "RS256"}
"""By the policy's name, with the algorithm in which it signs."""

OPAQUE = "2YotnFZFEjr1zCsicMWpAA-0123456789"
API_KEY = write_key(family_of("acme", "live"), "0123456789ab", "s3cretS3cretS3cretS3cretS3c")
KEYRINGS = {"partners": {"prefix": "acme", "environment": "live", "pepper_file": "pepper", "file": "keys.yaml"}}
API_KEYS_ONLY = {"any_of": [{"api_key": {"keyrings": ["partners"]}}]}

COLD_EACH = 20
"""One in so many requests of the mixed traffic shows a token for the first time: 95 % are warm."""
HOT_TOKENS = 5_000
"""Callers who come again; less than the cache holds, as it is for a working set that fits."""
MIXED_TOKENS = 100_000
MIXED_REQUESTS_EACH = 4
"""So many requests for each of these tokens."""
THIRD_EACH = 10
"""One in so many of the mixed tokens is an RS256 one: making them takes long."""


class Answer:
    """A call that keeps its answer."""

    deadline = math.inf
    cancelled = False
    metadata: Mapping[str, str] = {}
    answer = b""

    def respond(self, message: bytes) -> None:
        self.answer = message

    def fail(self, status: Status, message: str) -> None:
        raise AssertionError(f"{status}: {message}")


def issuer_url(name: str) -> str:
    return f"https://{name}.example"


def token(name: str, key: SigningKey, subject: str = "alice", **claims: object) -> str:
    """A usual token of an issuer: about 600 bytes with RS256."""
    now_s = int(time.time())
    held = {
        "iss": issuer_url(name),
        "aud": AUDIENCE,
        "sub": subject,
        "exp": now_s + 36_000,
        "iat": now_s - 10,
        "azp": "web-application",
        "scope": "openid profile orders:read",
    }
    return key.token(held | claims)


def check(path: str, headers: Mapping[str, str]) -> bytes:
    """A CheckRequest of a dozen headers."""
    request = CheckRequest()
    request.attributes.source.address.socket_address.address = "192.0.2.17"
    http = request.attributes.request.http
    http.id, http.method, http.host, http.path, http.scheme = "1154", "GET", "api.example.com", path, "https"
    http.headers.update(HEADERS | {":authority": "api.example.com", ":method": "GET", ":path": path} | headers)
    return request.SerializeToString()


def bearer(path: str, text: str) -> bytes:
    return check(path, {"authorization": f"Bearer {text}"})


def _write_key(directory: Path) -> None:
    """A file with the API key, and its pepper."""
    pepper = f"1: {base64.b64encode(bytes(range(32))).decode()}\n"
    (directory / "pepper").write_text(pepper)
    hashed = parse_peppers(pepper.encode()).hash(key_digest(API_KEY))
    now = datetime.now(UTC)
    record = KeyRecord(id="0123456789ab", owner="alice", scopes=("orders:read",), hash=hashed, created_at=now)
    (directory / "keys.yaml").write_bytes(write_records([record]))


def written_policy(directory: Path, keys: Mapping[str, SigningKey]) -> Path:
    """A rule for each kind of credential, alike in all else."""
    for name, key in keys.items():
        (directory / f"{name}.json").write_bytes(jwks(key))
    _write_key(directory)
    (directory / "client-secret").write_text("secret")
    ways: dict[str, Any] = {
        "token": {"issuers": list(keys)},
        "api-key": API_KEYS_ONLY,
        "opaque": {"any_of": [{"opaque_token": {"introspection": "legacy"}}]},
        "either": {
            "any_of": [
                {"token": {"issuers": list(keys)}},
                {"api_key": {"keyrings": ["partners"]}},
                {"opaque_token": {"introspection": "legacy"}},
            ]
        },
    }
    policy = {
        "redis": {"url": "redis://127.0.0.1:1/0"},
        "issuers": {
            name: {
                "issuer": issuer_url(name),
                "audiences": [AUDIENCE],
                "algorithms": [ISSUERS[name]],
                "keys": {"jwks_file": f"{name}.json"},
            }
            for name in keys
        },
        "api_keys": KEYRINGS,
        "introspection": {
            "legacy": {
                "url": "https://legacy.example/introspect",
                "client": {"basic": {"id": "sidecar", "secret_file": "client-secret"}},
                "audiences": [AUDIENCE],
                "cache": "1h",
            }
        },
        "dpop": {"origin": ORIGIN, "max_age": "600s", "on_redis_failure": "local"},
        "limits": {"per-user": {"rate": "4000000000/hour", "key": {"claim": "sub"}}},
        "upstream": {"headers": {"x-user-id": {"claim": "sub"}}},
        "rules": [
            {
                "name": name,
                "match": {"path": {"prefix": f"/{name}"}},
                "authenticate": way,
                "authorize": {"scope": "orders:read"},
                "limits": [],
            }
            for name, way in ways.items()
        ],
    }
    path = directory / "policy.yaml"
    path.write_text(json.dumps(policy))
    return path


class Deciding:
    """A Check service without a transport."""

    def __init__(self, policy: Policy, jwks_engine: JwksEngine, cache: TokenCache) -> None:
        self.cache = cache
        self.introspection = IntrospectionEngine(policy.introspection.values())
        self._service = CheckService(
            policy=lambda: policy,
            cache=cache,
            jwks=jwks_engine,
            store=LocalStore(),
            local=LocalStore(),
            on_events=lambda _events: None,
            on_bug=_raise,
            engines={NeedIntrospection: self.introspection.ask, NeedFirstUse: _first_use},
        )

    def decide(self, message: bytes) -> bytes:
        """One Check that needs nobody."""
        call = Answer()
        self._service.handle(message, call)
        return call.answer


def _first_use(_need: NeedFirstUse, _deadline: float, done: Callable[[bool], None]) -> None:
    """Redis says so, at no cost here."""
    done(True)


def _raise(bug: BaseException, _method: str) -> None:
    raise bug


@asynccontextmanager
async def deciding(cache: TokenCache | None = None) -> AsyncIterator[tuple[Deciding, dict[str, SigningKey]]]:
    """A service that has its keys, and knows the opaque token."""
    keys = {name: make_key(alg, name) for name, alg in ISSUERS.items()}
    with tempfile.TemporaryDirectory(prefix="sidecar-bench-") as directory:
        policy = load(written_policy(Path(directory), keys), 1).policy
        engine = JwksEngine(policy.issuers.values())
        engine.start()
        try:
            async with asyncio.timeout(10):
                while not engine.ready:  # noqa: ASYNC110 - it sets no event
                    await asyncio.sleep(0.01)
            it = Deciding(policy, engine, cache if cache is not None else TokenCache())
            legacy = policy.introspection["legacy"]
            answer = {"active": True, "sub": "alice", "aud": AUDIENCE, "exp": int(time.time()) + 3600}
            body = json.dumps(answer | {"client_id": "web-application", "scope": "openid orders:read"}).encode()
            it.introspection.cache.put(token_key(legacy, OPAQUE), read_answer(legacy, body, time.time_ns() // 1000))
            yield it, keys
        finally:
            await engine.stop()


def in_turns(actions: Mapping[str, Callable[[], object]], seconds: float, rounds: int) -> dict[str, list[float]]:
    """CPU microseconds for one call of each, for each round."""
    costs: dict[str, list[float]] = {name: [] for name in actions}
    calls = dict.fromkeys(actions, 1)
    for name, action in actions.items():
        while _cpu_us(action, calls[name]) * calls[name] < seconds / rounds * 1e6:
            calls[name] *= 2
    for _ in range(rounds):
        for name, action in actions.items():
            costs[name].append(_cpu_us(action, calls[name]))
    return costs


def _cpu_us(action: Callable[[], object], calls: int) -> float:
    started = process_time_ns()
    for _ in range(calls):
        action()
    return (process_time_ns() - started) / calls / 1000


def ratio(costs: Mapping[str, list[float]], name: str, baseline: str) -> float:
    """The median of the rounds' ratios."""
    return median(mine / other for mine, other in zip(costs[name], costs[baseline], strict=True))


WARM, COLD = "warm token (RS256)", "cold token, ES256"
BOUND = "cold token, ES256, with a proof (DPoP)"


def kinds(it: Deciding, keys: Mapping[str, SigningKey], scale: Scale) -> list[Budget]:
    """Every kind of credential."""
    usual, text = token("third", keys["third"]), token("main", keys["main"])
    shown = {
        WARM: bearer("/token", usual),
        "warm API key": check("/api-key", {"x-api-key": API_KEY}),
        "warm opaque token": bearer("/opaque", OPAQUE),
        "warm token, any_of three": bearer("/either", usual),
        "warm API key, any_of three": check("/either", {"x-api-key": API_KEY}),
        "warm opaque token, any_of three": bearer("/either", OPAQUE),
        "refused: no credential": check("/token", {}),
        "refused: a malformed token": bearer("/token", text[:-1] + "*"),
        "refused: a malformed API key": check("/api-key", {"x-api-key": API_KEY[:-1] + "x"}),
        "refused: a malformed opaque token": bearer("/opaque", OPAQUE + " "),
    }
    for name, message in shown.items():
        answer = CheckResponse.FromString(it.decide(message))
        if (answer.status.code == 0) is name.startswith("refused"):
            raise SystemExit(f"WRONG: {name}: {answer}")
    actions: dict[str, Callable[[], object]] = {
        name: (lambda message=message: it.decide(message)) for name, message in shown.items()
    }

    cold_message = bearer("/token", text)

    def cold() -> None:
        it.cache.drop(text)
        it.decide(cold_message)

    bound = token("main", keys["main"], cnf={"jkt": jkt()})
    shown_proof = proof(bound, now_s=int(time.time()), url=f"{ORIGIN}/token")
    bound_message = check("/token", {"authorization": f"DPoP {bound}", "dpop": shown_proof})

    def cold_bound() -> None:
        it.cache.drop(bound)
        it.decide(bound_message)

    answer = CheckResponse.FromString(it.decide(bound_message))
    if answer.status.code:
        raise SystemExit(f"WRONG: {BOUND}: {answer}")
    actions |= {COLD: cold, BOUND: cold_bound, "warm token, with a proof (DPoP)": lambda: it.decide(bound_message)}
    costs = in_turns(actions, scale.seconds / 2, max(3, scale.rounds * 3))
    print(f"{'a whole decision in one process':40}{'CPU us':>9}{'ratio':>9}")
    for name, each in costs.items():
        print(f"{name:40}{median(each):9.1f}{ratio(costs, name, WARM):8.2f}x")
    figure = ratio(costs, BOUND, COLD)
    return [Budget(what="CPU, cold token with a DPoP proof / cold token", figure=figure, unit="x", at_most=2.2)]


def traffic(keys: Mapping[str, SigningKey], count: int, seed: int = 1) -> tuple[list[bytes], list[bytes]]:
    """Requests of callers who come all the time, and of all the others."""
    names = list(keys)
    messages = []
    for number in range(count):
        name = names[2] if number % THIRD_EACH == 0 else names[number % 2]
        messages.append(bearer("/token", token(name, keys[name], f"user-{number}", jti=f"{number:016x}")))
    random.Random(seed).shuffle(messages)
    hot = max(1, count * HOT_TOKENS // MIXED_TOKENS)
    return messages[:hot], messages[hot:]


async def mixed(scale: Scale) -> None:
    """19 of 20 requests show one of the hot tokens, and the cache holds these; the others one of all that are left."""
    count = max(200, MIXED_TOKENS * scale.tokens // FULL.tokens)
    async with deciding() as (it, keys):
        hot, rest = traffic(keys, count)
        for message in hot:
            it.decide(message)
        chooser = random.Random(2)
        order = [chooser.choice(hot if number % COLD_EACH else rest) for number in range(MIXED_REQUESTS_EACH * count)]
        cache = it.cache
        hits, evictions = cache.hits, cache.evictions
        mean_us = _each_us(it, order)
        share = (cache.hits - hits) / len(order)
        warm_us = _cpu_us(lambda: it.decide(hot[0]), max(100, len(order) // 20))
    algorithms = ", ".join(ISSUERS.values())
    print(f"\nmixed: {len(order):,} requests, {count:,} tokens, {len(ISSUERS)} issuers ({algorithms})")
    print(f"{'warm alone':40}{warm_us:9.1f}{1:8.2f}x")
    print(f"{f'{share:.1%} warm':40}{mean_us:9.1f}{mean_us / warm_us:8.2f}x")
    pushed_out = cache.evictions - evictions
    print(f"the cache holds {len(cache):,} tokens, {cache.size_bytes / 2**20:.1f} MiB; {pushed_out:,} were pushed out")


def _each_us(it: Deciding, messages: Sequence[bytes]) -> float:
    started = process_time_ns()
    for message in messages:
        it.decide(message)
    return (process_time_ns() - started) / len(messages) / 1000


def served(scale: Scale) -> list[Budget]:
    """The hot decision of `bench.decision`, with other credentials: through HTTP/2, with a limit in Redis and audit."""
    with Setting() as setting:
        _write_key(setting.directory)
        policy = setting.policy()
        by_key = setting.rule("keys", "/keys/{id}") | {"authenticate": API_KEYS_ONLY}
        whole = policy | {"api_keys": KEYRINGS, "rules": [*policy["rules"], by_key]}
        text = setting.token()
        messages = {
            WARM: bearer("/orders/42", text),
            "warm API key": check("/keys/42", {"x-api-key": API_KEY}),
            "refused: a malformed token": bearer("/orders/42", text[:-1] + "*"),
        }
        with setting.sidecar(whole) as server:
            subjects = {
                name: Subject(
                    server=server, path=CHECK, messages=[it], accept=_refused if "refused" in name else _allowed
                )
                for name, it in messages.items()
            }
            rows = in_turn(subjects, scale)
        print("\n" + head("hot decision, http2, limit in Redis, audit"))
        for name, row in rows.items():
            print(line(name, row, rows[WARM]))
    key, refused = (rows[name].ratio(rows[WARM]) for name in list(messages)[1:])
    return [
        Budget(what="CPU, warm API key / warm token", figure=key, unit="x", at_most=1),
        Budget(what="CPU, malformed token refused / warm token", figure=refused, unit="x", at_most=1),
    ]


def _allowed(message: bytes) -> bool:
    return CheckResponse.FromString(message).HasField("ok_response")


def _refused(message: bytes) -> bool:
    return CheckResponse.FromString(message).denied_response.status.code == 401


async def _main(scale: Scale) -> list[Budget]:
    async with deciding() as (it, keys):
        budgets = kinds(it, keys, scale)
    await mixed(scale)
    return budgets


def main(scale: Scale) -> list[Budget]:
    """Print the tables."""
    return [*asyncio.run(_main(scale)), *served(scale)]


if __name__ == "__main__":
    alone(main)
