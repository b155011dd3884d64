"""Bearer tokens: a strict JOSE front end (RFC 7515, 7519, 8725) and what makes a token believed.

    text -> parse -> UnverifiedToken -> verify -> Principal        (or Rejected, or NeedKey at either step)

`parse` looks at spelling and structure alone; whatever it hands on starts with `unverified_`. `verify` is given the
policy of the one issuer that the token names and that issuer's keys, so that a key of one issuer never vouches for
another (RFC 8725 section 3.8). Both return their refusals; neither raises, whatever the token's bytes are.

Deliberately absent: fetching anything that a token points to (`jku`, `x5u`), and trying keys one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, cast

from sidecar.core import base64url
from sidecar.core.claims import Rejected, believe, still_valid
from sidecar.core.decision import DenyReason
from sidecar.core.issuer import SUPPORTED, TOKEN_BYTES_MAX
from sidecar.core.keys import KID_CHARS_MAX
from sidecar.core.strict_json import JsonError, read_object

if TYPE_CHECKING:
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.keys import KeySet
    from sidecar.core.principal import Json, Principal

__all__ = [
    "HEADER_BYTES_MAX",
    "NeedKey",
    "Rejected",
    "UnverifiedToken",
    "media_type",
    "parse",
    "read_segment",
    "segments_of",
    "still_valid",
    "verify",
]

HEADER_BYTES_MAX = 2 * 1024
"""Of the header as sent, in base64url."""

_MALFORMED = DenyReason.TOKEN_MALFORMED
_HEADER = DenyReason.TOKEN_HEADER_REFUSED

_REFUSED_MEMBERS = {
    "crit": "no critical extension is understood (RFC 7515 section 4.1.11)",
    "b64": "unencoded payloads are not accepted (RFC 7797)",
    "enc": "encrypted tokens are not accepted (RFC 7516)",
    "zip": "compressed tokens are not accepted",
}
"""Members of a header that nobody's policy makes acceptable."""

_KEY_POINTERS = {
    "jku": "a token cannot say where its key is",
    "jwk": "a token cannot bring its key along",
    "x5u": "a token cannot say where its certificate is",
}
"""Never followed and never believed (RFC 8725 section 3.10); whether they are refused is the profile's choice."""


@dataclass(slots=True, eq=False, repr=False)
class UnverifiedToken:
    """A well-formed token about which nothing is proved yet. Never changed after it was built.

    Attributes:
        text: As sent; the key of the token cache.
        unverified_issuer: `iss`, a non-empty string: says whose keys could vouch for the token.
        unverified_type: `typ` in lower case without `application/` (RFC 7515 section 4.1.9), "" where it is absent.
        unverified_key_pointer: Of `jku`, `jwk` and `x5u` the first that the header has, "" without them.
        signing_input: What the signature signs.
    """

    text: str
    unverified_claims: dict[str, Json]
    unverified_issuer: str
    unverified_alg: str
    unverified_kid: str | None
    unverified_type: str
    unverified_key_pointer: str
    signing_input: bytes
    signature: bytes

    def __repr__(self) -> str:
        return "UnverifiedToken(***)"


class NeedKey(NamedTuple):
    """No key of the set has the token's `kid`: fetch the issuer's keys and call `verify` again, once."""

    kid: str


def parse(text: str, bytes_max: int = TOKEN_BYTES_MAX) -> UnverifiedToken | Rejected:
    """The token that `text` spells: three canonical base64url segments, of which two are strict JSON objects."""
    segments = segments_of(text, bytes_max)
    if isinstance(segments, Rejected):
        return segments
    header_segment, payload_segment, signature_segment = segments
    try:
        signature = base64url.decode_checked(signature_segment)
    except base64url.Base64UrlError as error:
        return Rejected(_MALFORMED, f"the signature {error}")
    header = read_segment(header_segment, "the header")
    if isinstance(header, Rejected):
        return header
    fault = _header_fault(header)
    if fault is not None:
        return fault
    claims = read_segment(payload_segment, "the payload")
    if isinstance(claims, Rejected):
        return claims
    issuer = claims.get("iss")
    if not isinstance(issuer, str) or not issuer:
        return Rejected(DenyReason.TOKEN_CLAIM_INVALID, "iss is missing or not a non-empty string")
    return UnverifiedToken(
        text=text,
        unverified_claims=claims,
        unverified_issuer=issuer,
        unverified_alg=cast("str", header["alg"]),
        unverified_kid=cast("str | None", header.get("kid")),
        unverified_type=media_type(cast("str", header.get("typ", ""))),
        unverified_key_pointer=_first_of(_KEY_POINTERS, header),
        signing_input=b"%b.%b" % (header_segment, payload_segment),
        signature=signature,
    )


