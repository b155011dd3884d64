"""The kit notices what it is about: each mistake of a service fails a case, and no case passes whatever is answered."""

from __future__ import annotations

import itertools

import pytest

from sidecar.conformance.cases import FEATURES, MODES, load_kit
from sidecar.conformance.runner import Runner
from tests.support.ratelimit_model import WRONG, Model, Time

KIT = load_kit()
CONFIGURATIONS = [file for case in KIT for file in case.configurations]
SERVERS = [frozenset(FEATURES) - MODES, *(frozenset({mode}) for mode in MODES)]
"""What a service's settings may be, so that every case is asked of one of them."""


def results(wrong=frozenset(), families=None):
    """Of the cases of these families, or of all, each asked of the servers that have what it requires."""
    cases = [case for case in KIT if families is None or case.family in families]
    for features in SERVERS:
        clock, numbers = Time(), itertools.count()
        model = Model(CONFIGURATIONS, features, clock, wrong)
        runner = Runner(model, features, clock, lambda numbers=numbers: f"run-{next(numbers)}")
        yield from (result for result in runner.run(cases) if result.outcome != "skipped")


def failed(mistake):
    return {result.case.title for result in results(frozenset({mistake}), WRONG[mistake]) if result.differences}


def test_the_model_passes_every_case():
    """A service that makes no mistake passes, and every case is asked."""
    asked = list(results())
    assert [(result.case.title, result.differences) for result in asked if result.differences] == []
    assert {result.case.title for result in asked} == {case.title for case in KIT}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_noticed(mistake):
    """Each family that is about the mistake has a case that fails."""
    assert {title.partition("/")[0] for title in failed(mistake)} == WRONG[mistake]


def test_no_case_passes_vacuously():
    """Every case fails where one of the mistakes is made."""
    caught = set().union(*(failed(mistake) for mistake in WRONG))
    assert [case.title for case in KIT if case.title not in caught] == []
