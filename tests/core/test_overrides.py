"""Overrides of single keys."""

from __future__ import annotations

import pytest

from sidecar.core.limits import REQUESTS_MAX, REQUESTS_MAX_OF, US_PER_S, Algorithm, Charge, Limit
from sidecar.core.overrides import Override, Overrides

LIMIT = Limit(name="per-user", requests=10, window_us=US_PER_S)
OTHER = Limit(name="per-user-hourly", requests=100, window_us=3600 * US_PER_S, algorithm=Algorithm.FIXED_WINDOW)


def test_only_the_overridden_key_is_granted_something_else() -> None:
    """The charge keeps its key, cost and counter; every other charge is the same object."""
    overrides = Overrides()
    overrides.replace({b"k1": Override(50)})
    charges = [Charge(LIMIT, b"k1", 3), Charge(LIMIT, b"k2"), Charge(OTHER, b"k3")]
    applied = overrides.applied(charges)
    assert (applied[0].limit.requests, applied[0].cost, applied[0].storage_key) == (50, 3, charges[0].storage_key)
    assert applied[1] is charges[1]
    assert applied[2] is charges[2]
    assert charges[0].limit is LIMIT


def test_without_a_concerned_key_nothing_is_copied() -> None:
    """The same sequence comes back."""
    overrides = Overrides()
    overrides.replace({b"k1": Override(50)})
    charges = [Charge(LIMIT, b"k2")]
    assert overrides.applied(charges) is charges


def test_an_overridden_limit_is_made_once() -> None:
    """So that what is precomputed for it serves the next request too."""
    overrides = Overrides()
    overrides.replace({b"k1": Override(50), b"k2": Override(50)})
    [first] = overrides.applied([Charge(LIMIT, b"k1")])
    [second] = overrides.applied([Charge(LIMIT, b"k2")])
    assert first.limit is second.limit


def test_replacing_tells_which_keys_changed() -> None:
    """New, changed and removed ones; not those that stay."""
    overrides = Overrides()
    assert overrides.replace({b"a": Override(1), b"b": Override(2), b"c": Override(3)}) == {b"a", b"b", b"c"}
    assert overrides.replace({b"b": Override(2), b"c": Override(4), b"d": Override(5)}) == {b"a", b"c", b"d"}
    assert overrides.active
    assert overrides.replace({}) == {b"b", b"c", b"d"}
    assert not overrides.active


def test_an_override_ends_at_its_time() -> None:
    """Not a microsecond before."""
    overrides = Overrides()
    overrides.replace({b"a": Override(1, until_us=100), b"b": Override(2)})
    assert overrides.expire(99) == set()
    assert overrides.expire(100) == {b"a"}
    assert len(overrides) == 1
    assert overrides.expire(200) == set()
    overrides.replace({b"a": Override(1, until_us=100)})
    overrides.expire(100)
    assert not overrides.active


@pytest.mark.parametrize(("requests", "warn_above"), [(1000, 790), (50, 39), (0, 0)])
def test_a_threshold_keeps_its_share(requests: int, warn_above: int) -> None:
    """Who is granted ten times as much is warned at ten times as much."""
    overrides = Overrides()
    overrides.replace({b"k": Override(requests)})
    limit = Limit(name="l", requests=100, window_us=US_PER_S, warn_above=79)
    [charge] = overrides.applied([Charge(limit, b"k")])
    assert charge.limit.warn_above == warn_above


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize(
    "override", [Override(REQUESTS_MAX), Override(5, 10), Override(0, 10), Override(1, REQUESTS_MAX)]
)
def test_an_override_of_another_algorithm_is_cut_to_what_the_limit_can_have(
    algorithm: Algorithm, override: Override
) -> None:
    """A policy that changes a limit's algorithm must not make the overridden key's charges fail."""
    overrides = Overrides()
    overrides.replace({b"k": override})
    limit = Limit(name="x", requests=1, window_us=60 * US_PER_S, algorithm=algorithm)
    [charge] = overrides.applied([Charge(limit, b"k")])
    assert charge.limit.requests == min(override.requests, REQUESTS_MAX_OF[algorithm])
    assert charge.limit.burst <= override.burst
