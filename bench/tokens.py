"""What a token costs: cold against a bare signature verification of the same key in the same run, warm, and malformed.

    python -m bench.tokens

Budget: cold RS256 at most 1.5 times the bare verification plus 40 us; a malformed token less than a warm good one's
whole decision (about 24 us), so that garbage is never the cheaper attack.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from time import process_time_ns

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from bench.measure import Budget, Scale, alone
from sidecar.core import token
from sidecar.core.issuer import ALGORITHMS
from sidecar.core.keys import KeySet, parse_jwks
from sidecar.core.principal import Principal
from sidecar.core.token_cache import TokenCache
from tests.support.tokens import NOW_US, SigningKey, good_claims, issuer_policy, jwks, make_key

CLAIMS = good_claims(
    iss="https://issuer.example",
    sub="5f0c9a3e-0d5e-4a43-9a37-5ffb1f6f7f10",
    azp="web-application",
    sid="0b8f3b9c-6f0e-4b63-8a8e-0f5d8c9f2b11",
    scope="openid profile email orders:read orders:write",
    realm_access={"roles": ["default-roles", "offline_access", "orders-admin"]},
    email="alice@example.com",
)
POLICY = issuer_policy(algorithms=ALGORITHMS)

REFUSED_US_MAX = 24

EDWARDS = frozenset({"EdDSA", "Ed25519"})
HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def cost_us(action: Callable[[], object], seconds: float, rounds: int = 5) -> float:
    """The best of some rounds: CPU time of this process for one call."""
    calls = 1
    while True:
        started = process_time_ns()
        for _ in range(calls):
            action()
        if process_time_ns() - started > seconds / rounds * 1e9:
            break
        calls *= 2
    best = float("inf")
    for _ in range(rounds):
        started = process_time_ns()
        for _ in range(calls):
            action()
        best = min(best, (process_time_ns() - started) / calls / 1000)
    return best


def bare(key: SigningKey, text: str) -> Callable[[], object]:
    """What nobody can do without: the signature, already decoded and in the library's own form."""
    parsed = token.parse(text)
    assert isinstance(parsed, token.UnverifiedToken)
    public, signature, content = key.private.public_key(), parsed.signature, parsed.signing_input
    if key.alg in EDWARDS:
        return lambda: public.verify(signature, content)
    digest = HASHES[key.alg[2:5]]
    if key.alg.startswith("ES"):
        half = len(signature) // 2
        der = encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
        scheme = ec.ECDSA(digest)
        return lambda: public.verify(der, content, scheme)
    pss = padding.PSS(padding.MGF1(digest), salt_length=digest.digest_size)
    rsa_scheme = pss if key.alg.startswith("PS") else padding.PKCS1v15()
    return lambda: public.verify(signature, content, rsa_scheme, digest)


def judge(text: str, keys: KeySet) -> Principal | token.NeedKey | token.Rejected:
    parsed = token.parse(text)
    return parsed if isinstance(parsed, token.Rejected) else token.verify(parsed, POLICY, keys, NOW_US)


def believed(text: str, keys: KeySet) -> None:
    assert isinstance(judge(text, keys), Principal)


def refused(text: str, keys: KeySet) -> None:
    assert isinstance(judge(text, keys), token.Rejected)


def cold(seconds: float) -> list[Budget]:
    """Each algorithm against its bare verification."""
    print(f"{'':34}{'us':>8}{'bare us':>9}")
    budgets = []
    for alg in sorted(ALGORITHMS):
        key = make_key(alg)
        text, keys = key.token(CLAIMS), parse_jwks(jwks(key))
        bare_us, cold_us = cost_us(bare(key, text), seconds), cost_us(partial(believed, text, keys), seconds)
        print(f"cold {alg} ({len(text)} bytes)".ljust(34) + f"{cold_us:8.1f}{bare_us:9.1f}")
        if alg == "RS256":
            most = round(1.5 * bare_us + 40, 1)
            budgets.append(Budget(what="CPU, cold RS256 token", figure=cold_us, unit=" us", at_most=most))
    return budgets


def main(scale: Scale) -> list[Budget]:
    """Print the table."""
    seconds = scale.seconds / 16
    budgets = cold(seconds)

    key = make_key("RS256")
    text, keys, cache = key.token(CLAIMS), parse_jwks(jwks(key)), TokenCache()
    parsed = token.parse(text)
    assert isinstance(parsed, token.UnverifiedToken)
    principal = token.verify(parsed, POLICY, keys, NOW_US)
    assert isinstance(principal, Principal)
    cache.put(parsed, POLICY, keys, principal)

    def hit() -> None:
        entry = cache.get(text)
        assert entry is not None
        assert entry.holds(POLICY, keys)
        assert token.still_valid(entry.principal, POLICY, NOW_US) is None

    print(f"{'warm: look up, keys, dates':34}{cost_us(hit, seconds):8.2f}")
    print(f"{'warm: look up alone':34}{cost_us(lambda: cache.get(text), seconds):8.2f}")
    print(f"{'parse alone':34}{cost_us(lambda: token.parse(text), seconds):8.2f}")
    head, payload, signature = text.split(".")
    malformed = {
        "8 KiB of one letter": "A" * 8192,
        "megabytes": text * 2000,
        "two segments": f"{head}.{payload}",
        "a space in the signature": text[:-1] + " ",
        "unused bits of the signature": f"{head}.{payload}.{signature[:-1]}{chr(ord(signature[-1]) + 1)}",
        "header of 1,000 [": key.token(header=b"[" * 1000),
        "payload nested 1,000 deep": key.token(b'{"x":' + b"[" * 1000 + b"]" * 1000 + b"}"),
        "duplicate claim": key.token(json.dumps(CLAIMS).replace('"sub"', '"sub": "a", "sub"').encode()),
        "alg none": key.token(CLAIMS, {"alg": "none"}),
        "crit": key.token(CLAIMS, {"alg": "RS256", "crit": ["x"]}),
    }
    worst_us = 0.0
    for name, bad in malformed.items():
        refused_us = cost_us(partial(refused, bad, keys), seconds)
        worst_us = max(worst_us, refused_us)
        print(f"refused: {name}".ljust(36) + f"{refused_us:6.2f}")
    worst = Budget(what="CPU, the dearest malformed token", figure=worst_us, unit=" us", at_most=REFUSED_US_MAX)
    return [*budgets, worst]


if __name__ == "__main__":
    alone(main)
