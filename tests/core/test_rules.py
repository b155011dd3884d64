"""Rule matching, against a naive reading of the precedence that the module's docstring states."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.rules import (
    HEADER_VARIANTS_MAX,
    PATH_CHARS_KEPT_MAX,
    PATH_SEGMENTS_MAX,
    ExactPath,
    HeaderMatch,
    PathPattern,
    PrefixPath,
    RequestMatch,
    Rule,
    RuleConflict,
    RuleTable,
    TemplatePath,
)


def rule(name: str, path: PathPattern, host: str | None = None, methods: tuple[str, ...] = (), **headers) -> Rule:
    conditions = tuple(HeaderMatch(name.replace("_", "-"), value) for name, value in headers.items())
    match = RequestMatch(host=host, path=path, methods=frozenset(methods), headers=conditions)
    return Rule(name=name, match=match, anonymous=True)


def matched(table: RuleTable, path: str, host: str = "api.example.com", method: str = "GET", **headers) -> str | None:
    found = table.match(host, path, method, {name.replace("_", "-"): value for name, value in headers.items()})
    return found[0].name if found else None


def test_no_rules_match_nothing() -> None:
    """An empty table denies everything."""
    assert matched(RuleTable([]), "/") is None


def test_prefix_ends_at_a_segment() -> None:
    """`/a` covers `/a`, `/a/` and `/a/b`, never `/ab`."""
    table = RuleTable([rule("a", PrefixPath("/a"))])
    assert [matched(table, path) for path in ("/a", "/a/", "/a/b", "/a/b/c")] == ["a"] * 4
    assert [matched(table, path) for path in ("/ab", "/", "/b/a")] == [None] * 3


def test_path_specificity() -> None:
    """Exact beats template beats prefix, segment by segment."""
    table = RuleTable(
        [
            rule("all", PrefixPath("/")),
            rule("users", PrefixPath("/users")),
            rule("user", TemplatePath("/users/{id}")),
            rule("orders", TemplatePath("/users/{id}/orders")),
            rule("me", ExactPath("/users/me")),
            rule("my-stuff", TemplatePath("/users/me/{thing}")),
        ]
    )
    assert matched(table, "/") == "all"
    assert matched(table, "/users") == "users"
    assert matched(table, "/users/1") == "user"
    assert matched(table, "/users/me") == "me"
    assert matched(table, "/users/me/orders") == "my-stuff"
    assert matched(table, "/users/1/orders") == "orders"
    assert matched(table, "/users/1/orders/2") == "users"
    assert matched(table, "/users/") == "users", "a parameter stands for a non-empty segment"


def test_parameters_are_named_by_the_rule_that_matched() -> None:
    """Each template's own names are used, though both share a place in the tree."""
    table = RuleTable(
        [
            rule("get", TemplatePath("/a/{x}/b/{y}"), methods=("GET",)),
            rule("put", TemplatePath("/a/{p}/b/{q}"), methods=("PUT",)),
        ]
    )
    found = table.match("h", "/a/1/b/2", "PUT", {})
    assert found is not None
    assert (found[0].name, dict(found[1])) == ("put", {"p": "1", "q": "2"})


def test_host_specificity() -> None:
    """Exact host, then the longest suffix, then any; a suffix needs at least one label before it."""
    table = RuleTable(
        [
            rule("any", PrefixPath("/")),
            rule("suffix", PrefixPath("/"), host="*.example.com"),
            rule("longer", PrefixPath("/"), host="*.eu.example.com"),
            rule("exact", PrefixPath("/"), host="api.example.com"),
        ]
    )
    assert matched(table, "/", host="api.example.com") == "exact"
    assert matched(table, "/", host="x.example.com") == "suffix"
    assert matched(table, "/", host="x.eu.example.com") == "longer"
    assert matched(table, "/", host="example.com") == "any"
    assert matched(table, "/", host="notexample.com") == "any"


def test_less_specific_rule_applies_where_the_method_differs() -> None:
    """A more specific path for one method does not hide the general rule for the others."""
    table = RuleTable(
        [
            rule("read", ExactPath("/a"), methods=("GET",)),
            rule("rest", PrefixPath("/")),
        ]
    )
    assert matched(table, "/a", method="GET") == "read"
    assert matched(table, "/a", method="POST") == "rest"
    assert matched(table, "/a", method="get") == "rest", "methods are case-sensitive"


