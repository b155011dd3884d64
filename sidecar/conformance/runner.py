"""Asks a target the requests of each case, in order, and keeps clear of the ends of windows.

Fixed windows begin at multiples of their length since 1970, so a case whose steps fall on both sides of a border would
be answered from two counters. A case therefore begins only where each of its windows has some time left, and one that
met a border all the same (by this machine's clock) is asked again with fresh counters.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from sidecar.conformance.cases import RUN, RUN_KEY, Case, Step
from sidecar.conformance.judge import Answer, Asked, Fault, differences
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest

TIME_LEFT_S: Final = 3.0
"""A case begins where each of its windows has so much time left, or most of it where the window is a second's."""

TIME_LEFT_SHARE: Final = 0.7

AFTER_RESET_S: Final = 0.02
"""Waited beyond the end of a window, which Redis's clock and ours may see at slightly different times."""

ATTEMPTS_MAX: Final = 4
"""How often a case is asked that meets the end of a window each time."""


class Target(Protocol):
    """A rate limit service."""

    def ask(self, requests: Sequence[RateLimitRequest]) -> Sequence[Answer]:
        """Ask all at once; answers are in their order."""


class Clock(Protocol):
    """Wall clock, in seconds since 1970."""

    def now_s(self) -> float:
        """The time."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """This machine's."""

    def now_s(self) -> float:
        """The time."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """What came of a case.

    Attributes:
        differences: What was not as expected; empty where the case passed.
        seconds: How long it took, with waiting.
        skipped: It was not asked, so it neither passed nor failed.
        missing: The features for lack of which; none where the target is in a mode that the case is not about.
    """

    case: Case
    differences: tuple[str, ...] = ()
    seconds: float = 0.0
    skipped: bool = False
    missing: frozenset[str] = frozenset()

    @property
    def outcome(self) -> str:
        """`passed`, `failed` or `skipped`."""
        if self.skipped:
            return "skipped"
        return "failed" if self.differences else "passed"


class _BorderMet(Exception):  # noqa: N818 - a way out of a case, not an error
    """A window ended between two steps."""


class Runner:
    """Asks cases of one target.

    Args:
        target: Is asked.
        features: What it is said to have.
        clock: Should agree with the target's within a second.
        new_run: Makes the value that makes counters fresh.
    """

    def __init__(
        self,
        target: Target,
        features: frozenset[str] = frozenset(),
        clock: Clock | None = None,
        new_run: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._target = target
        self._features = features
        self._clock = clock or SystemClock()
        self._new_run = new_run

    def run(self, cases: Iterable[Case]) -> Iterator[CaseResult]:
        """Each case's result, as soon as it is there."""
        for case in cases:
            if case.runs_with(self._features):
                started = self._clock.now_s()
                found = tuple(self._asked(case))
                yield CaseResult(case=case, differences=found, seconds=self._clock.now_s() - started)
            else:
                yield CaseResult(case=case, skipped=True, missing=case.requires - self._features)

    def _asked(self, case: Case) -> list[str]:
        for _ in range(ATTEMPTS_MAX):
            try:
                return self._attempt(case)
            except _BorderMet:
                continue
        return [f"in each of {ATTEMPTS_MAX} attempts a window ended in the middle: the target is too slow for this"]

    def _attempt(self, case: Case) -> list[str]:
        run = self._new_run()
        windows_s = case.windows_s()
        self._wait_for_room(windows_s)
        began_s = self._clock.now_s()
        resets_s = 0.0
        for number, step in enumerate(case.steps, 1):
            if step.after_reset:
                self._clock.sleep(min(resets_s, max(windows_s, default=1)) + AFTER_RESET_S)
                self._wait_for_room(windows_s)
                began_s = self._clock.now_s()
            asked = Asked(domain=case.domain, run=run, now_s=self._clock.now_s(), features=self._features)
            answers = self._target.ask([_request(case, step, run)] * step.callers)
            ended_s = self._clock.now_s()
            if any(began_s // window_s != ended_s // window_s for window_s in windows_s):
                raise _BorderMet
            found = differences(step.expected, answers, asked)
            if found:
                return [f"step {number}: {text}" for text in found]
            resets_s = _longest_reset_s(answers)
        return []

    def _wait_for_room(self, windows_s: Iterable[int]) -> None:
        for window_s in sorted(windows_s, reverse=True):
            left_s = window_s - self._clock.now_s() % window_s
            if left_s < min(TIME_LEFT_S, window_s * TIME_LEFT_SHARE):
                self._clock.sleep(left_s + AFTER_RESET_S)


def _longest_reset_s(answers: Sequence[Answer]) -> float:
    resets = [
        status.duration_until_reset.seconds + status.duration_until_reset.nanos / 1e9
        for answer in answers
        if not isinstance(answer, Fault)
        for status in answer.statuses
    ]
    return max(resets, default=0.0)


def _request(case: Case, step: Step, run: str) -> RateLimitRequest:
    request = RateLimitRequest(domain=case.domain if step.domain is None else step.domain, hits_addend=step.hits_addend)
    for asked in step.descriptors:
        descriptor = request.descriptors.add(is_negative_hits=asked.is_negative_hits)
        if not case.at_top:
            descriptor.entries.add(key=RUN_KEY, value=run)
        for key, value in asked.entries:
            descriptor.entries.add(key=key, value=value.replace(RUN, run))
        if asked.hits_addend is not None:
            descriptor.hits_addend.value = asked.hits_addend
        if asked.limit is not None:
            requests, unit, multiplier = asked.limit
            descriptor.limit.requests_per_unit = requests
            # any number is a request that a client can send
            descriptor.limit.unit = unit  # type: ignore[assignment]
            if multiplier is not None:
                descriptor.limit.unit_multiplier.value = multiplier
    return request
