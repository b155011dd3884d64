"""What differs is said precisely: each part of an answer, what it is, and what it must be."""

from __future__ import annotations

import pytest
from google.protobuf.json_format import ParseDict

from sidecar.conformance.cases import Expected, ExpectedHeaders, ExpectedLimit, ExpectedStatus
from sidecar.conformance.judge import Asked, Fault, differences
from sidecar.core.descriptors import Unit
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitResponse

LIMIT = ExpectedLimit(requests=5, unit=Unit.MINUTE, name="n")
STATUS = {
    "code": "OK",
    "current_limit": {"requests_per_unit": 5, "unit": "MINUTE", "name": "n"},
    "limit_remaining": 4,
    "duration_until_reset": "20s",
}
EXPECTED = Expected(statuses=(ExpectedStatus("OK", 4, LIMIT),))
NOTHING = Expected(statuses=(ExpectedStatus("OK", 0, None),))


def found(expected, answer, features=(), now_s=1_000_000_000.0):
    if isinstance(answer, dict):
        answer = ParseDict({"overall_code": "OK", **answer}, RateLimitResponse())
    asked = Asked(domain="d", run="r", now_s=now_s, features=frozenset(features))
    return differences(expected, [answer], asked)


def status(**changes):
    changed = {key: value for key, value in {**STATUS, **changes}.items() if value is not None}
    return {"statuses": [changed]}


def test_what_is_expected_differs_nowhere():
    """An answer as expected has no differences."""
    assert found(EXPECTED, status()) == []
    assert found(NOTHING, {"statuses": [{"code": "OK"}]}) == []


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({**status(), "overall_code": "OVER_LIMIT"}, "overall_code is OVER_LIMIT, not OK"),
        ({**status(), "overall_code": "UNKNOWN"}, "overall_code is UNKNOWN, not OK"),
        ({"statuses": []}, "the number of statuses is 0, not 1"),
        (status(code="OVER_LIMIT"), "statuses[0].code is OVER_LIMIT, not OK"),
        (status(limit_remaining=3), "statuses[0].limit_remaining is 3, not 4"),
        (
            status(current_limit={"requests_per_unit": 6, "unit": "HOUR"}),
            "statuses[0].current_limit is 6/HOUR, not 5/MINUTE named 'n'",
        ),
        (
            status(current_limit={**STATUS["current_limit"], "unit_multiplier": 1}),
            "statuses[0].current_limit is 5/1 MINUTE named 'n', not 5/MINUTE named 'n'",
        ),
        (status(current_limit=None), "statuses[0].current_limit is nothing, not 5/MINUTE named 'n'"),
        (status(duration_until_reset=None), "statuses[0].duration_until_reset is not set"),
        (
            status(duration_until_reset="0s"),
            "statuses[0].duration_until_reset is 0 s; it must be above 0 and at most 60 s",
        ),
        (
            status(duration_until_reset="60.001s"),
            "statuses[0].duration_until_reset is 60.001 s; it must be above 0 and at most 60 s",
        ),
        ({**status(), "request_headers_to_add": [{"key": "a"}]}, "request_headers_to_add is set"),
        ({**status(), "raw_body": "YQ=="}, "raw_body is set"),
        (
            {**status(), "response_headers_to_add": [{"key": "a"}]},
            "response_headers_to_add is set, though the target is not said to have headers",
        ),
        (
            {**status(), "dynamic_metadata": {"a": 1}},
            "dynamic_metadata is set, though the target is not said to have dynamic_metadata",
        ),
        (Fault("UNAVAILABLE", "gone"), "the call failed with UNAVAILABLE 'gone'"),
    ],
)
def test_a_difference_is_told(answer, text):
    """Exactly what differs is said."""
    assert found(EXPECTED, answer) == [text]


def test_a_reset_without_a_limit_is_told():
    """Where no limit applies there is no reset."""
    answer = {"statuses": [{"code": "OK", "duration_until_reset": "3s"}]}
    assert found(NOTHING, answer) == ["statuses[0].duration_until_reset is set, though no limit applies"]


