"""The `limits` section as it is written, and the selectors by which limits are keyed; a description for every key."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import ConfigDict, Field, model_validator

from sidecar.core.limits import REQUESTS_MAX
from sidecar.policy.faults import Wrong
from sidecar.policy.fields import (
    Between,
    Duration,
    HeaderName,
    PercentText,
    PlanName,
    Printable,
    RateText,
    Text,
    TimeZone,
)
from sidecar.policy.model import BY_KIND, LIST, MAPPING, NUMBER, TEXT, Choice, FailureChoice, Model, OneOrMany

SELECTORS_PER_KEY_MAX = 8

PLANS_MAX = 1000
"""Of one limit: all of them are compiled when the policy is loaded."""

HOLD_LEAST, HOLD_MOST = "100ms", "1d"
"""Shorter, and slow answers are settled after their holds lapsed; longer, and what is lost stays taken too long."""

ClaimPath: TypeAlias = OneOrMany[Text]
"""`a.b`, or a list of names where a name has a dot of its own."""


class MetadataValue(Model):
    """A value of Envoy's dynamic metadata, which the filters before this one have set."""

    namespace: Text = Field(
        description="The filter's namespace, one of `metadata_context_namespaces` of Envoy's ext_authz filter.",
        examples=["envoy.filters.http.json_to_metadata"],
    )
    path: ClaimPath = Field(description="The value; `a.b` goes into objects.", examples=["tokens", "usage.tokens"])


class Selector(Choice):
    """Where a value is taken from."""

    claim: ClaimPath | None = Field(
        None,
        description="A claim of the verified token; `a.b` goes into objects, a list of names where a name has a dot.",
        examples=["sub", ["https://issuer.example/tenant"]],
    )
    principal: Literal["subject", "issuer", "client", "method", "tier", "tenant", "key_id"] | None = Field(
        None,
        description="What is known of the caller, whatever proved it: `subject`; `issuer` (the policy's name of the "
        "issuer, keyring, endpoint or trust); `client`; `method` (`token`, `api_key`, `opaque_token`, `certificate`); "
        "`tier`; `tenant`; `key_id` (of the API key, the token's `jti`, or the certificate's digest).",
        examples=["tier"],
    )
    header: HeaderName | None = Field(
        None, description="A request header: something that the client chooses freely.", examples=["x-tenant"]
    )
    metadata: MetadataValue | None = Field(
        None,
        description="A value of Envoy's dynamic metadata.",
        examples=[{"namespace": "envoy.filters.http.json_to_metadata", "path": "tenant"}],
    )
    client_address: Literal[True] | None = Field(
        None, description="The client's address as Envoy sees it; IPv6 by its /64.", examples=[True]
    )
    path_parameter: Text | None = Field(None, description="A parameter of the rule's path template.", examples=["id"])
    constant: Printable | None = Field(None, description="The same text for every request.", examples=["all"])


class Rate(Model):
    """A number of requests in a window, a calendar's or of any length; of `concurrency`, a number alone."""

    requests: int = Field(ge=0, le=REQUESTS_MAX, description="How many are allowed; 0 allows none.", examples=[100])
    window: Annotated[Duration, Between("1ms", "366d")] | None = Field(
        None, description="In which time.", examples=["90s", "1h30m"]
    )
    calendar: Literal["day", "week", "month", "year"] | None = Field(
        None,
        description="Instead of `window`: in each day, week (from Monday), month or year of the calendar.",
        examples=["month"],
    )
    time_zone: TimeZone = Field(
        "UTC", description="Whose midnight begins the calendar's windows (an IANA name).", examples=["Europe/Berlin"]
    )
    burst: int | None = Field(
        None,
        ge=1,
        le=REQUESTS_MAX,
        description="Of `gcra`: how many may come at once; `requests` without it.",
        examples=[20],
    )


RateForms: TypeAlias = Annotated[Annotated[RateText, TEXT] | Annotated[Rate, MAPPING], BY_KIND]


class Plans(Model):
    """Other rates for some callers: by a claim that says what they pay for, or a header that the gateway sets."""

    by: Selector = Field(description="What says which plan a caller has.", examples=[{"claim": "tier"}])
    rates: dict[PlanName, RateForms] = Field(
        min_length=1,
        max_length=PLANS_MAX,
        description="The rate of each plan, as `rate`. Whoever has none of these plans gets the limit's `rate`.",
        examples=[{"gold": "1000/minute", "free": "10/minute"}],
    )


