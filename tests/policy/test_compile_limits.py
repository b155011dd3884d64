"""What a limit of the policy means once it is compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.core.bindings import CostSource, LimitBinding, limit_key
from sidecar.core.calendars import Period
from sidecar.core.context import RequestContext
from sidecar.core.decision import NO_PARAMETERS
from sidecar.core.limits import Algorithm, Charge
from sidecar.core.selectors import HeaderSelector
from sidecar.policy.compile import CompiledDocument, load

GOOD = Path(__file__).parent / "good" / "limits.yaml"


@pytest.fixture(scope="module")
def document() -> CompiledDocument:
    return load(GOOD, 1)


@pytest.fixture(scope="module")
def bindings(document: CompiledDocument) -> dict[str, LimitBinding]:
    [rule] = document.policy.rules.rules
    return {binding.limit.name: binding for binding in rule.limits}


def test_each_way_to_write_a_rate_is_that_rate(bindings: dict[str, LimitBinding]) -> None:
    """Windows of any length and of the calendar, bursts, and concurrency, which has none."""
    limits = {name: binding.limit for name, binding in bindings.items()}
    assert (limits["any-length"].requests, limits["any-length"].window_us) == (5000, 5_400_000_000)
    assert (limits["burst"].algorithm, limits["burst"].burst) == (Algorithm.GCRA, 20)
    assert limits["exact"].count_denied
    today, month = limits["today"].calendar, limits["this-month"].calendar
    assert today is not None
    assert month is not None
    assert (today.period, today.zone) == (Period.DAY, "UTC")
    assert (month.period, month.zone) == (Period.MONTH, "Europe/Berlin")
    assert limits["this-month"].algorithm is Algorithm.FIXED_WINDOW
    assert (limits["under-way"].algorithm, limits["under-way"].hold_us) == (Algorithm.CONCURRENCY, 86_400_000_000)


def test_a_threshold_is_reached_by_its_share_of_each_rate(bindings: dict[str, LimitBinding]) -> None:
    """80 % of 5,000 warns from 4,000 used on; a burst limit's share is of its burst; nothing warns of a rate of 0."""
    assert bindings["any-length"].limit.warn_above == 3999
    assert bindings["burst"].limit.warn_above == 14
    plans = bindings["tokens"].plans
    assert plans is not None
    assert {name: limit.warn_above for name, limit in plans.limits.items()} == {
        "gold": 999_999,
        "free": 9,
        "the best plan": None,
    }


def test_what_is_held_is_named_for_reservations(document: CompiledDocument) -> None:
    """Each plan's limit of a limit that is held has an id of its own; what is not held has none."""
    assert document.policy.held_limits.keys() == {
        "under-way",
        "under-way/gold",
        "tokens",
        "tokens/gold",
        "tokens/free",
        "tokens/the best plan",
    }
    assert all(limit.hold_us and not limit.deny_cache for limit in document.policy.held_limits.values())


def request(**headers: str) -> RequestContext:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestContext(request_id="", method="GET", host="h", path="/", headers=named)


@pytest.mark.parametrize(("plan", "requests"), [("gold", 50), ("Gold", 1000), ("", 1000), (None, 1000)])
def test_a_plan_is_named_exactly(bindings: dict[str, LimitBinding], plan: str | None, requests: int) -> None:
    """Who has none of the plans, or says nothing, has the limit's own rate; the counter is the same."""
    headers = {"x_user": "ann"} | ({"x_plan": plan} if plan is not None else {})
    charge = bindings["under-way"].charge(request(**headers), None, NO_PARAMETERS)
    assert isinstance(charge, Charge)
    assert charge.limit.requests == requests
    assert charge.key == limit_key("sidecar", "under-way", ["ann"])
    assert charge.subject == ("ann",)


COSTS = {
    "1": 1,
    "12": 12,
    "4000": 4000,
    "4001": None,
    "2": 2,
    "1000000000000000000000": None,
    "0": None,
    "": None,
    "-1": None,
    "+1": None,
    "01": None,
    "1.0": None,
    "1e3": None,
    " 1": None,
    "1,1": None,
    "\N{ARABIC-INDIC DIGIT ONE}": None,
    "\N{SUPERSCRIPT TWO}": None,
}


@pytest.mark.parametrize(("written", "cost"), COSTS.items())
def test_a_cost_is_a_plain_number_within_its_bounds(written: str, cost: int | None) -> None:
    """Whatever else a header holds is no cost: it is neither guessed nor bent into the bounds."""
    source = CostSource(selector=HeaderSelector("x-cost"), most=4000)
    assert source.cost(request(x_cost=written), None, NO_PARAMETERS) == cost


@pytest.mark.parametrize("default", [None, 0, 7])
def test_a_cost_that_is_not_stated_is_the_default_or_none(default: int | None) -> None:
    """Without a default there is no cost, which denies."""
    source = CostSource(selector=HeaderSelector("x-cost"), default=default)
    assert source.cost(request(), None, NO_PARAMETERS) == default
