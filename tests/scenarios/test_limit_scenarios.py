"""What a policy's limits do to requests and answers: plans, costs, holds, shadows, thresholds, headers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sidecar.core.decision import DenyReason
from sidecar.core.reservations import parse
from sidecar.edges.local_store import LocalStore
from sidecar.envoy.pb.ext_authz_pb2 import CheckRequest, CheckResponse
from tests.support.deciding import check_request, compiled, deciding, token
from tests.support.tokens import AUDIENCE, ISSUER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.policy import Policy

POLICY = f"""
redis: {{url: "redis://127.0.0.1:1/0"}}
ANSWERS
issuers:
  main: {{issuer: {ISSUER}, audiences: [{AUDIENCE}], algorithms: [ES256], keys: {{jwks_file: keys.json}}}}
limits:
  by-plan: {{rate: 2/day, plans: {{by: {{claim: tier}}, rates: {{gold: 5/day, none: 0/day}}}}, key: {{claim: sub}}}}
  weighed: {{rate: 10/day, cost: {{header: x-cost, default: 2}}, key: {{constant: w}}}}
  measured: {{rate: 10/day, cost: {{metadata: {{namespace: usage, path: n.tokens}}}}, key: {{constant: m}}}}
  held: {{rate: 10/day, cost: {{header: x-cost}}, reserve: {{hold: 60s}}, key: {{constant: h}}}}
  one: {{rate: {{requests: 1}}, algorithm: concurrency, reserve: {{hold: 60s}}, key: {{constant: o}}}}
  ghost: {{rate: 1/day, shadow: true, key: {{constant: g}}}}
  soft: {{rate: 4/day, warn_at: 50%, key: {{constant: s}}}}
  wide: {{rate: 100/day, key: {{constant: wide}}}}
  this-year: {{rate: {{requests: 9, calendar: year, time_zone: Asia/Tokyo}}, key: {{constant: y}}}}
  burst: {{rate: {{requests: 60, window: 1m, burst: 5}}, algorithm: gcra, key: {{constant: b}}}}
rules:
  - {{name: plan, match: {{path: {{exact: /plan}}}}, authenticate: {{issuers: [main]}}, limits: [by-plan]}}
  - {{name: weighed, match: {{path: {{exact: /weighed}}}}, anonymous: true, limits: [weighed]}}
  - {{name: measured, match: {{path: {{exact: /measured}}}}, anonymous: true, limits: [measured]}}
  - {{name: held, match: {{path: {{exact: /held}}}}, anonymous: true, limits: [wide, held, one]}}
  - {{name: ghost, match: {{path: {{exact: /ghost}}}}, anonymous: true, limits: [wide, ghost]}}
  - {{name: ghost-alone, match: {{path: {{exact: /ghost-alone}}}}, anonymous: true, limits: [ghost]}}
  - {{name: soft, match: {{path: {{exact: /soft}}}}, anonymous: true, limits: [soft]}}
  - {{name: odd, match: {{path: {{exact: /odd}}}}, anonymous: true, limits: [this-year, burst, one]}}
  - {{name: unlimited, match: {{path: {{exact: /unlimited}}}}, anonymous: true}}
