"""Which limit applies to a descriptor, against tables and against a naive matcher."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.descriptors import (
    OVERRIDES_MAX,
    Counting,
    DescriptorLimit,
    DescriptorRule,
    Domain,
    RateLimitConfig,
    RateLimitOptions,
    RateLimitRule,
    Unit,
)
from sidecar.core.limits import WINDOW_US_MAX, Algorithm, Charge, LimitOutcome, Source

if TYPE_CHECKING:
    from sidecar.core.descriptor_stats import LimitStats


@dataclass(frozen=True)
class Entry:
    key: str
    value: str


def entries(*pairs: tuple[str, str]) -> list[Entry]:
    return [Entry(*pair) for pair in pairs]


def limit(name: str, requests: int = 10, unit: Unit = Unit.MINUTE) -> RateLimitRule:
    return RateLimitRule(unit=unit, requests_per_unit=requests, name=name)


def leaf(key: str, value: str = "", name: str = "", **more: bool) -> DescriptorRule:
    return DescriptorRule(key=key, value=value, rate_limit=limit(name or f"{key}={value}"), **more)


def inner(key: str, value: str, *children: DescriptorRule, **more: bool) -> DescriptorRule:
    return DescriptorRule(key=key, value=value, descriptors=children, **more)


TREE = Domain(
    "d",
    [
        leaf("exact", "one"),
        leaf("exact", "o*"),
        leaf("exact"),
        leaf("glob", "a*c"),
        leaf("glob", "a*"),
        leaf("glob", "*z*"),
        inner("allowed", "yes"),
        leaf("allowed"),
        inner("path", "/x", leaf("user", "root"), leaf("user")),
        inner("path", "", leaf("user", name="any path")),
        DescriptorRule(key="both", rate_limit=limit("both"), descriptors=(leaf("below"),)),
        leaf("a_b", "c", name="a_b=c"),
        leaf("star*", "", name="star"),
        leaf("star_key", "*y", name="later"),
        leaf("starx", "", name="bare"),
        leaf("empty", "*", name="empty"),
    ],
)


@pytest.mark.parametrize(
    ("descriptor", "name"),
    [
        ([("exact", "one")], "exact=one"),
        ([("exact", "onerous")], "exact=o*"),
        ([("exact", "two")], "exact="),
        ([("exact", "")], "exact="),
        ([("EXACT", "one")], None),
        ([("glob", "abc")], "glob=a*c"),
        ([("glob", "ac")], "glob=a*c"),
        ([("glob", "ab")], "glob=a*"),
        ([("glob", "a*")], "glob=a*"),
        ([("glob", "bzb")], "glob=*z*"),
        ([("glob", "b")], None),
        ([("allowed", "yes")], None),
        ([("allowed", "no")], "allowed="),
        ([("path", "/x"), ("user", "root")], "user=root"),
        ([("path", "/x"), ("user", "u")], "user="),
        ([("path", "/y"), ("user", "root")], "any path"),
        ([("path", "/x"), ("nobody", "u")], None),
        ([("user", "root"), ("path", "/x")], None),
        ([("path", "/x")], None),
        ([("exact", "one"), ("exact", "one")], None),
        ([("both", "b")], "both"),
        ([("both", "b"), ("below", "b")], "below="),
        ([("both", "b"), ("other", "b")], None),
        ([("a", "b_c")], None),
        ([("a_b", "c")], "a_b=c"),
        ([("starx", "1")], "star"),
        ([("star_key", "xy")], "star"),
        ([("star", "")], "star"),
        ([("empty", "")], "empty"),
        ([("empty", "x")], "empty"),
        ([], None),
    ],
)
def test_one_limit_or_none_applies(descriptor, name):
    """Exact before pattern before bare key, at each level, without turning back, at the limit's own depth only."""
    found = TREE.find(entries(*descriptor))
    assert (found.name if found else None) == name