def segments_of(text: str, bytes_max: int) -> list[bytes] | Rejected:
    """The segments of a compact JWS (RFC 7515 section 7.1); a few us for any text.

    Exactly three that are not empty, of characters in the alphabet.
    """
    if len(text) > bytes_max:
        return Rejected(_MALFORMED, f"longer than {bytes_max} bytes")
    if not text.isascii():
        return Rejected(_MALFORMED, "has a character outside of ASCII")
    raw = text.encode()
    if raw.translate(None, base64url.ALPHABET) != b"..":
        return Rejected(_MALFORMED, "is not three segments of base64url joined by two dots")
    segments = raw.split(b".")
    if not all(segments):
        return Rejected(_MALFORMED, "has an empty segment")
    if len(segments[0]) > HEADER_BYTES_MAX:
        return Rejected(_MALFORMED, f"the header is longer than {HEADER_BYTES_MAX} bytes")
    return segments


def read_segment(segment: bytes, part: str) -> dict[str, Json] | Rejected:
    """The strict JSON object that a segment spells; `part` names it in the refusal."""
    try:
        return read_object(base64url.decode_checked(segment))
    except (base64url.Base64UrlError, JsonError) as error:
        return Rejected(_MALFORMED, f"{part} {error}")


def _header_fault(header: dict[str, Json]) -> Rejected | None:
    """What no issuer's policy could make acceptable. None: alg, kid, typ and cty have their types."""
    refused = _first_of(_REFUSED_MEMBERS, header)
    if refused:
        return Rejected(_HEADER, f"{refused} is present: {_REFUSED_MEMBERS[refused]}")
    alg = header.get("alg")
    if not isinstance(alg, str) or alg not in SUPPORTED:
        return Rejected(DenyReason.TOKEN_ALGORITHM_REFUSED, f"alg is not one of {', '.join(sorted(SUPPORTED))}")
    kid = header.get("kid")
    if "kid" in header and not (isinstance(kid, str) and 0 < len(kid) <= KID_CHARS_MAX):
        return Rejected(_HEADER, f"kid is not a string of 1 to {KID_CHARS_MAX} characters")
    if "typ" in header and not (isinstance(header["typ"], str) and header["typ"]):
        return Rejected(_HEADER, "typ is not a non-empty string")
    if "cty" in header:
        content = header["cty"]
        if not isinstance(content, str) or content.lower().endswith("jwt"):
            return Rejected(_HEADER, "cty is not a string, or says that the payload is another token")
    return None


def _first_of(members: dict[str, str], header: dict[str, Json]) -> str:
    """The first of these members that a header has, "" without any."""
    return "" if members.keys().isdisjoint(header) else next(name for name in members if name in header)


def media_type(typ: str) -> str:
    """A `typ` in lower case without `application/` (RFC 7515 section 4.1.9)."""
    name = typ.lower()
    short = name.removeprefix("application/")
    return name if "/" in short else short


def verify(token: UnverifiedToken, issuer: IssuerPolicy, keys: KeySet, now_us: int) -> Principal | NeedKey | Rejected:
    """Who the token proves at `now_us`, to someone who trusts this issuer and these keys of its.

    What the header and the claims rule out anyhow costs neither a signature check nor a fetch for its `kid`.
    """
    fault = _unacceptable(token, issuer)
    if fault is not None:
        return fault
    alg, kid = token.unverified_alg, token.unverified_kid
    proved = believe(token.unverified_claims, token.unverified_type, issuer, now_us, kid or "")
    if isinstance(proved, Rejected):
        return proved
    key = keys.find(kid, alg)
    if key is None:
        if kid is None:
            return Rejected(DenyReason.TOKEN_KEY_UNKNOWN, "without kid, exactly one key must fit alg")
        if kid in keys.kids:
            return Rejected(DenyReason.TOKEN_ALGORITHM_REFUSED, "the key with this kid is not for this alg")
        return NeedKey(kid)
    if not key.verify(token.signature, token.signing_input):
        return Rejected(DenyReason.TOKEN_SIGNATURE_INVALID, "the signature does not belong to this key and content")
    return proved if kid == key.kid else replace(proved, signed_by=key.kid or "")


def _unacceptable(token: UnverifiedToken, issuer: IssuerPolicy) -> Rejected | None:
    """What the issuer's policy refuses by the header."""
    if token.unverified_issuer != issuer.issuer:
        return Rejected(DenyReason.TOKEN_ISSUER_UNKNOWN, "iss is another issuer")
    pointer = token.unverified_key_pointer
    if pointer and issuer.profile.refuses_key_pointers:
        return Rejected(_HEADER, f"{pointer} is present: {_KEY_POINTERS[pointer]}")
    if token.unverified_alg not in issuer.algorithms:
        return Rejected(DenyReason.TOKEN_ALGORITHM_REFUSED, f"alg is not one of {', '.join(sorted(issuer.algorithms))}")
    if token.unverified_type not in issuer.token_types:
        return Rejected(DenyReason.TOKEN_TYPE_REFUSED, "typ is not a type that the issuer's policy accepts")
    if token.unverified_kid is None and not issuer.allow_missing_kid:
        return Rejected(_HEADER, "kid is missing")
    return None
