"""What the reference has behind switches: names of statistics, headers, metadata, the global modes; and settling."""

from __future__ import annotations

import copy

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.descriptor_stats import NAMED_MAX, OTHER
from sidecar.core.descriptors import Counting, HeaderNames
from sidecar.core.limits import Algorithm, Charge, Limit, OnFailure, Op, StoreFailure, counter_key
from sidecar.core.reservations import Held, Reservation, encode
from sidecar.envoy.ratelimit import Answer
from sidecar.envoy.ratelimit_response import SHADOW_CHARS_MAX, merge
from sidecar.envoy.settling import CHARGES_MAX
from sidecar.transport.service import Status
from tests.support.rate_limiting import NOW_US, UNTIL_HOUR_S, Service, status


@pytest.fixture
def service(tmp_path):
    return lambda descriptors, **options: Service(tmp_path, descriptors, **options)


HOURLY = "rate_limit: {unit: hour, requests_per_unit: 2}"
NAMES = f"""
  - key: path
    value: /a*
    value_to_metric: true
    descriptors:
      - {{key: user, {HOURLY}}}
      - {{key: who, value_to_metric: true, {HOURLY}}}
      - {{key: all, detailed_metric: true, {HOURLY}}}
  - key: shared
    value: s*
    share_threshold: true
    value_to_metric: true
    descriptors:
      - {{key: all, value: x, detailed_metric: true, {HOURLY}}}
      - {{key: user, {HOURLY}}}
  - {{key: exact, value: one, detailed_metric: true, {HOURLY}}}
  - {{key: quiet, value: q*, {HOURLY}}}
"""


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("path=/ab/user=u", "path_/ab.user"),
        ("path=/ab/who=u", "path_/ab.who_u"),
        ("path=/ab/all=u", "path_/ab.all_u"),
        ("shared=sx/all=x", "shared_s*.all_x"),
        ("shared=sx/user=u", "shared_s*.user"),
        ("exact=one", "exact_one"),
        ("quiet=qx", "quiet_q*"),
    ],
)
def test_statistics_are_named_as_the_metric_flags_say(service, asked, name):
    """Values of requests are in a name where a flag asks for them, and a shared pattern stands for its values."""
    named = service(NAMES)
    path = asked.replace("path=/ab/", "path=%/")
    entries = [part.replace("%", "/ab").split("=") for part in path.split("/") if part]
    asked = {"path": "", "entries": [{"key": key, "value": value} for key, value in entries]}
    named.ask(asked)
    counted = {stats.limit for stats in named.config.stats.values() if stats.total_hits}
    assert counted == {name}


def test_names_with_values_are_bounded(service):
    """The stated number of names is kept apart; all further ones are counted together, and nothing is lost."""
    named = service(f"  - {{key: user, detailed_metric: true, {HOURLY}}}\n")
    for number in range(NAMED_MAX + 2):
        named.ask(f"user={number}")
    named.ask("user=0")
    counted = {stats.limit: stats.total_hits for stats in named.config.stats.values() if stats.total_hits}
    assert len(counted) == NAMED_MAX + 1
    assert (counted["user_0"], counted[OTHER]) == (2, 2)


def test_names_with_values_are_kept_over_a_reload(service):
    """They count on, and count against the bound, as long as their domain is there."""
    first = service(f"  - {{key: user, detailed_metric: true, {HOURLY}}}\n")
    first.ask("user=u")
    second = service(f"  - {{key: user, detailed_metric: true, {HOURLY}}}\n")
    second.config.continue_from(first.config)
    second.ask("user=u")
    assert second.config.stats["d", "user_u"].total_hits == 2


MODES = """
  - {key: a, rate_limit: {unit: hour, requests_per_unit: 1}}
  - {key: b, rate_limit: {unit: hour, requests_per_unit: 1}}
  - {key: s, shadow_mode: true, rate_limit: {unit: hour, requests_per_unit: 1}}
  - {key: free, rate_limit: {unlimited: true}}
"""