def naive_find(rules, path):
    """The documented order, tried rule by rule with regular expressions."""
    level, rule = rules, None
    for key, value in path:
        candidates = [r for r in level if r.key == key and r.value == value and r.value]
        candidates += [
            r
            for r in level
            if ("*" in r.key and glob(r.composite, f"{key}_{value}"))
            or ("*" not in r.key and "*" in r.value and r.key == key and glob(r.value, value))
        ]
        candidates += [r for r in level if r.key == key and not r.value]
        if not candidates:
            return None
        rule = candidates[0]
        level = rule.descriptors
    return rule.rate_limit if rule else None


def glob(pattern, text):
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None


SHORT = st.text(alphabet="ab*", min_size=1, max_size=4)
KEYS = st.sampled_from(["a", "b", "a*", "*b"])


def unique(rules):
    return tuple({rule.composite: rule for rule in rules}.values())


RULES = st.recursive(
    st.builds(leaf, KEYS, st.just("") | SHORT).map(lambda rule: (rule,)),
    lambda deeper: st.lists(
        st.builds(
            DescriptorRule,
            key=KEYS,
            value=st.just("") | SHORT,
            rate_limit=st.none() | SHORT.map(limit),
            descriptors=deeper,
        ),
        max_size=8,
    ).map(unique),
    max_leaves=12,
)


@given(RULES, st.lists(st.tuples(st.sampled_from(["a", "b", "ab"]), st.text("ab*", max_size=4)), max_size=3))
def test_the_compiled_tree_agrees_with_the_naive_matcher(rules, path):
    """Indexes change what matching costs, never what it finds."""
    expected = naive_find(rules, path)
    found = Domain("d", rules).find(entries(*path))
    assert (found.name if found else None) == (expected.name if expected else None)


@given(SHORT, st.text("abc", max_size=12))
def test_a_pattern_matches_what_its_regular_expression_matches(pattern, value):
    """Each star stands for any run of characters, also an empty one; all others for themselves."""
    domain = Domain("d", [leaf("k", f"*{pattern}")])
    assert (domain.find(entries(("k", value))) is not None) == glob(f"*{pattern}", value)


def key(domain, *pairs):
    found = domain.find(entries(*pairs))
    assert found is not None
    return domain.counter_key(b"p:", found, entries(*pairs))


def test_each_value_has_its_own_counter():
    """A bare key and a pattern limit each value that is seen by itself."""
    assert key(TREE, ("exact", "x")) != key(TREE, ("exact", "y"))
    assert key(TREE, ("glob", "a1")) != key(TREE, ("glob", "a2"))
    assert key(TREE, ("glob", "a1")) == key(TREE, ("glob", "a1"))


def test_a_shared_threshold_has_one_counter():
    """With `share_threshold` the pattern stands for its values, at its own level only, also for deeper limits."""
    domain = Domain(
        "d",
        [
            leaf("k", "a*", share_threshold=True),
            inner("p", "x*", leaf("user"), share_threshold=True),
        ],
    )
    assert key(domain, ("k", "a1")) == key(domain, ("k", "a2")) == key(domain, ("k", "a*"))
    assert key(domain, ("p", "x1"), ("user", "u")) == key(domain, ("p", "x2"), ("user", "u"))
    assert key(domain, ("p", "x1"), ("user", "u")) != key(domain, ("p", "x1"), ("user", "v"))


def test_a_shared_counter_is_not_that_of_a_value_that_reads_like_its_pattern():
    """A request's own limit for the literal value `a*` does not meet the shared counter of the pattern `a*`."""
    domain = Domain("d", [leaf("k", "a*", share_threshold=True)])
    pair = ("k", "a*")
    override = domain.override(10, Unit.MINUTE)
    assert domain.counter_key(b"p:", override, entries(pair)) != key(domain, pair)


@given(
    st.lists(st.tuples(st.text("ab_:", max_size=3), st.text("ab_:", max_size=3)), max_size=3),
    st.lists(st.tuples(st.text("ab_:", max_size=3), st.text("ab_:", max_size=3)), max_size=3),
)
def test_counter_keys_are_injective(left, right):
    """Two sequences of entries have the same counter only if they are the same."""
    domain = Domain("d", [])
    override = domain.override(1, Unit.SECOND)
    keys = [domain.counter_key(b"p:", override, entries(*pairs)) for pairs in (left, right)]
    assert (keys[0] == keys[1]) == (left == right)


