"""DPoP proofs (RFC 9449): that whoever shows a token holds the key that the token is bound to.

    request, token, key thumbprint -> prove -> None, a refusal, or `NeedFirstUse`

A proof is a JWT of the client's own, made for one request: it names the method and the URL, the token's digest and the
time, and carries the key that signed it. The cheap rules come first, and the key is compared with the one that the
token names before a signature is verified: only holders of a valid token can make us do that. That a proof was not
used before is asked of a store last of all, so that nobody fills it without the key.

The URL is the one that clients know (`origin` of the policy), or what the gateway reports of the request.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from sidecar.core import base64url
from sidecar.core.claims import Rejected
from sidecar.core.decision import DenyReason
from sidecar.core.dpop_nonces import Freshness, Nonces
from sidecar.core.keys import KeySetError, VerificationKey, parse_jwk
from sidecar.core.paths import canonical, canonical_host
from sidecar.core.token import media_type, read_segment, segments_of

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sidecar.core.context import RequestContext
    from sidecar.core.methods import Findings
    from sidecar.core.principal import Json

HEADER = "dpop"
PROOF_BYTES_MAX = 4 * 1024
"""A proof with an RSA key of 8192 bits takes 3.2 KiB."""

JTI_CHARS_MAX = 256
TARGET_CHARS_MAX = 4 * 1024
AGE_S_MAX = 600
LEEWAY_S_MAX = 60

PROOF_HEADERS_KEPT_MAX = 1024
"""Headers of proofs that were read, 5 KiB each at most: a client sends the same one each time, which saves 20 us. Only
who holds a valid token that is bound to a key gets one in."""

_TYPE = "dpop+jwt"
_REFUSED_MEMBERS = frozenset({"crit", "b64", "enc", "zip", "jku", "x5u"})
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_REQUIRED = ("jti", "htm", "htu", "iat", "ath")
_DATE_MAX = 2**53
_US_PER_S = 1_000_000
_DEFAULT_PORTS = {"http": 80, "https": 443}

_INVALID = DenyReason.DPOP_PROOF_INVALID


@dataclass(frozen=True, slots=True, kw_only=True)
class DpopPolicy:
    """How proofs are judged.

    Attributes:
        algorithms: Accepted `alg` values of proofs, asymmetric ones; not empty.
        origin: What clients put before the path: `https://host[:port]` and a path without a slash at its end, as
            `origin_of` writes it; "": scheme and host of the request as the gateway reports them.
        age_s_max: How old `iat` may be, 1 to `AGE_S_MAX`.
        leeway_s: How far `iat` may be in the future, 0 to `LEEWAY_S_MAX`.
        nonces: Every proof must carry a nonce of ours; None: none is asked for.
        replay_local: While the store cannot say whether a proof is used for the first time, each process remembers
            proofs for itself; False: such requests are denied.
    """

    algorithms: frozenset[str]
    origin: str = ""
    age_s_max: int = 60
    leeway_s: int = 5
    nonces: Nonces | None = None
    replay_local: bool = False

    @property
    def remembered_ms(self) -> int:
        """How long a used proof is remembered: as long as any sidecar may accept it, with clocks that differ."""
        return (self.age_s_max + 2 * self.leeway_s) * 1000


class NeedFirstUse(NamedTuple):
    """The proof is good, if it is used for the first time: note `digest` where all sidecars see it.

    What is found: True, it was not noted before; False, it was; None, it could not be noted.

    Attributes:
        key: Names this proof for this token.
        digest: SHA-256 of the key's thumbprint and `jti`: names the proof for everyone.
        lifetime_ms: How long to remember it.
        local: It may be noted in this process alone while the store cannot be asked.
    """

    key: Hashable
    digest: bytes
    lifetime_ms: int
    local: bool

    def __repr__(self) -> str:
        return "NeedFirstUse(***)"


class _Proof(NamedTuple):
    """A well-formed proof by the key that the token names; nothing of it is proved yet."""

    key: VerificationKey
    claims: dict[str, Json]
    signing_input: bytes
    signature: bytes


ProofResult: TypeAlias = "Rejected | NeedFirstUse | None"


def prove(
    token: str, thumbprint: bytes, dpop: DpopPolicy, request: RequestContext, findings: Findings, now_us: int
) -> ProofResult:
    """Whether the request proves that its sender holds the key; None: it does.

    Args:
        token: As sent.
        thumbprint: Of the key that the token is bound to (`cnf.jkt`).
        dpop: How proofs are judged.
        request: Carries the proof; `dpop_nonce` is set on it where the client is to use another nonce.
        findings: What was fetched for this request.
        now_us: Microseconds since the epoch.
    """
    text = _sole_header(request)
    if isinstance(text, Rejected):
        if dpop.nonces is not None:
            request.dpop_nonce = dpop.nonces.current(now_us)  # spares the client a refusal
        return text
    need_key = (HEADER, text, token)
    if need_key in findings:  # it was judged before the question was asked
        return _first_use(findings[need_key])
    proof = _parse(text, thumbprint, dpop)
    if isinstance(proof, Rejected):
        return proof
    fault = _claims_fault(proof.claims, token, dpop, request, now_us)
    if fault is not None:
        return fault
    if not proof.key.verify(proof.signature, proof.signing_input):
        return Rejected(_INVALID, "the proof's signature does not belong to its key and content")
    fault = _nonce_fault(proof.claims, dpop, request, now_us)
    if fault is not None:
        return fault
    digest = sha256(thumbprint + str(proof.claims["jti"]).encode()).digest()
    return NeedFirstUse(need_key, digest, dpop.remembered_ms, dpop.replay_local)


def _first_use(found: object) -> Rejected | None:
    if found is True:
        return None
    if found is False:
        return Rejected(DenyReason.DPOP_PROOF_REPLAYED, "the proof was used before")
    return Rejected(DenyReason.PROOFS_UNAVAILABLE, "whether the proof was used before could not be asked")


def _sole_header(request: RequestContext) -> str | Rejected:
    """RFC 9449 section 4.3, rule 1: exactly one proof."""
    text = request.headers.get(HEADER)
    if text is None:
        return Rejected(DenyReason.DPOP_PROOF_MISSING, "the DPoP header is missing")
    if HEADER in request.repeated or "," in text:
        return Rejected(_INVALID, "there is more than one DPoP header")
    if len(text) > PROOF_BYTES_MAX:
        return Rejected(_INVALID, f"the proof: longer than {PROOF_BYTES_MAX} bytes")
    return text


def _parse(text: str, thumbprint: bytes, dpop: DpopPolicy) -> _Proof | Rejected:
    """Rules 2 to 5, 7 and 12: a JWT in its one spelling that has all required members, by the key of the token."""
    segments = segments_of(text, PROOF_BYTES_MAX)
    if isinstance(segments, Rejected):
        return _of_proof(segments)
    head, payload, signed = segments
    try:
        signature = base64url.decode_checked(signed)
    except base64url.Base64UrlError as error:
        return Rejected(_INVALID, f"the proof's signature {error}")
    key = _key(head, thumbprint, dpop.algorithms)
    if isinstance(key, Rejected):
        return key
    claims = read_segment(payload, "the payload")
    if isinstance(claims, Rejected):
        return _of_proof(claims)
    missing = [name for name in _REQUIRED if name not in claims]
    if missing:
        return Rejected(_INVALID, f"the proof's {missing[0]} is missing")
    return _Proof(key, claims, b"%b.%b" % (head, payload), signature)


def _of_proof(rejected: Rejected) -> Rejected:
    return Rejected(_INVALID, f"the proof: {rejected.detail}")


@lru_cache(maxsize=PROOF_HEADERS_KEPT_MAX)
def _key(head: bytes, thumbprint: bytes, algorithms: frozenset[str]) -> VerificationKey | Rejected:
    """The key that a proof's header brings along, if the token is bound to it."""
    header = read_segment(head, "the header")
    if isinstance(header, Rejected):
        return _of_proof(header)
    if not _REFUSED_MEMBERS.isdisjoint(header):
        return Rejected(_INVALID, "the proof's header has a member that is not understood or not believed")
    typ, alg, jwk = header.get("typ"), header.get("alg"), header.get("jwk")
    if not isinstance(typ, str) or media_type(typ) != _TYPE:
        return Rejected(_INVALID, f"the proof's typ is not {_TYPE}")
    if not isinstance(alg, str) or alg not in algorithms:
        return Rejected(_INVALID, f"the proof's alg is not one of {', '.join(sorted(algorithms))}")
    if not isinstance(jwk, dict):
        return Rejected(_INVALID, "the proof's jwk is missing or not an object")
    return _key_of_jwk(jwk, alg, thumbprint)