def test_the_global_shadow_mode_changes_the_overall_code_only(service):
    """Statuses and statistics are as ever; the event tells what would have been."""
    shadow = service(MODES, shadow_mode=True)
    assert [shadow.codes("a=1", "b=1") for _ in range(2)] == ["ooo", "oxx"]
    assert [(event.answer, event.over_limit) for event in shadow.events] == [(Answer.OK, 0), (Answer.SHADOWED, 2)]
    assert shadow.config.stats["d", "a"].over_limit == 1
    assert shadow.config.stats["d", "a"].shadow_mode == 0


def test_in_the_global_quota_mode_all_limits_refuse_together(service):
    """As if each limit said quota_mode: true; what has no limit is not over it, what is unlimited does not count."""
    quota = service(MODES, quota_mode=True)
    quota.ask("a=1")
    assert quota.codes("a=1", "b=1") == "oxo"
    assert quota.codes("a=1", "b=1") == "xxx"
    assert quota.codes("a=1", "nothing=1") == "oxo"
    assert quota.codes("a=1", "free=1") == "xxo"


LIMITS = """
  - {key: ten, rate_limit: {unit: hour, requests_per_unit: 10}}
  - {key: two, rate_limit: {unit: day, requests_per_unit: 2}}
  - {key: zwei, rate_limit: {unit: hour, requests_per_unit: 2}}
  - {key: quota, quota_mode: true, rate_limit: {unit: hour, requests_per_unit: 0}}
  - {key: one, rate_limit: {unit: minute, requests_per_unit: 1}}
  - {key: shadow, shadow_mode: true, rate_limit: {unit: hour, requests_per_unit: 0}}
  - {key: most, rate_limit: {unit: hour, requests_per_unit: 4294967295}}
  - {key: free, rate_limit: {unlimited: true}}
"""
UNTIL_DAY_S = 86_400 - NOW_US // 1_000_000 % 86_400
UNTIL_MINUTE_S = 60 - NOW_US // 1_000_000 % 60


def headers(answer):
    return {header.key: header.value for header in answer.response_headers_to_add}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["ten=1"], (10, 9, UNTIL_HOUR_S)),
        (["ten=1", "two=1"], (2, 1, UNTIL_DAY_S)),
        (["two=1", "zwei=1"], (2, 1, UNTIL_DAY_S)),
        (["zwei=1", "two=1"], (2, 1, UNTIL_HOUR_S)),
        (["one=1", "one=1", "two=1"], (1, 0, UNTIL_MINUTE_S)),
        (["ten=1", "quota=1"], (0, 0, UNTIL_HOUR_S)),
        (["quota=1", "one=1", "one=1"], (1, 0, UNTIL_MINUTE_S)),
        (["one=1", "one=1", "quota=1"], (1, 0, UNTIL_MINUTE_S)),
        (["ten=1", "shadow=1"], (0, 0, UNTIL_HOUR_S)),
        ([{"path": "one=1", "hitsAddend": "2"}, {"path": "two=1", "hitsAddend": "3"}], (2, 0, UNTIL_DAY_S)),
        ([{"path": "most=1", "hitsAddend": "0"}], None),
        (["free=1", "none=1"], None),
        (["free=1", "ten=1"], (10, 9, UNTIL_HOUR_S)),
    ],
)
def test_headers_tell_the_tightest_limit(service, asked, expected):
    """The least remaining, the first of equals; the last enforced refusal goes before; unlimited ones do not count."""
    limits = service(LIMITS, response_headers=HeaderNames())
    names = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
    told = dict(zip(names, map(str, expected), strict=True)) if expected else {}
    assert headers(limits.ask(*asked)) == told


def test_headers_have_the_names_that_are_chosen(service):
    """All three can be named."""
    limits = service(LIMITS, response_headers=HeaderNames("x-limit", "x-remaining", "x-reset"))
    assert headers(limits.ask("ten=1")) == {"x-limit": "10", "x-remaining": "9", "x-reset": str(UNTIL_HOUR_S)}


def test_a_shadow_decision_shows_in_a_header(service):
    """The limits that would have refused are listed, whether they are in shadow by themselves or all are."""
    own = service(MODES, shadow_header="x-shadow")
    seen = [headers(own.ask("s=1", "a=1")) for _ in range(2)]
    assert seen == [{}, {"x-shadow": "s"}]
    everything = service(MODES, shadow_header="x-shadow", shadow_mode=True)
    seen = [headers(everything.ask("a=1", "s=1", "b=2", "a=1")) for _ in range(2)]
    assert seen == [{"x-shadow": "a"}, {"x-shadow": "a, s, b"}]


