"""A limit as rules use it: which counter a request is counted in, at which rate, and what the request costs.

The rate is the limit's own, or that of the caller's plan. The cost is a constant, or taken from the request. A cost
that cannot be read is never guessed: the request is denied, since too small a guess would let it pass uncounted and the
greatest would be taken from a caller who may have made a slip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sidecar.core.authz import Unmet
from sidecar.core.decision import DenyReason
from sidecar.core.limits import REQUESTS_MAX, Algorithm, Charge, counter_key
from sidecar.core.reservations import Held, Reservation, encode
from sidecar.core.selectors import SELECTORS_OF_REQUEST

if TYPE_CHECKING:
    from sidecar.core.context import RequestContext
    from sidecar.core.limits import Limit, LimitOutcome, OnFailure
    from sidecar.core.principal import Principal
    from sidecar.core.selectors import PathParameters, Selector

COST_DIGITS_MAX: Final = 10
"""Of the largest cost, `REQUESTS_MAX`."""


def limit_key_prefix(prefix: str, name: str) -> bytes:
    """How every counter key of a limit of the policy starts; `prefix` is `redis.key_prefix`."""
    return f"{prefix}:{name}:".encode("ascii")


def limit_key(prefix: str, name: str, values: Sequence[str | None]) -> bytes:
    """The counter key (`Charge.key`) of a limit of the policy for these values of its `key`, None for an absent one."""
    return counter_key(limit_key_prefix(prefix, name), values)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSource:
    """A cost that each request has of its own: a whole number, written in decimal without sign and leading zeros.

    Attributes:
        selector: Where it stands.
        default: The cost of a request that has no such value; None: the request is denied.
        least: Any smaller is denied. Not 0 where the client writes the value: 0 takes nothing.
        most: Any larger is denied.
    """

    selector: Selector
    default: int | None = None
    least: int = 1
    most: int = REQUESTS_MAX

    def cost(self, request: RequestContext, principal: Principal | None, parameters: PathParameters) -> int | None:
        """The request's cost; None where it has none that is acceptable."""
        text = self.selector.select(request, principal, parameters)
        if text is None:
            return self.default
        if len(text) > COST_DIGITS_MAX or not text.isascii() or not text.isdigit() or (text[0] == "0" and text != "0"):
            return None
        cost = int(text)
        return cost if self.least <= cost <= self.most else None


@dataclass(frozen=True, slots=True, eq=False)
class Plans:
    """The rates of a limit by the caller's plan; whoever has none of them gets the limit's own."""

    by: Selector
    limits: Mapping[str, Limit]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LimitBinding:
    """A limit as rules use it: the same counters wherever the same limit is named.

    Attributes:
        limit: With the limit's own rate.
        key_prefix: See `limit_key_prefix`.
        held: The ids by which reservations name the limit and its plans' (reservations.py); empty if none is held.
        by_request: Whether the charge depends on the request, not on the principal alone.
    """

    limit: Limit
    key: tuple[Selector, ...]
    key_prefix: bytes
    on_failure: OnFailure
    cost: int | CostSource = 1
    plans: Plans | None = None
    held: Mapping[Limit, str] = field(default_factory=dict)
    by_request: bool = field(init=False)

    def __post_init__(self) -> None:
        selectors = list(self.key)
        if self.plans is not None:
            selectors.append(self.plans.by)
        if isinstance(self.cost, CostSource):
            selectors.append(self.cost.selector)
        object.__setattr__(self, "by_request", any(isinstance(each, SELECTORS_OF_REQUEST) for each in selectors))

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limit with its own rate, then with those of its plans."""
        return (self.limit, *(self.plans.limits.values() if self.plans is not None else ()))

    def plan_of(self, limit: Limit) -> str | None:
        """The plan whose limit this is; None for the limit with its own rate."""
        plans = self.plans.limits if self.plans is not None else {}
        return next((plan for plan, each in plans.items() if each is limit), None)

    def charge(
        self, request: RequestContext, principal: Principal | None, parameters: PathParameters
    ) -> Charge | Unmet:
        """The limit applied to the request's key; `Unmet` where the request's cost is not acceptable."""
        parts = tuple([selector.select(request, principal, parameters) for selector in self.key])
        limit = self.limit
        if self.plans is not None:
            plan = self.plans.by.select(request, principal, parameters)
            if plan is not None:
                limit = self.plans.limits.get(plan, limit)
        cost = self.cost
        if isinstance(cost, CostSource):
            found = cost.cost(request, principal, parameters)
            if found is None:
                accepted = f"a whole number from {cost.least} to {cost.most}"
                return Unmet(DenyReason.COST_MALFORMED, f"the cost for limit {limit.name!r} is not {accepted}")
            cost = found
        charge = Charge(limit, counter_key(self.key_prefix, parts), cost)
        charge.subject = parts
        return charge


def charges_of(
    bindings: Sequence[LimitBinding],
    request: RequestContext,
    principal: Principal | None,
    parameters: PathParameters,
) -> list[Charge] | Unmet:
    """The charges of one decision, in the order of their limits; `Unmet` for the first cost that is not acceptable."""
    charges = []
    for binding in bindings:
        charge = binding.charge(request, principal, parameters)
        if isinstance(charge, Unmet):
            return charge
        charges.append(charge)
    return charges


def is_held(limit: Limit) -> bool:
    """Whether what is taken of a limit is a hold, which a reservation names and a SETTLE ends."""
    return limit.hold_us > 0 or limit.algorithm is Algorithm.CONCURRENCY


def reservation_name(
    bindings: Sequence[LimitBinding], charges: Sequence[Charge], outcomes: Sequence[LimitOutcome], hold: int
) -> str:
    """The name of what a decision holds, "" if it holds nothing: a shadow limit without room was not taken from."""
    held = [
        Held(binding.held[charge.limit], charge.key)
        for binding, charge, outcome in zip(bindings, charges, outcomes, strict=True)
        if charge.hold and outcome.allowed
    ]
    return encode(Reservation(hold, tuple(held))) if held else ""