def _key_of_jwk(jwk: dict[str, Json], alg: str, thumbprint: bytes) -> VerificationKey | Rejected:
    """The key, if it is the one that the token names: that is compared before the key is parsed."""
    if not _PRIVATE_MEMBERS.isdisjoint(jwk):
        return Rejected(_INVALID, "the proof's jwk holds private parts: the key is compromised")
    members = _thumbprint_members(jwk)
    if members is None:
        return Rejected(_INVALID, "the proof's jwk lacks a member that its kty needs")
    if jwk.get("use", "sig") != "sig" or jwk.get("alg", alg) != alg:
        return Rejected(_INVALID, "the proof's jwk is not for signatures with alg")
    text = "{" + ",".join([f'"{name}":"{value}"' for name, value in members.items()]) + "}"
    if not hmac.compare_digest(sha256(text.encode("ascii")).digest(), thumbprint):
        return Rejected(DenyReason.DPOP_KEY_MISMATCH, "the token is bound to another key than the proof's")
    try:
        return parse_jwk(dict(members), alg)
    except KeySetError as error:
        return Rejected(_INVALID, f"the proof's jwk cannot be used: {error}")


_THUMBPRINT_MEMBERS = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}


def _thumbprint_members(jwk: dict[str, Json]) -> dict[str, str] | None:
    """What identifies a public key, in the order of RFC 7638 section 3.2."""
    kty = jwk.get("kty")
    members: dict[str, str] = {}
    for name in _THUMBPRINT_MEMBERS.get(kty, ()) if isinstance(kty, str) else ():
        value = jwk.get(name)
        if not isinstance(value, str) or not value.isascii() or '"' in value or "\\" in value:
            return None
        members[name] = value
    return members or None


