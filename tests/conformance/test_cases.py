"""The kit's notation: what is written is what is asked, and what is misspelt is refused by name."""

from __future__ import annotations

import pytest
import yaml

from sidecar.conformance.cases import FEATURES, KitError, load_kit
from sidecar.core.descriptors import Unit

CASE = {
    "name": "one",
    "proves": "Something.",
    "rests_on": "somewhere",
    "config": [{"key": "user", "rate_limit": {"unit": "hour", "requests_per_unit": 1}}],
    "steps": [{"ask": [["user=ann"]], "expect": ["OK 0 of 1/hour"]}],
}


def loaded(directory, *cases):
    document = {"family": "family", "about": "About.", "cases": list(cases)}
    (directory / "family.yaml").write_text(yaml.safe_dump(document))
    return load_kit(directory)


def case(**changes):
    return {**CASE, **changes}


def step(**changes):
    return case(steps=[{"ask": [["user=ann"]], "expect": ["OK 0 of 1/hour"], **changes}])


def test_a_case_has_a_domain_and_stands_below_the_run(tmp_path):
    """The configuration is wrapped, so that counters are fresh in each run."""
    [one] = loaded(tmp_path, CASE)
    assert one.configurations == (
        {"domain": "conformance.family.one", "descriptors": [{"key": "run", "descriptors": CASE["config"]}]},
    )


def test_at_top_is_as_written(tmp_path):
    """A case at the top is not wrapped."""
    [one] = loaded(tmp_path, case(at_top=True))
    assert one.configurations == ({"domain": "conformance.family.one", "descriptors": CASE["config"]},)


def test_a_status_says_all(tmp_path):
    """Code, remaining, requests, multiplied unit and name are read from one line; without a limit there is none."""
    expected = ["OVER_LIMIT 0 of 3/2 minute named a b", "OK unlimited", "OK no limit"]
    [one] = loaded(tmp_path, step(expect=expected))
    over, unlimited, none = one.steps[0].expected.statuses
    assert (over.code, over.remaining) == ("OVER_LIMIT", 0)
    assert (over.limit.requests, over.limit.multiplier, over.limit.unit, over.limit.name) == (3, 2, Unit.MINUTE, "a b")
    assert over.limit.window_s == 120
    assert (unlimited.remaining, unlimited.limit, none.remaining, none.limit) == (2**32 - 1, None, 0, None)
    assert one.steps[0].expected.overall == "OVER_LIMIT"
    assert one.windows_s() == {120}


def test_entries_may_hold_equals_signs(tmp_path):
    """The first sign ends the key."""
    [one] = loaded(tmp_path, step(ask=[["q=a=b", "r="]]))
    assert one.steps[0].descriptors[0].entries == (("q", "a=b"), ("r", ""))


@pytest.mark.parametrize(
    ("written", "named"),
    [
        (case(stepz=[]), "stepz"),
        (case(requires=["magic"]), "magic"),
        (step(asks=[]), "asks"),
        (step(ask=["user"]), "key=value"),
        (step(ask=[["user"]]), "'user'"),
        (step(ask=[{"entries": ["user=ann"], "hits": 1}]), "hits"),
        (step(ask=[{"entries": ["user=ann"], "limit": "five/hour"}]), "'five/hour'"),
        (step(expect=["OK 1 of 2"]), "'OK 1 of 2'"),
        (step(expect=["OK 1 of 2/eon"]), "EON"),
        (step(expect={"status": []}), "status"),
        (step(expect={"headers": "OK unlimited"}), "headers"),
        ({**CASE, "name": None, "steps": None}, "family.yaml"),
        ("a case", "family.yaml"),
    ],
)
def test_what_is_misspelt_is_refused(tmp_path, written, named):
    """The error names the file and what is wrong."""
    with pytest.raises(KitError, match=r"family\.yaml") as caught:
        loaded(tmp_path, written)
    assert named in str(caught.value)


def test_two_cases_of_one_name_are_refused(tmp_path):
    """They would share a domain."""
    with pytest.raises(KitError, match="family/one"):
        loaded(tmp_path, CASE, CASE)


def test_no_case_at_all_is_refused(tmp_path):
    """A kit that asks nothing would pass."""
    with pytest.raises(KitError, match="no case"):
        load_kit(tmp_path)


def test_every_feature_is_asked_for():
    """Each feature that can be named is required by a case."""
    assert set().union(*(case.requires for case in load_kit())) == set(FEATURES)
