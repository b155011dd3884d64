"""ShouldRateLimit from bytes to bytes, over tables of configurations and requests."""

from __future__ import annotations

import math

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.descriptor_stats import LimitStats
from sidecar.core.descriptors import DescriptorLimit, RateLimitConfig, Unit
from sidecar.core.limits import Charge, Limit, LimitOutcome, OnFailure, StoreFailure, Verdict
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest, RateLimitResponse
from sidecar.envoy.ratelimit import Answer
from sidecar.envoy.ratelimit_request import DESCRIPTORS_MAX, Asked
from sidecar.envoy.ratelimit_response import Statuses
from sidecar.transport.service import Status
from tests.support.rate_limiting import UNTIL_HOUR_S, Service, descriptor, status


@pytest.fixture
def service(tmp_path):
    return lambda descriptors, on_failure=OnFailure.ERROR: Service(tmp_path, descriptors, on_failure=on_failure)


BASIC = """
  - {key: user, rate_limit: {unit: hour, requests_per_unit: 3, name: users}}
  - {key: none, value: x}
  - {key: blocked, rate_limit: {unit: hour}}
  - {key: free, rate_limit: {unlimited: true, name: free}}
  - {key: shadow, shadow_mode: true, rate_limit: {unit: hour, requests_per_unit: 1}}
  - {key: shared, value: a*, share_threshold: true, rate_limit: {unit: hour, requests_per_unit: 2}}
"""


def test_a_limit_counts_down_and_then_refuses(service):
    """N requests pass with what remains, the next is refused, another value has its own count."""
    basic = service(BASIC)
    seen = [basic.ask("user=u") for _ in range(4)]
    assert [answer.overall_code for answer in seen] == [1, 1, 1, 2]
    limit = {"requests_per_unit": 3, "unit": "HOUR", "name": "users"}
    reset = f"{UNTIL_HOUR_S}s"
    assert status(seen[0]) == {
        "code": "OK",
        "current_limit": limit,
        "limit_remaining": 2,
        "duration_until_reset": reset,
    }
    assert status(seen[3]) == {"code": "OVER_LIMIT", "current_limit": limit, "duration_until_reset": reset}
    assert basic.codes("user=v") == "oo"


def test_a_window_ends_when_it_says(service):
    """A refused caller passes once `duration_until_reset` is over, and a microsecond before it does not."""
    basic = service(BASIC)
    assert basic.codes("user=u", hits=4) == "xx"
    reset_s = basic.ask("user=u").statuses[0].duration_until_reset.seconds
    basic.store.now_us += reset_s * 1_000_000 - 1
    last = basic.ask("user=u")
    assert (last.overall_code, last.statuses[0].duration_until_reset.seconds) == (2, 1)
    basic.store.now_us += 1
    assert basic.codes("user=u") == "oo"


def test_statuses_come_in_the_order_of_the_descriptors(service):
    """Each descriptor has its status; those without a limit are OK and carry none."""
    basic = service(BASIC)
    answer = basic.ask("blocked=1", "none=x", "free=1", "user=u", "nothing=1", "user=u/more=1")
    assert answer.overall_code == RateLimitResponse.OVER_LIMIT
    assert [status(answer, index).get("limit_remaining") for index in range(6)] == [
        None,
        None,
        2**32 - 1,
        2,
        None,
        None,
    ]
    assert [each.code for each in answer.statuses] == [2, 1, 1, 1, 1, 1]
    assert [each.HasField("current_limit") for each in answer.statuses] == [True, False, False, True, False, False]
    assert [each.HasField("duration_until_reset") for each in answer.statuses] == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]


def test_all_counters_are_charged_in_one_call_also_when_one_refuses(service):
    """As in the reference, what is refused counts, and so do the other descriptors of the request."""
    basic = service(BASIC)
    assert [basic.codes("blocked=1", "user=u") for _ in range(4)] == ["xxo", "xxo", "xxo", "xxx"]
    assert [len(charges) for charges, _ in basic.store.calls] == [2, 2, 2, 2]


def test_equal_descriptors_count_one_after_the_other(service):
    """Two equal descriptors take twice from the same counter, in order."""
    answer = service(BASIC).ask("user=u", "user=u", "user=u", "user=u")
    assert [each.limit_remaining for each in answer.statuses] == [2, 1, 0, 0]
    assert [each.code for each in answer.statuses] == [1, 1, 1, 2]