def test_a_shadow_header_is_a_header_whatever_is_asked(service):
    """It has the names that are configured, in printable ASCII, and is cut; no value of a request is in it."""
    rule = "shadow_mode: true, detailed_metric: true, rate_limit: {{unit: hour}}"
    rules = "".join(f"  - {{key: k{number:03}-{'x' * 40}\u00e4, {rule}}}\n" for number in range(30))
    shadow = service(rules.replace("{{", "{").replace("}}", "}"), shadow_header="x-shadow")
    asked = [f"k{number:03}-{'x' * 40}\u00e4=a\r\nset-cookie: b" for number in range(30)]
    [told] = headers(shadow.ask(*asked[:1])).values()
    assert told == f"k000-{'x' * 40}?"
    [told] = headers(shadow.ask(*asked)).values()
    assert (len(told), told[:48]) == (SHADOW_CHARS_MAX, f"k000-{'x' * 40}?, ")


METADATA = """
  - {key: a, rate_limit: {unit: hour, requests_per_unit: 2}, metadata: {tier: {name: gold, n: 1}, list: [1, {x: ~}]}}
  - key: b
    detailed_metric: true
    rate_limit: {unit: hour, requests_per_unit: 2}
    metadata: {tier: {name: other, more: true}, list: [2], b: 1.5}
  - {key: c, rate_limit: {unit: hour, requests_per_unit: 0}, metadata: {c: never}}
  - {key: s, shadow_mode: true, rate_limit: {unit: hour, requests_per_unit: 0}, metadata: {s: yes}}
  - {key: v, value_to_metric: true, rate_limit: {unit: hour, requests_per_unit: 2}, metadata: {v: 1}}
  - {key: free, rate_limit: {unlimited: true}, metadata: {free: never}}
"""


def metadata(answer):
    return MessageToDict(answer.dynamic_metadata)


def test_dynamic_metadata_tells_what_was_asked_and_what_passed(service):
    """The request, and the metadata of the limits that passed, deeply merged, the first to write a value winning."""
    described = service(METADATA, response_dynamic_metadata=True)
    limit = {"requestsPerUnit": 5, "unit": "HOUR"}
    asked = ["a=1", {"path": "b=1", "hitsAddend": "0"}, "c=1", {"path": "x=1/y=2", "limit": limit}, "free=1", "v=1"]
    assert metadata(described.ask(*asked, hits=2)) == {
        "domain": "d",
        "hitsAddend": 2,
        "descriptors": [
            {"entries": ["a=1"]},
            {"entries": ["b=1"], "hitsAddend": 0},
            {"entries": ["c=1"]},
            {"entries": ["x=1", "y=2"], "limit": "requests_per_unit: 5 unit: HOUR"},
            {"entries": ["free=1"]},
            {"entries": ["v=1"]},
        ],
        "metadata": {
            "tier": {"name": "gold", "n": 1, "more": True},
            "list": [1, {"x": None}],
            "b": 1.5,
            "v": 1,
        },
    }


def test_dynamic_metadata_never_leaks_into_the_next_answer(service):
    """Merging changes nothing that is configured: each order of descriptors gives its own result, again and again."""
    described = service(METADATA, response_dynamic_metadata=True)
    before = copy.deepcopy([limit.metadata for limit in described.config.domains["d"].limits])
    for _ in range(2):
        described.ask("a=1", "b=1")
    peek = [{"path": "b=1", "hitsAddend": "0"}, {"path": "a=1", "hitsAddend": "0"}]
    assert metadata(described.ask(*peek))["metadata"]["tier"] == {"name": "other", "more": True, "n": 1}
    assert [limit.metadata for limit in described.config.domains["d"].limits] == before