class CostFrom(Model):
    """A cost that the request states: a whole number in decimal. What is not acceptable is denied with 400."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [source]} for source in ("header", "claim", "metadata", "path_parameter")]
        }
    )

    header: HeaderName | None = Field(
        None, description="The request header that states it: something that the client chooses.", examples=["x-tokens"]
    )
    claim: ClaimPath | None = Field(None, description="The claim that states it.", examples=["weight"])
    metadata: MetadataValue | None = Field(
        None,
        description="The value of Envoy's dynamic metadata that states it.",
        examples=[{"namespace": "envoy.filters.http.json_to_metadata", "path": "max_tokens"}],
    )
    path_parameter: Text | None = Field(
        None, description="The parameter of the rule's path template that states it.", examples=["count"]
    )
    default: int | None = Field(
        None,
        ge=0,
        le=REQUESTS_MAX,
        description="The cost where none is stated; without it, such a request is denied.",
        examples=[1],
    )
    min: int = Field(
        1,
        ge=0,
        le=REQUESTS_MAX,
        description="The least that may be stated. With 0, a request that states 0 takes nothing.",
        examples=[1],
    )
    max: int = Field(REQUESTS_MAX, ge=1, le=REQUESTS_MAX, description="The most that may be stated.", examples=[1000])

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if len(self.model_fields_set & {"header", "claim", "metadata", "path_parameter"}) != 1:
            accepted = "exactly one of header, claim, metadata, path_parameter"
            raise Wrong("it is not said where the cost stands, or said twice", accepted)
        return self

    @property
    def source(self) -> Selector:
        """Where it stands."""
        return Selector(**{name: getattr(self, name) for name in self.model_fields_set & Selector.model_fields.keys()})


class Reserve(Model):
    """Take the cost as a hold that is settled when the actual cost is known, or lapses."""

    hold: Annotated[Duration, Between(HOLD_LEAST, HOLD_MOST)] = Field(
        description="How long the hold lasts unless it is settled before: longer than the longest answer takes.",
        examples=["60s"],
    )


class LimitSection(Model):
    """A rate, and what is counted apart."""

    rate: RateForms = Field(
        description="`N/second`, `minute`, `hour`, `day` or `week`, `N/90s`, or a mapping such as "
        "`{requests: N, window: 90s}` or `{requests: N, calendar: month, time_zone: Europe/Berlin}`.",
        examples=["100/minute", {"requests": 100, "window": "90s"}, {"requests": 1000, "calendar": "month"}],
    )
    algorithm: Literal["sliding_window", "fixed_window", "gcra", "sliding_log", "concurrency"] = Field(
        "sliding_window",
        description="How requests are counted; a fixed window may let twice the rate pass around its edge. "
        "`fixed_window` is the default of a calendar's windows.",
        examples=["sliding_window"],
    )
    key: Annotated[
        Annotated[Selector, MAPPING]
        | Annotated[list[Selector], LIST, Field(min_length=1, max_length=SELECTORS_PER_KEY_MAX)],
        BY_KIND,
    ] = Field(
        description="What is counted apart: one counter for each combination of these values.",
        examples=[{"claim": "sub"}, [{"claim": "sub"}, {"path_parameter": "id"}]],
    )
    plans: Plans | None = Field(
        None,
        description="Other rates for some callers.",
        examples=[{"by": {"claim": "tier"}, "rates": {"gold": "1000/minute"}}],
    )
    cost: Annotated[
        Annotated[int, NUMBER, Field(ge=0, le=REQUESTS_MAX)] | Annotated[CostFrom, MAPPING],
        BY_KIND,
    ] = Field(
        1,
        description="What a request takes: a number (0 looks without taking), or where the request states it.",
        examples=[5, {"header": "x-tokens", "default": 1, "max": 1000}],
    )
    reserve: Reserve | None = Field(
        None,
        description="Take the cost as a hold that is settled later; needed by `concurrency`.",
        examples=[{"hold": "60s"}],
    )
    warn_at: (
        Annotated[Annotated[PercentText, TEXT] | Annotated[int, NUMBER, Field(ge=1, le=REQUESTS_MAX)], BY_KIND] | None
    ) = Field(
        None,
        description="From this use on, in percent of the rate or as a number, answers that allow warn too.",
        examples=["80%", 800],
    )
    shadow: bool = Field(
        False, description="Count and report, but deny nothing: to see what a limit would do.", examples=[True]
    )
    count_denied: bool = Field(
        False,
        description="Count the requests that are denied too: a client that never stops trying stays locked out.",
        examples=[False],
    )
    deny_cache: bool | None = Field(
        None,
        description="Remember a denial until its key can pass again, without asking Redis; true without it, save "
        "where what is taken is held.",
        examples=[False],
    )
    lease: int | None = Field(
        None,
        ge=1,
        le=REQUESTS_MAX,
        description="Let each process take this much ahead for a hot key; see `docs/limits.md` for what it costs.",
        examples=[50],
    )
    on_redis_failure: FailureChoice | None = Field(
        None, description="What happens while Redis cannot answer; the policy's choice without it.", examples=["local"]
    )


class AnswersSection(Model):
    """What answers say about limits in headers; metadata always has all of it."""

    limit_headers: list[Literal["ratelimit", "x_ratelimit", "reference"]] = Field(
        ["ratelimit"],
        description="Which headers: `ratelimit` (RateLimit, RateLimit-Policy), `x_ratelimit` (X-RateLimit-Limit, "
        "-Remaining, -Reset), `reference` (RateLimit-Limit, -Remaining, -Reset, as envoyproxy/ratelimit).",
        examples=[["ratelimit"], ["ratelimit", "x_ratelimit"], []],
    )
    shadow_header: bool = Field(
        False,
        description="Name the shadow limits that would have denied in `X-RateLimit-Shadow`.",
        examples=[True],
    )