"""

ALL_ANSWERS = "answers: {limit_headers: [ratelimit, x_ratelimit, reference], shadow_header: true}"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return compiled(tmp_path_factory.mktemp("policy"), POLICY.replace("ANSWERS", ""))


@pytest.fixture(scope="module")
def telling_policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return compiled(tmp_path_factory.mktemp("policy"), POLICY.replace("ANSWERS", ALL_ANSWERS), generation=2)


def headers(response: CheckResponse) -> dict[str, str]:
    """What the client is told."""
    options = response.ok_response.response_headers_to_add or response.denied_response.headers
    return {option.header.key: option.header.value for option in options if "ratelimit" in option.header.key}


def limits(response: CheckResponse) -> dict[str, dict[str, object]]:
    return {str(each["name"]): dict(each.items()) for each in response.dynamic_metadata["limits"]}


def with_cost(path: str, cost: str | None) -> bytes:
    named: Iterable[tuple[str, str]] = () if cost is None else (("x-cost", cost),)
    return check_request(path, headers=named)


PLANS = {"gold": 5, "silver": 2, None: 2, "none": 0, ("gold",): 5}


@pytest.mark.parametrize(("tier", "granted"), PLANS.items())
async def test_a_caller_has_the_rate_of_the_plan(policy: Policy, tier: object, granted: int) -> None:
    """Who has none of the plans gets the limit's own rate; the answers tell the plan's."""
    async with deciding(policy, LocalStore()) as it:
        credential = token(tier=list(tier) if isinstance(tier, tuple) else tier)
        for left in reversed(range(granted)):
            response = await it.ask(check_request("/plan", credential))
            assert headers(response)["ratelimit-policy"] == f'"by-plan";q={granted};w=86400'
            assert headers(response)["ratelimit"].startswith(f'"by-plan";r={left};t=')
        response = await it.ask(check_request("/plan", credential))
        assert response.denied_response.status.code == 429
        assert headers(response)["ratelimit-policy"] == f'"by-plan";q={granted};w=86400'


async def test_a_request_takes_what_it_states(policy: Policy) -> None:
    """The header's number, or the default where there is none."""
    async with deciding(policy, LocalStore()) as it:
        taken = [("3", 7), (None, 5), ("5", 0)]
        for cost, left in taken:
            response = await it.ask(with_cost("/weighed", cost))
            assert limits(response)["weighed"]["remaining"] == left
        assert (await it.ask(with_cost("/weighed", "1"))).denied_response.status.code == 429


@pytest.mark.parametrize(
    ("tokens", "left"), [(4.0, 6), ("4", 6), (4.5, None), (True, None), (None, None), (-1.0, None)]
)
async def test_a_cost_may_stand_in_metadata(policy: Policy, tokens: object, left: int | None) -> None:
    """What a filter before this one has found: a whole number, as a number or as text."""
    request = CheckRequest.FromString(check_request("/measured"))
    usage = request.attributes.metadata_context.filter_metadata["usage"]
    usage.update({"n": {"tokens": tokens, "other": [1, {}]}})
    async with deciding(policy, LocalStore()) as it:
        response = await it.ask(request.SerializeToString())
        if left is None:
            assert it.events[-1].decision.reason is DenyReason.COST_MALFORMED
        else:
            assert limits(response)["measured"]["remaining"] == left


async def test_what_is_held_has_a_name_of_its_own(policy: Policy) -> None:
    """The answer names the counters that are held, under a number that no other request has; others it does not."""
    names = set()
    for _ in range(3):
        async with deciding(policy, LocalStore()) as it:
            response = await it.ask(with_cost("/held", "4"))
            assert limits(response)["held"]["remaining"] == 6
            reservation = parse(response.dynamic_metadata["reservation"])
            assert [held.limit for held in reservation.held] == ["held", "one"]
            names.add(reservation.hold)
            denied = await it.ask(with_cost("/held", "4"))
            assert denied.denied_response.status.code == 429
            assert "reservation" not in denied.dynamic_metadata
    assert len(names) == 3


async def test_a_request_that_holds_nothing_names_nothing(policy: Policy) -> None:
    """Metadata without a reservation: then Envoy has nothing to send."""
    async with deciding(policy, LocalStore()) as it:
        for path in ("/weighed", "/ghost", "/unlimited"):
            assert "reservation" not in (await it.ask(check_request(path))).dynamic_metadata