def test_counter_keys_tell_domains_and_windows_apart():
    """The same entries have separate counters in another domain, even one that reads alike, and in another window."""
    pair = entries(("k", "v"))
    keys = set()
    for domain in (Domain("a/b", []), Domain("a:b", [])):
        for unit in (Unit.SECOND, Unit.DAY):
            override = domain.override(1, unit)
            keys.add(Charge(override.limit, domain.counter_key(b"p:", override, pair)).storage_key)
    assert len(keys) == 4
    assert all(each.startswith(b"p:rl/a_b:") for each in keys)


def test_compiled_overrides_are_bounded():
    """A domain keeps the stated number of limits that requests brought along, and no more."""
    domain = Domain("d", [])
    first = domain.override(0, Unit.DAY)
    for requests in range(OVERRIDES_MAX):
        domain.override(requests, Unit.DAY)
    assert domain.override(0, Unit.DAY) is first
    domain.override(OVERRIDES_MAX, Unit.DAY)
    assert len(domain._overrides) == 1
    assert domain.override(0, Unit.DAY) is not first


@pytest.mark.parametrize(("chars", "shown"), [(64, 64), (65, 64)])
def test_the_readable_part_of_a_key_is_bounded(chars, shown):
    """A domain's name is shown up to 64 characters."""
    assert Domain("x" * chars, []).key_label == b"rl/" + b"x" * shown + b":"


@pytest.mark.parametrize(
    ("unit", "days"),
    [(Unit.SECOND, 1 / 86400), (Unit.DAY, 1), (Unit.WEEK, 7), (Unit.MONTH, 30), (Unit.YEAR, 365)],
)
def test_a_limit_is_a_fixed_window_that_counts_denials(unit, days):
    """A compiled limit charges as the reference does, in a window of the unit's length."""
    found = Domain("d", [DescriptorRule(key="k", rate_limit=limit("", 7, unit))]).find(entries(("k", "v")))
    assert found is not None
    assert found.limit is not None
    assert found.limit.window_us == days * 86_400_000_000
    assert (found.limit.requests, found.limit.algorithm, found.limit.count_denied) == (7, Algorithm.FIXED_WINDOW, True)


def test_an_override_is_bounded_by_the_longest_window():
    """A request's own limit may span as many units as fit into the longest window, and not one more."""
    most = WINDOW_US_MAX // 86_400_000_000
    domain = Domain("d", [])
    assert domain.override(1, Unit.DAY, most).unit_multiplier == most
    with pytest.raises(ValueError, match="window_us"):
        domain.override(1, Unit.DAY, most + 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"unit": None},
        {"unit": Unit.DAY, "unlimited": True},
        {"unit": Unit.DAY, "requests_per_unit": 2**32},
        {"unit": Unit.DAY, "requests_per_unit": -1},
    ],
)
def test_an_impossible_rate_limit_cannot_be_built(fields):
    """A rate limit has a unit or is unlimited, and its number fits 32 bits."""
    with pytest.raises(ValueError, match=r"unit|requests_per_unit"):
        RateLimitRule(**fields)


@pytest.mark.parametrize(
    ("hits", "used", "allowed", "counted"),
    [
        (1, 8, True, (1, 0, 0, 1, 0)),
        (1, 9, True, (1, 0, 1, 1, 0)),
        (4, 10, True, (4, 0, 2, 4, 0)),
        (1, 11, False, (1, 1, 0, 0, 0)),
        (5, 12, False, (5, 2, 2, 0, 0)),
        (12, 12, False, (12, 2, 2, 0, 0)),
        (2, 6, False, (2, 2, 0, 0, 0)),
        (0, 11, False, (0, 0, 0, 0, 0)),
        (0, 10, True, (0, 0, 0, 0, 0)),
    ],
)
def test_hits_are_split_as_the_reference_splits_them(hits, used, allowed, counted):
    """Of hits that cross a line, only those beyond it are over, and those between 0.8 and 1 of the limit are near.

    What is refused below the limit (by the share of it that one process grants without Redis) is over as a whole.
    """
    found = Domain("d", [leaf("k")]).find(entries(("k", "v")))
    assert found is not None
    count(found, hits, used, allowed=allowed)
    assert figures(found.stats) == counted


