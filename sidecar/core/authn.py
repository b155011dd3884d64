"""Who is this? From the credential on the request to a `Principal`, by the rule's issuers and no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sidecar.core import token as tokens
from sidecar.core.credentials import bearer_token
from sidecar.core.decision import DenyReason
from sidecar.core.principal import Principal

if TYPE_CHECKING:
    from sidecar.core.context import RequestContext
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.keys import KeySet
    from sidecar.core.rules import Rule
    from sidecar.core.token_cache import TokenCache


class Keys(Protocol):
    """Where the key sets of issuers are held."""

    def keys(self, issuer: IssuerPolicy) -> KeySet | None:
        """The issuer's current keys; None while it has none that may be used."""


@dataclass(slots=True, eq=False)
class NeedKey:
    """The token names a key that is not held: fetch the issuer's keys, then begin again with `fetched=True`."""

    issuer: IssuerPolicy
    kid: str | None


def authenticate(
    rule: Rule, request: RequestContext, cache: TokenCache, keys: Keys, now_us: int, *, fetched: bool
) -> Principal | NeedKey | tokens.Rejected:
    """The principal that the request's bearer token proves.

    Args:
        rule: Names the issuers that are accepted.
        request: Carries the credential.
        cache: Tokens that were verified before; one that is verified now is added.
        keys: The issuers' keys.
        now_us: Microseconds since the epoch.
        fetched: Keys were just fetched for this request: an unknown key is now final.
    """
    text = bearer_token(request)
    if isinstance(text, DenyReason):
        return tokens.Rejected(text, "")
    cached = cache.get(text)
    if cached is not None:
        issuer = rule.issuers.get(cached.issuer.issuer)
        if issuer is not None and cached.holds(issuer, keys.keys(issuer)):
            if cached.begins_us <= now_us < cached.expires_us:
                return cached.principal
            return tokens.still_valid(cached.principal, issuer, now_us) or cached.principal
    return _prove(text, rule, cache, keys, now_us, fetched=fetched)


def _prove(
    text: str, rule: Rule, cache: TokenCache, keys: Keys, now_us: int, *, fetched: bool
) -> Principal | NeedKey | tokens.Rejected:
    token = tokens.parse(text, rule.token_bytes_max)
    if isinstance(token, tokens.Rejected):
        return token
    issuer = rule.issuers.get(token.unverified_issuer)
    if issuer is None:
        return tokens.Rejected(DenyReason.TOKEN_ISSUER_UNKNOWN, f"rule {rule.name!r} does not accept its issuer")
    if len(text) > issuer.token_bytes_max:
        return tokens.Rejected(DenyReason.TOKEN_MALFORMED, f"longer than {issuer.token_bytes_max} bytes")
    key_set = keys.keys(issuer)
    if key_set is None:
        if not fetched:
            return NeedKey(issuer, token.unverified_kid)
        return tokens.Rejected(DenyReason.KEYS_UNAVAILABLE, f"no usable keys of issuer {issuer.name!r} are held")
    proved = tokens.verify(token, issuer, key_set, now_us)
    if isinstance(proved, tokens.NeedKey):
        if not fetched:
            return NeedKey(issuer, proved.kid)
        return tokens.Rejected(DenyReason.TOKEN_KEY_UNKNOWN, f"issuer {issuer.name!r} publishes no key with this kid")
    if isinstance(proved, Principal):
        cache.put(token, issuer, key_set, proved)
    return proved