def test_without_limits_the_store_is_not_asked(service):
    """An unlimited, unmatched or unknown descriptor costs no round trip."""
    basic = service(BASIC)
    assert basic.codes("free=1", "none=x", "zzz=1") == "oooo"
    assert basic.ask("user=u", "blocked=1", domain="other").overall_code == RateLimitResponse.OK
    assert basic.store.calls == []


def test_shadow_mode_reports_ok_and_counts(service):
    """A limit in shadow mode never refuses; its status says that nothing remains."""
    basic = service(BASIC)
    assert [basic.codes("shadow=1") for _ in range(3)] == ["oo", "oo", "oo"]
    assert "limit_remaining" not in status(basic.ask("shadow=1"))
    stats = basic.config.stats["d", "shadow"]
    assert (stats.total_hits, stats.within_limit, stats.over_limit, stats.shadow_mode) == (4, 1, 3, 3)


def test_a_shared_threshold_is_shared(service):
    """All values of a shared pattern take from one counter."""
    basic = service(BASIC)
    assert [basic.codes(f"shared=a{number}") for number in range(3)] == ["oo", "oo", "xx"]


@pytest.mark.parametrize(
    ("request_hits", "own_hits", "remaining", "codes"),
    [
        (0, None, 2, "oo"),
        (2, None, 1, "oo"),
        (3, None, 0, "oo"),
        (4, None, 0, "xx"),
        (2, 1, 2, "oo"),
        (2, 0, 3, "oo"),
        (1, 2**32 - 1, 0, "xx"),
        (1, 2**64 - 1, 0, "xx"),
    ],
)
def test_hits_are_the_descriptors_own_or_the_requests_or_one(service, request_hits, own_hits, remaining, codes):
    """A descriptor's addend wins where it is present, even 0; a request's 0 means 1; more than fits is over."""
    basic = service(BASIC)
    asked = {"path": "user=u"} | ({} if own_hits is None else {"hitsAddend": str(own_hits)})
    assert basic.ask(asked, hits=request_hits).statuses[0].limit_remaining == remaining
    again = service(BASIC)
    assert again.codes(asked, hits=request_hits) == codes


def test_a_peek_takes_nothing(service):
    """With 0 hits the answer tells the state: OK at the limit itself, OVER_LIMIT only beyond it."""
    basic = service(BASIC)
    peek = {"path": "user=u", "hitsAddend": "0"}
    assert [basic.codes(peek) for _ in range(5)] == ["oo"] * 5
    basic.ask("user=u", hits=3)
    assert basic.codes(peek) == "oo"
    basic.ask("user=u")
    assert basic.codes(peek) == "xx"


def test_the_largest_limit_is_exceeded_by_one_more(service):
    """A limit of 2^32-1 is a limit: hits that do not fit 32 bits are above it."""
    largest = service("  - {key: k, rate_limit: {unit: day, requests_per_unit: 4294967295}}\n")
    assert largest.codes({"path": "k=1", "hitsAddend": str(2**32 - 1)}) == "oo"
    assert largest.codes({"path": "k=2", "hitsAddend": str(2**32)}) == "xx"
    assert largest.codes("k=1") == "xx"


REPLACES = """
  - {key: a, rate_limit: {unit: hour, requests_per_unit: 1, name: base}}
  - {key: b, rate_limit: {unit: hour, requests_per_unit: 5, name: more, replaces: [{name: base}, {name: other}]}}
  - {key: c, rate_limit: {unlimited: true, name: all, replaces: [{name: base}]}}
"""


@pytest.mark.parametrize(("path", "codes"), [("b=1", "ooo"), ("c=1", "ooo"), ("none=1", "xxo")])
def test_a_replaced_limit_does_not_count(service, path, codes):
    """While another descriptor's limit replaces it, a limit is neither charged nor answered; else it is."""
    replaced = service(REPLACES)
    answers = [replaced.ask("a=1", path) for _ in range(2)]
    assert replaced.codes("a=1", path) == codes
    assert answers[0].statuses[0].HasField("current_limit") == (codes[0] == "x")
    assert replaced.config.stats["d", "a"].total_hits == (3 if codes[0] == "x" else 0)


QUOTA = """
  - {key: q, quota_mode: true, rate_limit: {unit: hour, requests_per_unit: 1}}
  - {key: r, quota_mode: true, rate_limit: {unit: hour, requests_per_unit: 1}}
  - {key: n, rate_limit: {unit: hour, requests_per_unit: 2}}
"""


