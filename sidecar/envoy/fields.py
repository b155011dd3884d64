"""HTTP field values that an answer carries: what the upstream and the client are told.

Values taken from claims are chosen, in part, by whoever filled in a profile at the identity provider. What is written
here is therefore always visible ASCII, and different values never come out alike (see `upstream_value`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from sidecar.core.decision import REASONS, Challenge, DenyReason
from sidecar.core.limits import US_PER_S, Algorithm
from sidecar.core.rules import BEARER_ALONE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sidecar.core.limits import Limit, LimitOutcome
    from sidecar.core.rules import Rule

UPSTREAM_VALUE_BYTES_MAX = 4096
"""A longer value is not sent: common servers take 8 KiB for one field line, and Envoy 60 KiB for all headers."""

_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def upstream_value(text: str) -> bytes | None:
    """A field value that stands for exactly this text (RFC 9110 section 5.5), None where there is none.

    Printable ASCII is itself. `%`, everything that is not ASCII, and a space at either end (which parsers strip) are
    percent-encoded as UTF-8; undoing the percent-encoding once always gives the text back. There is no value for
    the empty text, for text with control characters or lone surrogates, and for values over
    `UPSTREAM_VALUE_BYTES_MAX`: they are never sent, in no form.
    """
    if text.isascii() and text.isprintable() and "%" not in text and text.strip(" ") == text:
        return text.encode("ascii") if 0 < len(text) <= UPSTREAM_VALUE_BYTES_MAX else None
    if len(text) > UPSTREAM_VALUE_BYTES_MAX or any(char < " " or "\x7f" <= char <= "\x9f" for char in text):
        return None
    try:
        encoded = quote(text, safe=_SAFE, encoding="utf-8", errors="strict")
    except UnicodeEncodeError:
        return None
    if encoded[0] == " ":
        encoded = "%20" + encoded[1:]
    if encoded[-1] == " ":
        encoded = encoded[:-1] + "%20"
    return encoded.encode("ascii") if len(encoded) <= UPSTREAM_VALUE_BYTES_MAX else None


def seconds_up(microseconds: int) -> int:
    """Whole seconds, rounded up."""
    return -(-microseconds // US_PER_S)


def ratelimit_name(name: str) -> str:
    """A limit's name as a structured field string (RFC 9651 section 3.3.3)."""
    printable = "".join(char if " " <= char <= "~" else "?" for char in name)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'


def ratelimit_policy(limit: Limit) -> str:
    """The limit's item of `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11 section 3): quota and window.

    The calendar's windows differ in length, and concurrency has none: then there is no window.
    """
    item = f"{ratelimit_name(limit.name)};q={limit.requests}"
    if limit.algorithm is Algorithm.CONCURRENCY:
        return f'{item};qu="concurrent-requests"'
    return item if limit.calendar is not None else f"{item};w={seconds_up(limit.window_us)}"


def names_list(names: Sequence[str]) -> bytes:
    """Limits' names as a structured field list of strings (RFC 9651 section 3.1)."""
    return ", ".join([ratelimit_name(name) for name in names]).encode("ascii")


def exceeded(outcomes: Sequence[LimitOutcome]) -> list[LimitOutcome]:
    """Those of the limits that deny."""
    return [outcome for outcome in outcomes if not (outcome.allowed or outcome.limit.shadow)]


def tightest(outcomes: Sequence[LimitOutcome]) -> LimitOutcome:
    """The one with the least left; of several, the one that takes longest to be whole again."""
    return min(outcomes, key=lambda outcome: (outcome.remaining, -reset_seconds(outcome)))


def as_reference_chooses(outcomes: Sequence[LimitOutcome]) -> LimitOutcome:
    """The last one that denies; where none does, the first with the least left."""
    denying = exceeded(outcomes)
    return denying[-1] if denying else min(outcomes, key=lambda outcome: outcome.remaining)


def reset_seconds(outcome: LimitOutcome) -> int:
    """The `t` of `RateLimit` (same draft, section 4): until the same request would pass, where it was denied.

    Otherwise until the limit is whole again, which is also when there is nothing to say of a denial. `Retry-After` is
    never earlier than the `t` of a limit that denied, as the draft asks for.
    """
    return -(-(outcome.retry_after_us if outcome.retry_after_us > 0 else outcome.reset_after_us) // US_PER_S)


def retry_after(outcomes: Sequence[LimitOutcome]) -> int | None:
    """Delta-seconds (RFC 9110 section 10.2.3), rounded up, at least 1: when all limits that denied would let it pass.

    None when none denied, or when one never will: then no wait helps, and none is promised.
    """
    denied = [outcome.retry_after_us for outcome in exceeded(outcomes)]
    if not denied or min(denied) < 0:
        return None
    return max(1, seconds_up(max(denied)))


_OF_DPOP: Final = frozenset({Challenge.INVALID_DPOP_PROOF, Challenge.USE_DPOP_NONCE})
_OF_TOKENS: Final = frozenset(Challenge) - _OF_DPOP - {Challenge.NONE, Challenge.BARE, Challenge.API_KEY}
_ERRORS_OF_SCHEME: Final[Mapping[str, frozenset[Challenge]]] = {"Bearer": _OF_TOKENS, "DPoP": _OF_TOKENS | _OF_DPOP}
"""The error codes that a scheme has (RFC 6750 section 3.1, RFC 9449 section 7.1, RFC 9470 section 3)."""


def challenges(reason: DenyReason, rule: Rule | None) -> list[str]:
    """`WWW-Authenticate` (RFC 9110 section 11.6.1): a challenge for each kind of credential that the rule accepts.

    Nothing where the reason has no challenge. Without a credential there is no `error`, since the client did nothing
    wrong yet (RFC 6750 section 3.1), and schemes without error codes never have one.
    """
    row = REASONS[reason]
    if row.challenge is Challenge.NONE:
        return []
    shared = (rule.challenge if rule is not None else "") or 'realm="sidecar"'
    error = [f'error="{row.challenge.value}"', f'error_description="{row.detail}"']
    if rule is not None:
        error += _what_would_do(row.challenge, rule)
    texts = []
    for scheme in rule.challenge_schemes if rule is not None else BEARER_ALONE:
        parameters = [shared, scheme.parameters]
        if row.challenge in _ERRORS_OF_SCHEME.get(scheme.name, ()):
            parameters[1:1] = error
        texts.append(f"{scheme.name} {', '.join(filter(None, parameters))}")
    return texts


def _what_would_do(challenge: Challenge, rule: Rule) -> list[str]:
    """The scopes that are named (RFC 6750 section 3), or the authentication that is asked for (RFC 9470 section 3)."""
    if challenge is Challenge.INSUFFICIENT_SCOPE and rule.challenge_scope:
        return [f'scope="{rule.challenge_scope}"']
    step_up = rule.composition.step_up if rule.composition is not None else None
    if challenge is not Challenge.STEP_UP or step_up is None:
        return []
    asked = [f'acr_values="{" ".join(step_up.acr)}"'] if step_up.acr else []
    return asked if step_up.max_age_s is None else [*asked, f'max_age="{step_up.max_age_s}"']
