"""HTTP field values that an answer carries: what the upstream and the client are told.

Values taken from claims are chosen, in part, by whoever filled in a profile at the identity provider. What is written
here is therefore always visible ASCII, and different values never come out alike (see `upstream_value`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from sidecar.core.decision import REASONS, Challenge, DenyReason
from sidecar.core.limits import US_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def ratelimit_name(limit: Limit) -> str:
    """The limit's name as a structured field string (RFC 9651 section 3.3.3)."""
    printable = "".join(char if " " <= char <= "~" else "?" for char in limit.name)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'


def ratelimit_policy(limit: Limit) -> str:
    """The limit's item of `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers section 3): quota and window."""
    return f"{ratelimit_name(limit)};q={limit.requests};w={seconds_up(limit.window_us)}"


def reset_seconds(outcome: LimitOutcome) -> int:
    """The `t` of `RateLimit` (same draft, section 4): until the limit is whole again, never before `Retry-After`."""
    after_us = outcome.reset_after_us
    if after_us < outcome.retry_after_us:  # noqa: PLR1730 - max() would cost 0.1 us
        after_us = outcome.retry_after_us
    return -(-after_us // US_PER_S)


def retry_after(outcomes: Sequence[LimitOutcome]) -> int | None:
    """Delta-seconds (RFC 9110 section 10.2.3), rounded up, at least 1: when all limits that denied would let it pass.

    None when none denied, or when one never will: then no wait helps, and none is promised.
    """
    denied = [outcome.retry_after_us for outcome in outcomes if not outcome.allowed]
    if not denied or min(denied) < 0:
        return None
    return max(1, seconds_up(max(denied)))


def challenge(reason: DenyReason, rule: Rule | None) -> str | None:
    """`WWW-Authenticate` (RFC 6750 section 3, RFC 9728 section 5.1); None where the reason has no challenge.

    Without a credential there is no `error`, since the client did nothing wrong yet (RFC 6750 section 3.1).
    """
    row = REASONS[reason]
    if row.challenge is Challenge.NONE:
        return None
    parameters = [(rule.challenge if rule is not None else "") or 'realm="sidecar"']
    if row.challenge is not Challenge.BARE:
        parameters += [f'error="{row.challenge.value}"', f'error_description="{row.detail}"']
    if row.challenge is Challenge.INSUFFICIENT_SCOPE and rule is not None and rule.challenge_scope:
        parameters.append(f'scope="{rule.challenge_scope}"')
    return "Bearer " + ", ".join(parameters)