@pytest.mark.parametrize(
    ("used_up", "asked", "codes"),
    [
        (["q=1"], ["q=1", "r=1"], "oxo"),
        (["q=1", "r=1"], ["q=1", "r=1"], "xxx"),
        (["q=1"], ["q=1"], "xx"),
        (["q=1"], ["q=1", "n=1"], "xxo"),
        (["q=1"], ["q=1", "r=1", "n=1"], "oxoo"),
        (["n=1", "n=1"], ["n=1", "q=1"], "xxo"),
    ],
)
def test_quota_limits_refuse_only_together(service, used_up, asked, codes):
    """The whole is over when any other limit is, or when there are quota limits and all of them are."""
    quota = service(QUOTA)
    quota.ask(*used_up)
    assert quota.codes(*asked) == codes


@pytest.mark.parametrize(
    ("override", "limit", "reset_s"),
    [
        ({"requestsPerUnit": 2, "unit": "HOUR"}, {"requests_per_unit": 2, "unit": "HOUR"}, UNTIL_HOUR_S),
        (
            {"requestsPerUnit": 2, "unit": "MINUTE", "unitMultiplier": 60},
            {"requests_per_unit": 2, "unit": "MINUTE", "unit_multiplier": 60},
            UNTIL_HOUR_S,
        ),
    ],
)
def test_a_request_brings_its_own_limit(service, override, limit, reset_s):
    """An override needs no configured descriptor, only a known domain, and is never in shadow."""
    basic = service(BASIC)
    asked = {"path": "shadow=1/unheard=of", "limit": override}
    answer = basic.ask(asked)
    assert status(answer)["current_limit"] == limit
    assert answer.statuses[0].duration_until_reset.seconds == reset_s
    assert [basic.codes(asked) for _ in range(2)] == ["oo", "xx"]
    assert basic.ask(asked, domain="other").overall_code == RateLimitResponse.OK
    assert basic.config.stats["d", "(override)"].total_hits == 3


UNITS = "SECOND (1), MINUTE (2), HOUR (3), DAY (4), MONTH (5), YEAR (6) are accepted"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"requestsPerUnit": 1}, f"0 is not the unit of a rate limit; {UNITS}"),
        ({"unit": 7}, f"7 is not the unit of a rate limit; {UNITS}"),
        ({"unit": 99}, f"99 is not the unit of a rate limit; {UNITS}"),
        ({"unit": -1}, f"-1 is not the unit of a rate limit; {UNITS}"),
        ({"unit": 1, "unitMultiplier": 0}, "a window of 0 SECOND is not accepted; from 1 SECOND to 366 days are"),
        ({"unit": 6, "unitMultiplier": 2}, "a window of 2 YEAR is not accepted; from 1 SECOND to 366 days are"),
    ],
)
def test_an_override_without_a_window_is_invalid(service, override, message):
    """What crashes the reference is an error that names the accepted units, and charges nothing."""
    basic = service(BASIC)
    assert basic.ask("user=u", {"path": "user=u", "limit": override}) == (Status.INVALID_ARGUMENT, message)
    assert basic.store.calls == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"\x0a\x05abc", (Status.INVALID_ARGUMENT, "the message is not a RateLimitRequest")),
        (b"\x0a\x01\xff", (Status.INVALID_ARGUMENT, "the message is not a RateLimitRequest")),
        (b"", (Status.INVALID_ARGUMENT, "rate limit domain must not be empty")),
        (b"\x12\x00", (Status.INVALID_ARGUMENT, "rate limit domain must not be empty")),
        (b"\x0a\x01d", (Status.INVALID_ARGUMENT, "rate limit descriptor list must not be empty")),
    ],
)
def test_a_request_that_cannot_be_decided_is_invalid(service, message, expected):
    """Bytes that are no request, no domain, no descriptors: errors, and events without a domain."""
    basic = service(BASIC)
    assert basic.send(message) == expected
    assert [(event.domain, event.answer) for event in basic.events] == [(None, Answer.INVALID)]


def test_the_number_of_descriptors_is_bounded(service):
    """The stated number of descriptors is answered, one more is invalid."""
    basic = service(BASIC)
    assert len(basic.ask(*["user=u"] * DESCRIPTORS_MAX).statuses) == DESCRIPTORS_MAX
    assert basic.ask(*["user=u"] * (DESCRIPTORS_MAX + 1)) == (
        Status.INVALID_ARGUMENT,
        f"{DESCRIPTORS_MAX + 1} descriptors in one request; at most {DESCRIPTORS_MAX} are accepted",
    )