def test_header_conditions() -> None:
    """More conditions come first; a value is compared whole; presence is enough without one."""
    table = RuleTable(
        [
            rule("plain", ExactPath("/a")),
            rule("present", ExactPath("/a"), x_a=None),
            rule("one", ExactPath("/a"), x_a="1"),
            rule("both", ExactPath("/a"), x_a="1", x_b=None),
        ]
    )
    assert matched(table, "/a") == "plain"
    assert matched(table, "/a", x_a="2") == "present"
    assert matched(table, "/a", x_a="1") == "one"
    assert matched(table, "/a", x_a="1", x_b="") == "both"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (rule("a", ExactPath("/x")), rule("b", ExactPath("/x"))),
        (rule("a", TemplatePath("/x/{a}")), rule("b", TemplatePath("/x/{b}"))),
        (rule("a", PrefixPath("/x")), rule("b", PrefixPath("/x/"))),
        (rule("a", ExactPath("/x")), rule("b", TemplatePath("/x"))),
        (rule("a", ExactPath("/x"), methods=("GET", "PUT")), rule("b", ExactPath("/x"), methods=("PUT",))),
        (rule("a", ExactPath("/x"), host="h", y="1", z="2"), rule("b", ExactPath("/x"), host="h", z="2", y="1")),
    ],
)
def test_ties_are_refused(first: Rule, second: Rule) -> None:
    """Two rules with equal right to a request are a fault of the policy, whatever their order."""
    for pair in itertools.permutations((first, second)):
        with pytest.raises(RuleConflict) as caught:
            RuleTable(pair)
        assert {caught.value.first, caught.value.second} == {"a", "b"}


def test_header_variants_are_bounded() -> None:
    """What must be tried one by one is limited: 32 are taken, 33 refused."""
    rules = [rule(f"r{n}", ExactPath("/x"), h=str(n)) for n in range(HEADER_VARIANTS_MAX)]
    assert matched(RuleTable(rules), "/x", h="31") == "r31"
    with pytest.raises(RuleConflict):
        RuleTable([*rules, rule("more", ExactPath("/x"), h="more")])


def test_deep_paths_match_nothing() -> None:
    """The walk is bounded: a path of one segment too many meets no rule."""
    table = RuleTable([rule("all", PrefixPath("/"))])
    assert matched(table, "/a" * PATH_SEGMENTS_MAX) == "all"
    assert matched(table, "/a" * (PATH_SEGMENTS_MAX + 1)) is None


SEGMENT = st.sampled_from(["a", "b", "{p}"])
PATTERN = st.builds(
    lambda kind, segments: kind("/" + "/".join(segments)),
    st.sampled_from([PrefixPath, TemplatePath]),
    st.lists(SEGMENT, max_size=3),
).filter(lambda p: isinstance(p, TemplatePath) or "{" not in p.path)


def rank(pattern: PathPattern, path: str) -> list[int] | None:
    """The naive reading: literal 0, parameter 1, a prefix's end 2; None where it does not match."""
    text = pattern.path if isinstance(pattern, PrefixPath) else pattern.template
    want, have = text.rstrip("/").split("/")[1:], path.split("/")[1:]
    if isinstance(pattern, TemplatePath):
        want = text.split("/")[1:]
        if len(want) != len(have):
            return None
    elif len(want) > len(have):
        return None
    ranks = []
    for segment, actual in zip(want, have, strict=False):
        if segment.startswith("{"):
            if not actual:
                return None
            ranks.append(1)
        elif segment == actual:
            ranks.append(0)
        else:
            return None
    return ranks if isinstance(pattern, TemplatePath) else [*ranks, 2]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(PATTERN, max_size=8, unique_by=lambda p: (type(p), str(p))),
    st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=4),
)
def test_tree_agrees_with_the_naive_reading(patterns: list[PathPattern], segments: list[str]) -> None:
    """The indexed search finds what trying every rule finds."""
    rules = [rule(str(n), pattern) for n, pattern in enumerate(patterns)]
    try:
        table = RuleTable(rules)
    except RuleConflict:
        return
    path = "/" + "/".join(segments)
    ranked = [(rank(r.match.path, path), r.name) for r in rules]
    best = min(((ranks, name) for ranks, name in ranked if ranks is not None), default=(None, None))
    assert matched(table, path) == best[1]


def test_what_was_found_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """N matches are kept, the N+1st begins anew; long paths never are, and none where headers decide."""
    monkeypatch.setattr("sidecar.core.rules.MATCHES_KEPT_MAX", 3)
    table = RuleTable([rule("user", TemplatePath("/users/{id}")), rule("all", PrefixPath("/"))])

    def keep(path: str, kept: int) -> None:
        found = table.match("h", path, "GET", {})
        assert found is not None
        table.keep(("H:1", path, "GET"), found)
        assert len(table.kept) == kept
        assert table.kept.get(("H:1", path, "GET")) is (found if kept else None)

    for n in range(3):
        keep(f"/users/{n}", n + 1)
    keep("/", 1)
    keep("/" + "a" * (PATH_CHARS_KEPT_MAX - 1), 2)
    table.kept.clear()
    keep("/" + "a" * PATH_CHARS_KEPT_MAX, 0)
    table = RuleTable([rule("plain", ExactPath("/a")), rule("one", ExactPath("/a"), x_a="1")])
    keep("/a", 0)


def test_header_conditions_are_asked_every_time() -> None:
    """Nothing is kept where headers decide."""
    table = RuleTable([rule("plain", ExactPath("/a")), rule("one", ExactPath("/a"), x_a="1")])
    assert [matched(table, "/a"), matched(table, "/a", x_a="1"), matched(table, "/a")] == ["plain", "one", "plain"]