@pytest.mark.parametrize("path", ["/ghost", "/ghost-alone"])
async def test_a_shadow_denies_nothing_and_shows(policy: Policy, telling_policy: Policy, path: str) -> None:
    """In the metadata and the event always, in a header by option; the client's headers do not speak of it."""
    for asked, told in ((policy, None), (telling_policy, '"ghost"')):
        async with deciding(asked, LocalStore()) as it:
            first, second = await it.ask(check_request(path)), await it.ask(check_request(path))
            assert "x-ratelimit-shadow" not in headers(first)
            assert "shadow_denied" not in first.dynamic_metadata
            assert limits(first)["ghost"] | {"reset_seconds": 0} == {
                "name": "ghost", "shadow": True, "remaining": 0, "reset_seconds": 0, "allowed": True,
            }  # fmt: skip
            assert second.status.code == 0
            assert second.dynamic_metadata["shadow_denied"] == "ghost"
            assert limits(second)["ghost"]["allowed"] is False
            assert headers(second).get("x-ratelimit-shadow") == told
            assert "ghost" not in headers(second).get("ratelimit", "") + headers(second).get("ratelimit-policy", "")
            assert [event.decision.shadowed for event in it.events] == [(), ("ghost",)]


async def test_a_threshold_warns_client_upstream_and_filters(policy: Policy) -> None:
    """From half of four on; a client that sends the header itself is not believed."""
    async with deciding(policy, LocalStore()) as it:
        forged = check_request("/soft", headers=[("x-ratelimit-warning", "forged"), ("x_ratelimit_warning", "forged")])
        first = await it.ask(forged)
        assert {"x-ratelimit-warning", "x_ratelimit_warning"} <= {*first.ok_response.headers_to_remove}
        assert "x-ratelimit-warning" not in headers(first)
        assert "warned" not in first.dynamic_metadata
        second = await it.ask(forged)
        told = {option.header.key: option.header.value for option in second.ok_response.headers}
        assert told["x-ratelimit-warning"] == headers(second)["x-ratelimit-warning"] == '"soft"'
        assert "x-ratelimit-warning" not in second.ok_response.headers_to_remove
        assert "x_ratelimit_warning" in second.ok_response.headers_to_remove
        assert second.dynamic_metadata["warned"] == "soft"
        other = await it.ask(check_request("/unlimited"))
        assert {"x-ratelimit-warning", "x_ratelimit_warning"} <= {*other.ok_response.headers_to_remove}


async def test_policies_say_what_can_be_said_of_each_algorithm(policy: Policy) -> None:
    """Calendar windows differ in length and concurrency has none: no `w`; what it counts is said."""
    async with deciding(policy, LocalStore()) as it:
        response = await it.ask(check_request("/odd"))
        said = '"this-year";q=9, "burst";q=60;w=60, "one";q=1;qu="concurrent-requests"'
        assert headers(response)["ratelimit-policy"] == said
        assert response.dynamic_metadata["reservation"]
        denied = await it.ask(check_request("/odd"))
        assert headers(denied)["ratelimit"].endswith(', "one";r=0;t=60')


async def test_other_headers_tell_of_the_tightest_limit(telling_policy: Policy) -> None:
    """Whole numbers, of the limit with the least left or the one that denies; shadows aside."""
    async with deciding(telling_policy, LocalStore()) as it:
        response = headers(await it.ask(check_request("/ghost")))
        assert (response["x-ratelimit-limit"], response["x-ratelimit-remaining"]) == ("100", "99")
        assert (response["ratelimit-limit"], response["ratelimit-remaining"]) == ("100", "99")
        assert response["x-ratelimit-reset"] == response["ratelimit-reset"]
        for _ in range(4):
            await it.ask(check_request("/soft"))
        denied = headers(await it.ask(check_request("/soft")))
        assert (denied["ratelimit-limit"], denied["x-ratelimit-remaining"]) == ("4", "0")
        assert denied["ratelimit"] == f'"soft";r=0;t={denied["ratelimit-reset"]}'


async def test_headers_can_be_left_out(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An empty list: nothing but Retry-After."""
    quiet = POLICY.replace("ANSWERS", "answers: {limit_headers: []}")
    async with deciding(compiled(tmp_path_factory.mktemp("quiet"), quiet, generation=3), LocalStore()) as it:
        assert headers(await it.ask(check_request("/weighed"))) == {}
        denied = await it.ask(with_cost("/weighed", "11"))
        assert headers(denied) == {}
        assert limits(denied)["weighed"]["allowed"] is False
