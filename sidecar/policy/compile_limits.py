"""The `limits` section, compiled to what rules charge; what its keys say together is checked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.core.bindings import CostSource, LimitBinding, Plans, is_held, limit_key_prefix
from sidecar.core.calendars import PERIOD_US, Calendar, Period
from sidecar.core.limits import (
    REQUESTS_MAX_OF,
    WINDOW_US_MAX,
    WINDOW_US_MIN,
    Algorithm,
    Limit,
    OnFailure,
)
from sidecar.core.selectors import (
    AddressSelector,
    ClaimSelector,
    ConstantSelector,
    HeaderSelector,
    MetadataSelector,
    PathParameterSelector,
    PrincipalFact,
    PrincipalSelector,
    Selector,
)
from sidecar.policy.calendars import load_calendar
from sidecar.policy.compile_issuers import claim_path
from sidecar.policy.durations import parse as parse_duration
from sidecar.policy.durations import render as render_duration
from sidecar.policy.fields import parse_header, parse_percent, parse_rate
from sidecar.policy.limit_sections import CostFrom

if TYPE_CHECKING:
    from sidecar.policy import limit_sections as written
    from sidecar.policy.validate import Validated
    from sidecar.policy.yaml import PathParts

DEFAULT_PREFIX = "sidecar"
"""`redis.key_prefix` where there is no `redis` section."""


def compile_limits(validated: Validated) -> Mapping[str, LimitBinding]:
    """Limits by name, each as every rule uses it; what is wrong is added to the faults."""
    document = validated.document
    prefix = document.redis.key_prefix if document.redis is not None else DEFAULT_PREFIX
    bindings: dict[str, LimitBinding] = {}
    for name, section in document.limits.items():
        binding = _LimitCompiler(validated, name, section).binding(prefix, OnFailure(document.on_redis_failure))
        if binding is not None:
            bindings[name] = binding
    return bindings


def held_limits(bindings: Mapping[str, LimitBinding]) -> Mapping[str, Limit]:
    """The limits that reservations name, by the ids that they have there."""
    return {limit_id: limit for binding in bindings.values() for limit, limit_id in binding.held.items()}


def compile_selector(selector: written.Selector) -> Selector:
    """A selector, as deciding uses it."""
    kind, value = selector.chosen
    match kind:
        case "claim":
            return ClaimSelector(claim_path(value))
        case "principal":
            return PrincipalSelector(PrincipalFact(value))
        case "header":
            return HeaderSelector(parse_header(value))
        case "metadata":
            return MetadataSelector(value.namespace, claim_path(value.path))
        case "client_address":
            return AddressSelector()
        case "path_parameter":
            return PathParameterSelector(value)
        case _:
            return ConstantSelector(value)


@dataclass(frozen=True, slots=True)
class _Figures:
    """What a rate says."""

    requests: int
    window_us: int
    burst: int = 0
    calendar: Calendar | None = None


@dataclass(slots=True, eq=False)
class _LimitCompiler:
    """Compiles one limit; each fault is added where it stands."""

    validated: Validated
    name: str
    section: written.LimitSection

    def binding(self, prefix: str, on_failure: OnFailure) -> LimitBinding | None:
        """The limit as rules use it; None if anything about it is wrong."""
        known = len(self.validated.faults)
        section = self.section
        algorithm = self._algorithm()
        figures = self._figures(("rate",), section.rate, algorithm)
        self._check_together(algorithm)
        by_plan: dict[str, _Figures | None] = {}
        if section.plans is not None:
            for plan, rate in section.plans.rates.items():
                by_plan[plan] = self._figures(("plans", "rates", plan), rate, algorithm)
        cost = self._cost()
        if figures is None or len(self.validated.faults) != known:
            return None
        limit = self._limit(figures, algorithm, ("rate",))
        plan_limits = {
            plan: self._limit(each, algorithm, ("plans", "rates", plan)) for plan, each in by_plan.items() if each
        }
        if isinstance(cost, int) and limit.capacity and cost > limit.capacity:
            message = f"{cost} is more than the limit's {limit.capacity}: no request would ever pass"
            self._fault(("cost",), message, f"at most {limit.capacity}")
        if len(self.validated.faults) != known:
            return None
        selectors = section.key if isinstance(section.key, list) else [section.key]
        return LimitBinding(
            limit=limit,
            key=tuple(compile_selector(selector) for selector in selectors),
            key_prefix=limit_key_prefix(prefix, self.name),
            on_failure=OnFailure(section.on_redis_failure or on_failure),
            cost=cost,
            plans=Plans(compile_selector(section.plans.by), plan_limits) if section.plans is not None else None,
            held=_held(limit, plan_limits),
        )

    def _fault(self, where: PathParts, message: str, accepted: str) -> None:
        self.validated.fault(("limits", self.name, *where), message, accepted)

    def _algorithm(self) -> Algorithm:
        rate = self.section.rate
        if "algorithm" not in self.section.model_fields_set and not isinstance(rate, str) and rate.calendar is not None:
            return Algorithm.FIXED_WINDOW
        return Algorithm(self.section.algorithm)

    # -- rates

    def _figures(self, where: PathParts, rate: str | written.Rate, algorithm: Algorithm) -> _Figures | None:
        """What a rate says; None where it says something wrong."""
        known = len(self.validated.faults)
        if isinstance(rate, str):
            figures = self._of_text(where, rate, algorithm)
        elif algorithm is Algorithm.CONCURRENCY:
            figures = self._of_concurrency(where, rate)
        else:
            figures = self._of_mapping(where, rate, algorithm)
        requests_max = REQUESTS_MAX_OF[algorithm]
        if figures.requests > requests_max:
            at = where if isinstance(rate, str) else (*where, "requests")
            self._fault(at, f"{figures.requests} is out of range", f"at most {requests_max} with {algorithm}")
        return figures if len(self.validated.faults) == known else None

    def _of_text(self, where: PathParts, rate: str, algorithm: Algorithm) -> _Figures:
        requests, window_us = parse_rate(rate)
        if algorithm is Algorithm.CONCURRENCY:
            self._fault(where, "concurrency counts requests under way and has no window", f"{{requests: {requests}}}")
        elif not WINDOW_US_MIN <= window_us <= WINDOW_US_MAX or requests > REQUESTS_MAX_OF[Algorithm.FIXED_WINDOW]:
            most = REQUESTS_MAX_OF[algorithm]
            accepted = f"a window from 1ms to {render_duration(WINDOW_US_MAX)}, and at most {most} requests"
            self._fault(where, f"the rate {rate!r} is out of range", accepted)
            requests = 0
        return _Figures(requests, window_us)

    def _of_concurrency(self, where: PathParts, rate: written.Rate) -> _Figures:
        for key in ("window", "calendar", "time_zone", "burst"):
            if key in rate.model_fields_set:
                message = "concurrency counts requests under way and has no window"
                self._fault((*where, key), message, "requests alone")
        hold = self.section.reserve.hold if self.section.reserve is not None else "1s"
        return _Figures(rate.requests, parse_duration(hold))

    def _of_mapping(self, where: PathParts, rate: written.Rate, algorithm: Algorithm) -> _Figures:
        if rate.window is not None and rate.calendar is not None:
            self._fault((*where, "calendar"), "window and calendar are given together", "one of them")
        if rate.window is None and rate.calendar is None:
            self._fault((*where, "window"), "the key is missing", "window: in which time; or calendar")
        if "time_zone" in rate.model_fields_set and rate.calendar is None:
            self._fault((*where, "time_zone"), "it is for a calendar's windows", "calendar, or leave the key out")
        if rate.calendar is not None and algorithm is not Algorithm.FIXED_WINDOW:
            message = f"a calendar's windows are not for {algorithm}"
            self._fault((*where, "calendar"), message, "algorithm: fixed_window, or window")
        if rate.burst is not None and algorithm is not Algorithm.GCRA:
            self._fault((*where, "burst"), f"a burst is not for {algorithm}", "algorithm: gcra, or leave the key out")
        if rate.calendar is not None:
            period = Period(rate.calendar)
            calendar = load_calendar(period, rate.time_zone)
            return _Figures(rate.requests, PERIOD_US[period], 0, calendar)
        window_us = parse_duration(rate.window) if rate.window is not None else WINDOW_US_MIN
        if rate.burst is not None and rate.burst * window_us > rate.requests * WINDOW_US_MAX:
            message = f"a burst of {rate.burst} would need more than 366 days to come back"
            self._fault((*where, "burst"), message, "a smaller burst, or a higher rate")
        return _Figures(rate.requests, window_us, rate.burst or 0)

    # -- what goes together

    def _check_together(self, algorithm: Algorithm) -> None:
        section = self.section
        concurrency = algorithm is Algorithm.CONCURRENCY
        leave_out = "leave the key out"
        if concurrency and section.reserve is None:
            message = "concurrency needs a time after which a request that was never reported done no longer counts"
            self._fault(("reserve",), message, "reserve: {hold: 60s}")
        held = concurrency or section.reserve is not None
        holder = "concurrency" if concurrency else "reserve"
        if held and section.count_denied:
            self._fault(("count_denied",), f"{holder} takes holds, and nobody settles what was denied", leave_out)
        if held and section.deny_cache:
            self._fault(
                ("deny_cache",),
                f"{holder} takes holds, and any may be given back early",
                leave_out,
            )
        if section.lease is None:
            return
        if held:
            self._fault(("lease",), f"{holder} takes holds, and no process can hold for another", leave_out)
        if algorithm is Algorithm.SLIDING_LOG:
            message = "sliding_log is exact, and what is leased is counted before it is granted"
            self._fault(("lease",), message, "another algorithm, or leave the key out")
        if section.shadow:
            message = "a shadow grants nothing, so there is nothing to grant ahead"
            self._fault(("lease",), message, "one of them")
        if section.count_denied:
            message = "count_denied counts every request where it happens, and a lease does not"
            self._fault(("lease",), message, "one of them")

    # -- cost

    def _cost(self) -> int | CostSource:
        cost = self.section.cost
        if not isinstance(cost, CostFrom):
            return cost
        if cost.min > cost.max:
            self._fault(("cost", "min"), f"{cost.min} is more than max ({cost.max})", f"at most {cost.max}")
        if cost.default is not None and cost.default > cost.max:
            self._fault(("cost", "default"), f"{cost.default} is more than max ({cost.max})", f"at most {cost.max}")
        return CostSource(selector=compile_selector(cost.source), default=cost.default, least=cost.min, most=cost.max)

    # -- the limit

    def _limit(self, figures: _Figures, algorithm: Algorithm, where: PathParts) -> Limit:
        section = self.section
        reserve = section.reserve
        held = reserve is not None
        capacity = figures.burst or figures.requests
        if section.lease is not None and section.lease > capacity:
            self._fault(("lease",), f"{section.lease} is more than the {where[0]} allows", f"at most {capacity}")
        return Limit(
            name=self.name,
            requests=figures.requests,
            window_us=figures.window_us,
            algorithm=algorithm,
            count_denied=section.count_denied,
            shadow=section.shadow,
            burst=figures.burst,
            calendar=figures.calendar,
            hold_us=parse_duration(reserve.hold) if reserve is not None else 0,
            lease=section.lease or 0,
            deny_cache=not held if section.deny_cache is None else section.deny_cache,
            warn_above=self._warn_above(capacity),
        )

    def _warn_above(self, capacity: int) -> int | None:
        warn_at = self.section.warn_at
        if warn_at is None or not capacity:
            return None
        if isinstance(warn_at, str):
            return -(-parse_percent(warn_at) * capacity // 100) - 1
        if warn_at > capacity:
            self._fault(("warn_at",), f"{warn_at} is more than the limit's {capacity}", f"at most {capacity}")
        return warn_at - 1


def _held(limit: Limit, plans: Mapping[str, Limit]) -> dict[Limit, str]:
    """The ids by which reservations name what is held; plans of the same figures count alike, and share theirs."""
    if not is_held(limit):
        return {}
    return {each: f"{limit.name}/{plan}" for plan, each in plans.items()} | {limit: limit.name}
