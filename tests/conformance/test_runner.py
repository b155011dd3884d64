"""Cases keep clear of the ends of windows, whatever time it is."""

from __future__ import annotations

import pytest
import yaml

from sidecar.conformance.cases import load_kit
from sidecar.conformance.runner import ATTEMPTS_MAX, Runner
from tests.support.ratelimit_model import Model, Time


class Slow:
    """A service whose calls take time."""

    def __init__(self, model, clock, call_s):
        self._model, self._clock, self._call_s = model, clock, call_s
        self.runs = []

    def ask(self, requests):
        self.runs.append(requests[0].descriptors[0].entries[0].value)
        self._clock.sleep(self._call_s)
        return self._model.ask(requests)


def kit(directory, unit, *expected, after_reset=()):
    steps = [
        {"ask": [["user=ann"]], "expect": [text], "after_reset": index in after_reset}
        for index, text in enumerate(expected)
    ]
    config = [{"key": "user", "rate_limit": {"unit": unit, "requests_per_unit": 2}}]
    case = {"name": "one", "proves": "P.", "rests_on": "r", "config": config, "steps": steps}
    (directory / "family.yaml").write_text(yaml.safe_dump({"family": "family", "about": "a", "cases": [case]}))
    return load_kit(directory)


def asked(cases, now_s, call_s=0.0):
    """The case's result, and the time that it took."""
    clock = Time(now_s)
    target = Slow(Model(cases[0].configurations, frozenset(), clock), clock, call_s)
    runs = iter("abcdefgh")
    [result] = Runner(target, frozenset(), clock, lambda: next(runs)).run(cases)
    return result, clock.now_s() - now_s, target.runs


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("unit", "window_s"), [("second", 1), ("minute", 60), ("year", 31_536_000)])
def test_a_case_begins_where_its_window_has_time_left(tmp_path, unit, window_s, share):
    """It waits for the next window where this one is about to end, and for no other reason."""
    cases = kit(tmp_path, unit, f"OK 1 of 2/{unit}", f"OK 0 of 2/{unit}", f"OVER_LIMIT 0 of 2/{unit}")
    now_s = 20 * 31_536_000 + share * window_s
    result, seconds, runs = asked(cases, now_s, call_s=0.1)
    assert result.differences == ()
    left_s = (1 - share) * window_s
    waits = left_s < min(3.0, 0.7 * window_s)
    assert (seconds > 0.3 + 1e-6) is waits
    assert set(runs) == {"a"}


def test_a_case_that_met_a_border_is_asked_again(tmp_path):
    """With fresh counters, so that nothing is counted twice."""
    cases = kit(tmp_path, "second", "OK 1 of 2/second", "OK 0 of 2/second")
    result, _, runs = asked(cases, 1_000_000.0, call_s=0.6)
    assert "in each of 4 attempts a window ended" in result.differences[0]
    assert runs == [run for run in "abcd" for _ in range(2)]
    assert len(set(runs)) == ATTEMPTS_MAX


def test_a_step_after_the_reset_waits_for_it(tmp_path):
    """As long as the answer before says, so that the next window is met."""
    cases = kit(tmp_path, "minute", "OK 1 of 2/minute", "OK 0 of 2/minute", "OK 1 of 2/minute", after_reset={2})
    result, seconds, _ = asked(cases, 600.0 + 20)
    assert result.differences == ()
    assert 40 < seconds < 41


def test_the_first_difference_ends_a_case(tmp_path):
    """What follows a wrong answer would be wrong for its sake."""
    cases = kit(tmp_path, "hour", "OK 0 of 2/hour", "OK 7 of 2/hour")
    result, _, runs = asked(cases, 7200.0)
    assert result.differences == ("step 1: statuses[0].limit_remaining is 1, not 0",)
    assert result.outcome == "failed"
    assert len(runs) == 1