def test_dynamic_metadata_tells_shadow_decisions(service):
    """A limit in shadow passes, so its metadata is there; and it is named, since it would have refused."""
    described = service(METADATA, response_dynamic_metadata=True)
    told = metadata(described.ask("s=1", "a=1"))
    assert told["shadow"] == ["s"]
    assert told["metadata"] == {"s": True, "tier": {"name": "gold", "n": 1}, "list": [1, {"x": None}]}


def test_dynamic_metadata_of_a_domain_that_is_not_configured(service):
    """It tells what was asked."""
    described = service(METADATA, response_dynamic_metadata=True)
    assert metadata(described.ask("a=1", domain="other")) == {"domain": "other", "descriptors": [{"entries": ["a=1"]}]}


JSON = st.recursive(st.integers(0, 3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=6)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), JSON), max_size=4))
def test_the_first_writer_wins_at_every_depth(written):
    """Each place of the merged whole is what the first mapping has there that reaches it; none of them is changed."""
    before, merged = copy.deepcopy(written), {}
    for each in written:
        merge(merged, each)
    assert written == before
    check_first_wins(merged, written)


def check_first_wins(merged, written):
    assert merged.keys() == set().union(*written)
    for key, value in merged.items():
        having = [each[key] for each in written if key in each]
        if isinstance(having[0], dict):
            check_first_wins(value, [each for each in having if isinstance(each, dict)])
        else:
            assert value == having[0]


@pytest.mark.parametrize(
    ("ratio", "requests", "near"), [(0.8, 10, 8), (0.5, 3, 1), (0.7, 10, 7), (1, 5, 5), (0, 5, 0), (0.8, 1, 0)]
)
def test_the_near_limit_ratio_is_a_setting(service, ratio, requests, near):
    """In single precision and rounded down, as the reference computes it."""
    rule = f"  - {{key: k, rate_limit: {{unit: hour, requests_per_unit: {requests}}}}}\n"
    near_limit = service(rule, near_limit_ratio=ratio)
    for _ in range(requests):
        near_limit.ask("k=1")
    assert near_limit.config.stats["d", "k"].near_limit == requests - near


def test_another_algorithm_takes_from_all_limits_or_from_none(service):
    """With an algorithm that does not count refusals, a request that one limit refuses takes nothing from others."""
    sliding = service(LIMITS, algorithms={"d": Counting(algorithm=Algorithm.SLIDING_WINDOW)})
    assert [sliding.codes("one=1", "ten=1") for _ in range(3)] == ["ooo", "xxo", "xxo"]
    assert sliding.ask({"path": "ten=1", "hitsAddend": "0"}).statuses[0].limit_remaining == 9


def test_a_limit_in_shadow_or_quota_mode_takes_nothing_from_others(service):
    """What does not refuse by itself must not keep the others of a request from being counted."""
    sliding = service(LIMITS, algorithms={"d": Counting(algorithm=Algorithm.SLIDING_WINDOW)})
    assert [sliding.codes("shadow=1", "quota=1", "ten=1") for _ in range(2)] == ["xoxo", "xoxo"]
    assert sliding.ask({"path": "ten=1", "hitsAddend": "0"}).statuses[0].limit_remaining == 8


def test_concurrency_is_ended_by_a_refund(service):
    """As many requests at once as the limit says; each that ends makes room for one."""
    rule = "  - {key: k, rate_limit: {unit: minute, requests_per_unit: 2}}\n"
    running = service(rule, algorithms={"d": Counting(algorithm=Algorithm.CONCURRENCY)})
    assert [running.codes("k=1") for _ in range(3)] == ["oo", "oo", "xx"]
    assert running.codes({"path": "k=1", "isNegativeHits": True}) == "oo"
    assert [running.codes("k=1") for _ in range(2)] == ["oo", "xx"]
    holds = {charge.hold for charges, _ in running.store.calls for charge in charges if charge.op is Op.TAKE}
    assert len(holds) == 5


TOKENS = Limit(name="tokens", requests=100, window_us=3_600_000_000, hold_us=60_000_000)


@pytest.fixture
def reserved(service):
    """A service, and the name of a reservation of 60 tokens that was taken of its limit."""
    settling = service(MODES)
    settling.held_limits = {"tokens": TOKENS}
    key = counter_key(b"test:tokens:", ["u"])
    settling.store.charge([Charge(TOKENS, key, 60, hold=7)], 0, lambda _verdict: None)
    settling.store.calls.clear()
    return settling, encode(Reservation(7, (Held("tokens", key),)))


