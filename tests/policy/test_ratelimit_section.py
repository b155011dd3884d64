"""The `ratelimit` section: what it compiles to, and what is refused."""

from __future__ import annotations

import pytest

from sidecar.core.descriptors import Counting, HeaderNames, RateLimitOptions
from sidecar.core.limits import Algorithm, OnFailure
from sidecar.policy.faults import PolicyError
from sidecar.policy.ratelimit_section import ALGORITHMS_MAX, RateLimitSection, ratelimit_options
from sidecar.policy.validate import validate
from sidecar.policy.yaml import parse


def options(**written) -> RateLimitOptions:
    return ratelimit_options(RateLimitSection(directory="x", **written))


def test_without_more_it_answers_as_the_reference():
    """Each setting that is not given is what the reference does by default."""
    assert options() == RateLimitOptions()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"on_redis_failure": "local"}, {"on_failure": OnFailure.LOCAL}),
        ({"shadow_mode": True, "quota_mode": True}, {"shadow_mode": True, "quota_mode": True}),
        ({"near_limit_ratio": 0.5}, {"near_limit_ratio": 0.5}),
        ({"response_headers": True}, {"response_headers": HeaderNames()}),
        ({"response_headers": {}}, {"response_headers": HeaderNames()}),
        (
            {"response_headers": {"limit": "X-Limit"}},
            {"response_headers": HeaderNames("X-Limit", "RateLimit-Remaining", "RateLimit-Reset")},
        ),
        ({"shadow_header": "x-shadow"}, {"shadow_header": "x-shadow"}),
        ({"response_dynamic_metadata": True}, {"response_dynamic_metadata": True}),
        ({"merge_domains": True, "deny_cache": True}, {"merge_domains": True, "deny_cache": True}),
        (
            {
                "algorithms": {
                    "a": "sliding_log",
                    "b": {"algorithm": "gcra", "burst": 2, "lease": 3},
                    "c": {"algorithm": "concurrency", "hold": "30s"},
                    "d": {"algorithm": "fixed_window", "count_denied": False},
                }
            },
            {
                "algorithms": {
                    "a": Counting(algorithm=Algorithm.SLIDING_LOG),
                    "b": Counting(algorithm=Algorithm.GCRA, burst=2, lease=3),
                    "c": Counting(algorithm=Algorithm.CONCURRENCY, hold_us=30_000_000),
                    "d": Counting(algorithm=Algorithm.FIXED_WINDOW, count_denied=False),
                }
            },
        ),
    ],
)
def test_each_setting_has_its_effect(written, expected):
    """What is written arrives where the service looks."""
    assert options(**written) == RateLimitOptions(**expected)


SECTION = "ratelimit:\n  directory: x\n  "


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("response_headers: 5", "ratelimit.response_headers: a number is not accepted here"),
        ("response_headers: {limit: 'a b'}", "ratelimit.response_headers.limit: 'a b' is not a header name"),
        ("near_limit_ratio: 1.5", "ratelimit.near_limit_ratio: 1.5 is out of range"),
        ("algorithms: {a: fixed}", "ratelimit.algorithms.a: 'fixed' is not a choice"),
        ("algorithms: {a: {burst: 1}}", "ratelimit.algorithms.a.algorithm"),
        ("algorithms: {a: {algorithm: gcra, burst: 0}}", "ratelimit.algorithms.a.burst: 0 is out of range"),
        ("algorithms: {a: {algorithm: concurrency, hold: 0s}}", "ratelimit.algorithms.a.hold"),
        ("shadow_header: ''", "ratelimit.shadow_header"),
    ],
)
def test_what_cannot_be_is_refused(line, fault):
    """Each with its line and path."""
    [found] = validate(parse(f"{SECTION}{line}\n".encode(), "f.yaml")).faults
    assert str(found).startswith(f"f.yaml:3: {fault}")


def test_algorithms_are_bounded():
    """The stated number is accepted, one more is not."""
    for count, faults in ((ALGORITHMS_MAX, 0), (ALGORITHMS_MAX + 1, 1)):
        chosen = ", ".join(f"a{number}: gcra" for number in range(count))
        assert len(validate(parse(f"{SECTION}algorithms: {{{chosen}}}\n".encode(), "f.yaml")).faults) == faults


def test_limits_come_from_one_place():
    """Neither from nowhere nor from two."""
    for written in ("ratelimit: {shadow_mode: true}\n", SECTION + "xds: {server: 'localhost:1'}\n"):
        try:
            faults = validate(parse(written.encode(), "f.yaml")).faults
        except PolicyError as error:
            faults = list(error.faults)
        assert [fault.accepted for fault in faults] == ["exactly one of directory, xds"]
