"""What answers say about limits: the fragments that are kept, and which limit the short headers tell of."""

from __future__ import annotations

import pytest

from sidecar.core.limits import US_PER_S, Limit, LimitOutcome
from sidecar.core.rules import LimitAnswers
from sidecar.envoy import fields
from sidecar.envoy.limit_answers import VARIANTS_MAX, RuleLimits


def limit(name: str = "l", requests: int = 10, *, shadow: bool = False) -> Limit:
    return Limit(name=name, requests=requests, window_us=60 * US_PER_S, shadow=shadow)


def outcome(of: Limit, remaining: int = 1, *, retry_s: int = 0, reset_s: int = 30) -> LimitOutcome:
    return LimitOutcome(of, retry_s == 0, 0, remaining, retry_s * US_PER_S, reset_s * US_PER_S)


@pytest.mark.parametrize("met", [VARIANTS_MAX, VARIANTS_MAX + 1])
def test_fragments_of_so_many_combinations_are_kept(met: int) -> None:
    """One more, and all are forgotten and made anew as they come; a limit's own are always there."""
    own = limit()
    rule = RuleLimits([own], LimitAnswers())
    variants = [outcome(limit(requests=n)) for n in range(met)]
    first = rule.of([variants[0]])
    for each in variants[1:]:
        rule.of([each])
    assert (rule.of([variants[0]]) is first) is (met == VARIANTS_MAX)
    assert rule.of([outcome(own)]) is rule.own


def test_the_short_headers_tell_of_one_limit() -> None:
    """The tightest; or as envoyproxy/ratelimit chooses: the last that denies, else the first with the least left."""
    a, b, c = (limit(name) for name in "abc")
    quiet = [outcome(a, 5), outcome(b, 2, reset_s=10), outcome(c, 2, reset_s=20)]
    assert fields.tightest(quiet).limit is c
    assert fields.as_reference_chooses(quiet).limit is b
    denied = [outcome(a, 0, retry_s=30), outcome(b, 0, retry_s=5), outcome(c, 0)]
    assert fields.as_reference_chooses(denied).limit is b


def test_retry_after_is_never_before_what_a_denying_limit_says() -> None:
    """`t` of a limit that denied is the time until the same request passes; shadows do not count."""
    denied = [
        outcome(limit(), 0, retry_s=7, reset_s=60),
        outcome(limit(), 0, retry_s=9, reset_s=12),
        outcome(limit(shadow=True), 0, retry_s=50),
    ]
    assert [fields.reset_seconds(each) for each in denied] == [7, 9, 50]
    assert fields.retry_after(denied) == 9
    assert fields.retry_after(denied[2:]) is None