def test_shadow_hits_are_over_limit_and_shadow():
    """A limit in shadow mode counts what it would have refused."""
    found = Domain("d", [leaf("k", shadow_mode=True)]).find(entries(("k", "v")))
    assert found is not None
    count(found, 2, 12, allowed=False)
    assert figures(found.stats) == (2, 2, 0, 0, 2)


class Remembered(LimitOutcome):
    source = Source.REMEMBERED


class Unasked(LimitOutcome):
    source = Source.UNASKED


@pytest.mark.parametrize("shadow", [False, True])
def test_hits_that_a_remembered_denial_refuses_have_a_name_of_their_own(shadow):
    """They are over the limit as a whole, and counted as refused by the local cache besides."""
    found = Domain("d", [leaf("k", shadow_mode=shadow)]).find(entries(("k", "v")))
    assert found is not None
    assert found.limit is not None
    found.count(found.stats, 3, Remembered(found.limit, False, 11, 0, 5, 5))
    assert figures(found.stats) == (3, 3, 0, 0, 3 if shadow else 0)
    assert found.stats.over_limit_with_local_cache == 3


def test_hits_of_which_nothing_is_known_are_in_the_total_only():
    """Where another limit's remembered denial decided, this one was not asked: neither within nor over."""
    found = Domain("d", [leaf("k")]).find(entries(("k", "v")))
    assert found is not None
    assert found.limit is not None
    for allowed in (True, False):
        found.count(found.stats, 3, Unasked(found.limit, allowed, 0, 10, 0, 0))
    assert figures(found.stats) == (6, 0, 0, 0, 0)


def test_hits_that_were_not_counted_are_over_as_a_whole():
    """An algorithm that does not count what it refuses refuses all of it."""
    sliding = RateLimitOptions(algorithms={"d": Counting(algorithm=Algorithm.SLIDING_WINDOW)})
    found = Domain("d", [leaf("k")], sliding).find(entries(("k", "v")))
    assert found is not None
    count(found, 5, 8, allowed=False)
    assert figures(found.stats) == (5, 5, 0, 0, 0)


def count(found: DescriptorLimit, hits: int, used: int, *, allowed: bool) -> None:
    assert found.limit is not None
    found.count(found.stats, hits, LimitOutcome(found.limit, allowed, used, 0, 0, 0))


def figures(stats: LimitStats) -> tuple[int, ...]:
    counted = stats.outcomes()
    return tuple(counted[name] for name in ("total_hits", "over_limit", "near_limit", "within_limit", "shadow_mode"))


def config(*domains: Domain) -> RateLimitConfig:
    return RateLimitConfig({domain.name: domain for domain in domains})


def find(of: RateLimitConfig, *pairs: tuple[str, str]) -> DescriptorLimit:
    found = of.domains["d"].find(entries(*pairs))
    assert found is not None
    return found


def test_statistics_are_as_many_as_configured_paths():
    """Paths come from the configuration; where two read alike they share one statistic, so no series is doubled."""
    made = config(Domain("d", [leaf("a.b"), inner("a", "", leaf("b")), leaf("c", "x*")]))
    assert sorted(made.stats) == [("d", "(override)"), ("d", "a.b"), ("d", "c_x*")]
    assert find(made, ("a.b", "v")).stats is find(made, ("a", "v"), ("b", "v")).stats


def test_statistics_count_on_over_a_reload():
    """A limit that is still there keeps its figures; one that is gone takes them along."""
    old = config(Domain("d", [leaf("a"), leaf("gone")]))
    count(find(old, ("a", "v")), 3, 3, allowed=True)
    new = config(Domain("d", [leaf("a"), leaf("new")]))
    new.continue_from(old)
    assert find(new, ("a", "v")).stats is find(old, ("a", "v")).stats
    assert sorted(new.stats) == [("d", "(override)"), ("d", "a"), ("d", "new")]
    assert new.domains["d"].override_stats is old.domains["d"].override_stats