def test_a_refund_gives_back_and_is_never_refused(service):
    """`is_negative_hits` gives back what was taken, down to nothing taken, and answers OK whatever the count is."""
    basic = service(BASIC)
    refund = {"path": "user=u", "isNegativeHits": True}
    assert basic.ask("user=u", hits=5).overall_code == RateLimitResponse.OVER_LIMIT
    assert basic.codes(refund) == "oo"
    assert basic.ask({**refund, "hitsAddend": "2"}).statuses[0].limit_remaining == 1
    assert basic.ask(refund, hits=100).statuses[0].limit_remaining == 3
    assert [basic.codes("user=u") for _ in range(4)] == ["oo", "oo", "oo", "xx"]
    stats = basic.config.stats["d", "user"]
    assert (stats.total_hits, stats.total_negative_hits) == (9, 103)


def test_a_refund_where_no_limit_applies_is_ok(service):
    """There is nothing to give back to, and nothing is charged."""
    basic = service(BASIC)
    assert basic.codes({"path": "none=x", "isNegativeHits": True}, {"path": "free=x", "isNegativeHits": True}) == "ooo"
    assert basic.store.calls == []


def test_no_configuration_is_an_error(service):
    """Where not one domain is configured, nobody is told OK."""
    basic = service(BASIC)
    basic.config = RateLimitConfig({})
    assert basic.ask("user=u") == (Status.FAILED_PRECONDITION, "no rate limit configuration loaded")


@pytest.mark.parametrize(
    ("on_failure", "expected"),
    [
        (OnFailure.ERROR, (Status.UNAVAILABLE, "the counters cannot be read: timeout")),
        (OnFailure.DENY, "xxoo"),
        (OnFailure.ALLOW, "oooo"),
        (OnFailure.LOCAL, "oooo"),
    ],
)
def test_the_policy_says_what_an_answer_is_without_redis(service, on_failure, expected):
    """Error leaves it to Envoy; deny refuses what has a limit that enforces; allow and local let pass."""
    basic = service(BASIC, on_failure)
    basic.store.failure = StoreFailure.TIMEOUT
    asked = ["user=u", "shadow=1", "none=x"]
    assert (basic.ask(*asked) if on_failure is OnFailure.ERROR else basic.codes(*asked)) == expected
    [event] = basic.events
    assert event.failure is StoreFailure.TIMEOUT
    assert event.local == (on_failure is OnFailure.LOCAL)
    assert event.answer is {"x": Answer.OVER_LIMIT, "o": Answer.OK}.get(expected[0], Answer.ERROR)


def test_without_redis_a_limit_goes_on_in_this_process(service):
    """Under `local` the process counts by itself, as strictly as Redis would; if it cannot, the answer is an error."""
    basic = service(BASIC, OnFailure.LOCAL)
    basic.store.failure = StoreFailure.CIRCUIT_OPEN
    assert [basic.codes("user=u") for _ in range(4)] == ["oo", "oo", "oo", "xx"]
    basic.local_store.failure = StoreFailure.OVERLOADED
    assert basic.ask("user=u") == (Status.UNAVAILABLE, "the counters cannot be read: overloaded")


def test_without_counts_no_numbers_are_told(service):
    """Allowed without Redis, a status does not pretend to know what remains; denied, it names the limit."""
    allowed = service(BASIC, OnFailure.ALLOW)
    allowed.store.failure = StoreFailure.UNREACHABLE
    assert status(allowed.ask("user=u")) == {"code": "OK"}
    denied = service(BASIC, OnFailure.DENY)
    denied.store.failure = StoreFailure.UNREACHABLE
    limit = {"requests_per_unit": 3, "unit": "HOUR", "name": "users"}
    assert status(denied.ask("user=u")) == {"code": "OVER_LIMIT", "current_limit": limit}
    assert denied.config.stats["d", "user"].total_hits == 0


def test_a_request_sees_one_configuration(service):
    """A reload while the store is counting does not change what the request is answered from."""
    basic = service(BASIC)
    waiting = []
    basic.store.charge = lambda charges, deadline, done: waiting.append((charges, deadline, done))
    assert basic.ask("user=u", "shadow=1") is None
    basic.config = service("  - {key: other}\n").config
    [(charges, deadline, done)] = waiting
    assert deadline == math.inf
    done(Verdict(False, tuple(LimitOutcome(charge.limit, False, 9, 0, 5, 5) for charge in charges)))
    [event] = basic.events
    assert (event.domain, event.answer, event.descriptors, event.over_limit) == ("d", Answer.OVER_LIMIT, 2, 1)