def _claims_fault(
    claims: dict[str, Json], token: str, dpop: DpopPolicy, request: RequestContext, now_us: int
) -> Rejected | None:
    """Rules 3, 8, 9, 11 and 12 of RFC 9449 section 4.3."""
    jti, method, digest = claims["jti"], claims["htm"], claims["ath"]
    if not isinstance(jti, str) or not 0 < len(jti) <= JTI_CHARS_MAX:
        return Rejected(_INVALID, f"the proof's jti is not a string of 1 to {JTI_CHARS_MAX} characters")
    if method != request.method:
        return Rejected(_INVALID, "the proof's htm is not the request's method")
    expected = base64url.encode(sha256(token.encode("utf-8", "surrogatepass")).digest())
    if digest != expected:  # both are the sender's own: nothing to be learnt from how long it takes
        return Rejected(_INVALID, "the proof's ath is not the token's digest")
    return _target_fault(claims["htu"], dpop, request) or _date_fault(claims, dpop, now_us)


def _date_fault(claims: dict[str, Json], dpop: DpopPolicy, now_us: int) -> Rejected | None:
    for name in ("iat", "exp", "nbf"):
        value = claims.get(name, 0)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= _DATE_MAX:
            return Rejected(_INVALID, f"the proof's {name} is not a number of seconds from 0 to 2^53")
    issued: float = claims["iat"]  # type: ignore[assignment] # a number: see above
    if now_us >= (issued + dpop.age_s_max) * _US_PER_S:
        return Rejected(_INVALID, f"the proof is older than {dpop.age_s_max} s")
    begins: float = claims.get("nbf", 0)  # type: ignore[assignment] # as above
    if now_us < (max(issued, begins) - dpop.leeway_s) * _US_PER_S:
        return Rejected(_INVALID, f"the proof is from more than {dpop.leeway_s} s in the future")
    expires: float = claims.get("exp", _DATE_MAX)  # type: ignore[assignment] # as above
    return Rejected(_INVALID, "the proof has expired") if now_us >= expires * _US_PER_S else None


def _nonce_fault(claims: dict[str, Json], dpop: DpopPolicy, request: RequestContext, now_us: int) -> Rejected | None:
    """Rule 10 of RFC 9449 section 4.3, and section 8: a client learns the nonce that it should use from the answer."""
    if dpop.nonces is None:
        return None
    nonce = claims.get("nonce")
    freshness = dpop.nonces.judge(nonce, now_us) if isinstance(nonce, str) else Freshness.REFUSED
    if freshness is not Freshness.CURRENT:
        request.dpop_nonce = dpop.nonces.current(now_us)
    if freshness is Freshness.REFUSED:
        return Rejected(DenyReason.DPOP_NONCE_REQUIRED, "the proof's nonce is missing, too old or not one of ours")
    return None


# --------------------------------------------------------------------------------------------------------------------
# htu (RFC 9449 section 4.3, rule 9): compared after normalization (RFC 3986 sections 6.2.2 and 6.2.3)

_URL = re.compile(r"([A-Za-z]{1,8})://([^/?#]+)([^?#]*)", re.ASCII)


def origin_of(url: str) -> str | None:
    """An http(s) URL in its one spelling, without query and fragment and without a slash at its end; None: it has none.

    Scheme and host in lower case, no default port, the path as `paths.canonical` writes it.
    """
    normal = _normal(url)
    if normal is None:
        return None
    origin, path = normal
    return origin + path.rstrip("/")


def _normal(url: str) -> tuple[str, str] | None:
    parts = _URL.match(url) if len(url) <= TARGET_CHARS_MAX else None
    if parts is None:
        return None
    origin = _origin(parts[1].lower(), parts[2])
    path = canonical(parts[3] or "/")
    return (origin, path) if origin is not None and isinstance(path, str) else None


def _origin(scheme: str, authority: str) -> str | None:
    host = canonical_host(authority)
    default = _DEFAULT_PORTS.get(scheme)
    if host is None or default is None:
        return None
    port = authority.rpartition(":")[2] if not authority.endswith("]") and ":" in authority else ""
    if not port or int(port) == default:
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{int(port)}"


def _target_fault(htu: Json, dpop: DpopPolicy, request: RequestContext) -> Rejected | None:
    shown = _normal(htu) if isinstance(htu, str) else None
    if shown is None:
        return Rejected(_INVALID, "the proof's htu is not an http(s) URL that can be read in one way only")
    base = dpop.origin or _origin(request.scheme, request.host)
    if base is None:
        return Rejected(_INVALID, "the gateway reports no http or https scheme, and the policy names no origin")
    path = canonical(request.path)
    if not isinstance(path, str) or "".join(shown) != base + path:
        return Rejected(_INVALID, "the proof's htu is not the request's URL")
    return None