def remaining(settling):
    found = []
    settling.store.charge([Charge(TOKENS, counter_key(b"test:tokens:", ["u"]), 0)], 0, found.append)
    return found[0].outcomes[0].remaining


@pytest.mark.parametrize(
    ("request_hits", "fields", "left"),
    [
        (25, {}, 75),
        (0, {}, 99),
        (25, {"hitsAddend": "0"}, 100),
        (25, {"hitsAddend": "40"}, 60),
        (25, {"isNegativeHits": True}, 100),
        (0, {"hitsAddend": "300"}, 0),
    ],
)
def test_a_reservation_is_settled(reserved, request_hits, fields, left):
    """The hold ends, and the hits count in its place; or nothing does. The answer is OK and tells what remains."""
    settling, name = reserved
    assert remaining(settling) == 40
    answer = settling.ask({"path": f"reservation={name}", **fields}, domain="sidecar", hits=request_hits)
    assert answer.overall_code == 1
    told = status(answer)
    assert (told["code"], told.get("limit_remaining", 0)) == ("OK", left)
    assert remaining(settling) == left
    assert settling.events[-1].answer is Answer.OK


KEY = counter_key(b"test:tokens:", ["u"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("reservation=x", "not a reservation's name: it has a length that no value has"),
        ("other=x", "a descriptor of the domain sidecar has one entry, reservation=<its name>"),
        ("", "a descriptor of the domain sidecar has one entry, reservation=<its name>"),
        (
            f"reservation={encode(Reservation(1, (Held('other', KEY),)))}",
            "the reservation is of a limit that the policy does not have (any more)",
        ),
        *(
            (
                f"reservation={encode(Reservation(1, (Held('tokens', key),)))}",
                "not a reservation's name: it holds what is no counter of a limit here",
            )
            for key in (b"x", b"other" + KEY[4:], KEY + b":s1", counter_key(b"test:rl/d:", ["u"]), KEY + b"\n")
        ),
    ],
)
def test_what_is_no_reservation_is_invalid(reserved, path, message):
    """It is refused with what was wrong, and no counter is touched."""
    settling, name = reserved
    answer = settling.ask(f"reservation={name}", path, domain="sidecar")
    assert answer == (Status.INVALID_ARGUMENT, message)
    assert settling.store.calls == []


def test_settled_holds_are_bounded(reserved):
    """As many holds as a store takes charges at once, and not one more."""
    settling, name = reserved
    assert settling.ask(*[f"reservation={name}"] * CHARGES_MAX, domain="sidecar").overall_code == 1
    two = encode(Reservation(1, (Held("tokens", KEY), Held("tokens", counter_key(b"test:tokens:", ["v"])))))
    answer = settling.ask(*[f"reservation={two}"] * (CHARGES_MAX // 2), f"reservation={name}", domain="sidecar")
    assert answer == (Status.INVALID_ARGUMENT, f"more than {CHARGES_MAX} holds in one request")


def test_without_limits_that_reserve_the_domain_is_like_any_other(service):
    """Where the policy reserves nothing, the name is not taken away from anyone."""
    plain = service(MODES)
    assert plain.codes("reservation=x") == "oo"
    assert plain.ask("reservation=x", domain="sidecar").overall_code == 1


@pytest.mark.parametrize(
    ("on_failure", "code"), [(OnFailure.ERROR, None), (OnFailure.DENY, 1), (OnFailure.ALLOW, 1), (OnFailure.LOCAL, 1)]
)
def test_settling_without_redis(service, on_failure, code):
    """There is nothing to refuse; only where the policy says so is it an error."""
    settling = service(MODES, on_failure=on_failure)
    settling.held_limits = {"tokens": TOKENS}
    settling.store.failure = StoreFailure.UNREACHABLE
    answer = settling.ask(f"reservation={encode(Reservation(1, (Held('tokens', KEY),)))}", domain="sidecar")
    assert (answer[0] is Status.UNAVAILABLE) if code is None else answer.overall_code == code