def test_events_name_configured_domains_only(service):
    """What a request calls its domain is no label unless it is configured."""
    basic = service(BASIC)
    basic.ask("user=u")
    basic.ask("user=u", domain="x" * 100)
    assert [(event.domain, event.answer, event.local) for event in basic.events] == [
        ("d", Answer.OK, False),
        (None, Answer.OK, False),
    ]
    assert all(event.latency_s >= 0 for event in basic.events)


VALID = ParseDict(
    {
        "domain": "d",
        "hitsAddend": 3,
        "descriptors": [
            descriptor("user=u"),
            descriptor({"path": "a=b/c=d", "limit": {"requestsPerUnit": 9, "unit": "DAY"}, "hitsAddend": "2"}),
        ],
    },
    RateLimitRequest(),
).SerializeToString()


@given(st.data())
def test_any_bytes_end_in_one_answer(tmp_path_factory, data):
    """Whatever arrives, also nearly right, the call is answered once: with a response, or as an invalid request."""
    start = data.draw(st.integers(0, len(VALID)))
    end = data.draw(st.integers(start, len(VALID)))
    message = VALID[:start] + data.draw(st.binary(max_size=6)) + VALID[end:]
    basic = Service(tmp_path_factory.mktemp("d"), BASIC)
    answer = basic.send(message)
    assert isinstance(answer, RateLimitResponse) or answer[0] is Status.INVALID_ARGUMENT
    assert len(basic.events) == 1


UINT32 = st.integers(0, 2**32 - 1)


@given(
    requests=UINT32,
    unit=st.sampled_from(list(Unit)),
    name=st.text(max_size=200),
    multiplier=st.integers(1, 366),
    outcome=st.tuples(st.booleans(), UINT32, st.integers(0, 366 * 86_400 * 10**6)),
)
def test_a_status_reads_as_it_was_meant(requests, unit, name, multiplier, outcome):
    """The joined fragments are the message that protobuf would have written, for any limit and outcome."""
    allowed, remaining, reset_us = outcome
    limit = Limit(name="", requests=requests, window_us=1000)
    compiled = DescriptorLimit(limit=limit, unit=unit, unit_multiplier=multiplier, name=name, stats=LimitStats("", ""))
    expected = RateLimitResponse(overall_code=RateLimitResponse.OK if allowed else RateLimitResponse.OVER_LIMIT)
    each = expected.statuses.add(code=expected.overall_code, limit_remaining=remaining)
    each.current_limit.requests_per_unit = requests
    each.current_limit.unit = unit
    each.current_limit.name = name
    if multiplier != 1:
        each.current_limit.unit_multiplier.value = multiplier
    if reset_us:
        each.duration_until_reset.seconds = math.ceil(reset_us / 1e6)
    asked = Asked(b"", compiled, compiled.stats, Charge(limit, b""))
    statuses = Statuses([asked], [LimitOutcome(limit, allowed, 0, remaining, 0, reset_us)])
    assert RateLimitResponse.FromString(statuses.response) == expected
    assert statuses.is_over_limit != allowed


def test_a_key_with_a_figure_of_its_own_tells_it(service):
    """Where an operator gave one key another figure, `current_limit` of its statuses has it, and only of its."""
    basic = service(BASIC)
    [asked, other] = [Asked(b"", limit, limit.stats, Charge(limit.limit, b"")) for limit in two_limits(basic)]
    raised = Limit(name="", requests=50, window_us=asked.limit.limit.window_us)
    for outcome, expected in (
        (LimitOutcome(raised, True, 1, 49, 0, 0), 50),
        (LimitOutcome(asked.limit.limit, True, 1, 2, 0, 0), 3),
        (LimitOutcome(raised, True, 1, 49, 0, 0), 50),
    ):
        outcomes = [outcome, LimitOutcome(other.limit.limit, True, 0, 0, 0, 0)]
        answer = RateLimitResponse.FromString(Statuses([asked, other], outcomes).response)
        assert [each.current_limit.requests_per_unit for each in answer.statuses] == [expected, 0]


def two_limits(basic):
    limits = {limit.stats.limit: limit for limit in basic.config.domains["d"].limits}
    return limits["user"], limits["blocked"]