@pytest.mark.parametrize(
    ("reset", "right"), [("20s", True), ("22s", True), ("18s", True), ("23s", False), ("17s", False)]
)
def test_aligned_resets_are_compared_with_the_clock(reset, right):
    """Up to two seconds apart, also where they lie on both sides of a border."""
    aligned = Expected(statuses=EXPECTED.statuses, aligned=True)
    assert (found(aligned, status(duration_until_reset=reset), now_s=1_000_000_000.0) == []) is right


def test_aligned_resets_may_lie_on_both_sides_of_a_border():
    """One second after a window began the target may still be in the one before."""
    aligned = Expected(statuses=EXPECTED.statuses, aligned=True)
    assert found(aligned, status(duration_until_reset="1s"), now_s=60.5) == []


def test_a_failure_must_say_what_is_expected():
    """Another text, and no failure at all, are told."""
    wanted = Expected(error="domain")
    assert found(wanted, Fault("UNKNOWN", "the domain is empty")) == []
    assert found(wanted, Fault("UNKNOWN", "no")) == [
        "the call failed with UNKNOWN 'no', whose text does not say 'domain'"
    ]
    assert found(wanted, {}) == ["overall_code is OK, but the call should have failed"]


def headers(*pairs):
    return {**status(), "response_headers_to_add": [{"key": key, "value": value} for key, value in pairs]}


def test_headers_are_compared_by_value():
    """Their names' case means nothing; order, count and values do."""
    wanted = Expected(statuses=EXPECTED.statuses, headers=ExpectedHeaders(5, 4, 60))
    good = [("ratelimit-limit", "5"), ("RateLimit-Remaining", "4"), ("RATELIMIT-RESET", "60")]
    assert found(wanted, headers(*good), {"headers"}) == []
    assert found(wanted, status(), {"headers"}) == [
        "response_headers_to_add are nothing; they must be RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset"
    ]
    assert found(wanted, headers(("ratelimit-limit", "6"), *good[1:]), {"headers"}) == ["RateLimit-Limit is 6, not 5"]
    for value in ("0", "61", "-1", "1;w=60", "²", ""):
        assert found(wanted, headers(*good[:2], ("ratelimit-reset", value)), {"headers"}) == [
            f"RateLimit-Reset is {value!r}; it must be 1 to 60"
        ]


def test_metadata_is_compared_in_depth():
    """Placeholders are filled; what is missing, too much or different is named by its path; other keys are free."""
    told = {"domain": "d", "descriptors": [{"entries": ["run=r"], "limit": "any"}], "other": 1}
    wanted = {"domain": "{domain}", "descriptors": [{"entries": ["run={run}"], "limit": "{anything}"}]}

    def differs(**changes):
        answer = {**status(), "dynamic_metadata": {**told, **changes}}
        return found(Expected(statuses=EXPECTED.statuses, metadata=wanted), answer, {"dynamic_metadata"})

    assert differs() == []
    assert differs(domain="e") == ["dynamic_metadata.domain is 'e', not 'd'"]
    assert differs(hitsAddend=2) == ["dynamic_metadata.hitsAddend is set to 2.0; it should not be there"]
    assert differs(descriptors=[]) == ["the length of dynamic_metadata.descriptors is 0, not 1"]
    assert differs(descriptors=[{"limit": 1}]) == ["dynamic_metadata.descriptors[0].entries is not set"]


def test_calls_at_once_are_counted():
    """Of several answers as many must be OK, and none may fail."""
    ok, over = RateLimitResponse(overall_code=1), RateLimitResponse(overall_code=2)
    asked = Asked(domain="d", run="r", now_s=0.0, features=frozenset())
    assert differences(Expected(passes=2), [ok, over, ok], asked) == []
    assert differences(Expected(passes=1), [ok, over, ok], asked) == ["of 3 calls at once 2 are OK, not 1"]
    assert differences(Expected(passes=1), [ok, Fault("UNAVAILABLE", "x")], asked) == [
        "1 of 2 calls failed; the first with UNAVAILABLE 'x'"
    ]
