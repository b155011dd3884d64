"""Every metric there is: one row each. Run as a program, the module prints docs/metrics.md; a test compares the two.

Labels are bounded: their values come from the policy (rules, issuers, limits) or from a closed set, never from a
request.
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass
from typing import Final


class Kind(enum.StrEnum):
    """The Prometheus type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Merge(enum.StrEnum):
    """How the values of several workers become one; PER_WORKER keeps each, under a label `worker`."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"
    PER_WORKER = "per worker"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric: what it is called, what it counts, and how workers' values are merged."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    merge: Merge = Merge.SUM


DECISION_BOUNDS_US: Final = (25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000)
"""Upper bounds of the latency buckets: from a decision without I/O to one that ran into the check's timeout."""

_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

METRICS: Final[tuple[MetricRow, ...]] = (
    MetricRow(
        "sidecar_decisions_total",
        _C,
        ("rule", "decision", "reason"),
        "Checks answered: rule (`-` where none matched), decision (allowed, denied, error), reason.",
    ),
    MetricRow(
        "sidecar_decisions_degraded_total",
        _C,
        ("rule",),
        "Checks whose limits Redis did not enforce, decided as the policy's on_redis_failure says (local, allow).",
    ),
    MetricRow(
        "sidecar_shadow_denials_total",
        _C,
        ("limit",),
        "Checks that a limit would have denied, were it not a shadow.",
    ),
    MetricRow("sidecar_decision_latency_seconds", _H, (), "From the arrival of a Check to its answer."),
    MetricRow(
        "sidecar_dpop_proofs_total",
        _C,
        ("outcome",),
        "DPoP proofs that were good, by outcome: first, replayed, unavailable (nobody could say; denied).",
    ),
    MetricRow("sidecar_dpop_proofs_local_total", _C, (), "Of the first ones, those that this process alone has noted."),
    MetricRow("sidecar_token_cache_hits_total", _C, (), "Tokens found verified in the cache."),
    MetricRow("sidecar_token_cache_misses_total", _C, (), "Tokens that were not in the cache."),
    MetricRow("sidecar_token_cache_evictions_total", _C, (), "Tokens pushed out of the cache by its limits."),
    MetricRow("sidecar_token_cache_entries", _G, (), "Tokens in the cache."),
    MetricRow("sidecar_token_cache_bytes", _G, (), "Estimated size of the cache."),
    MetricRow("sidecar_verifications_waiting", _G, (), "Tokens that wait for their signature's verification."),
    MetricRow(
        "sidecar_verifications_deferred_total",
        _C,
        (),
        "Tokens that had to wait, since more were to be verified than one turn of the event loop has room for.",
    ),
    MetricRow(
        "sidecar_verifications_refused_total",
        _C,
        ("reason",),
        "Tokens that were not verified, and their Checks denied as overloaded: queue (too many waited), deadline "
        "(there was no time left when it was their turn).",
    ),
    MetricRow(
        "sidecar_api_keys_total",
        _C,
        ("keyring", "result"),
        "API keys that were shown, by what became of them: accepted, invalid, pepper_missing, expired, not_yet_valid, "
        "revoked, not_allowed_here, unavailable. Malformed ones belong to no keyring: see sidecar_decisions_total.",
    ),
    MetricRow(
        "sidecar_api_key_previous_secret_uses_total",
        _C,
        ("keyring",),
        "API keys that were accepted with the secret from before a rotation.",
    ),
    MetricRow(
        "sidecar_api_key_look_ups_total",
        _C,
        ("keyring", "outcome"),
        "Look-ups of API keys in Redis: found, unknown, failed; shed where too many were under way.",
    ),
    MetricRow(
        "sidecar_api_key_stale_uses_total",
        _C,
        ("keyring",),
        "Uses of remembered API keys that could not be looked up again.",
    ),
    MetricRow(
        "sidecar_api_key_uses_dropped_total",
        _C,
        ("keyring",),
        "API keys of which it could not be written down that they were used.",
    ),
    MetricRow("sidecar_api_key_cache_entries", _G, ("keyring",), "API keys that are remembered."),
    MetricRow(
        "sidecar_api_key_cache_evictions_total",
        _C,
        ("keyring",),
        "API keys that were pushed out of memory by others.",
    ),
    MetricRow(
        "sidecar_api_key_soonest_expiry_timestamp_seconds",
        _G,
        ("keyring",),
        "When the first of the remembered API keys expires.",
        Merge.MIN,
    ),
    MetricRow(
        "sidecar_jwks_age_seconds", _G, ("issuer",), "Time since an issuer's keys were last confirmed.", Merge.MAX
    ),
    MetricRow("sidecar_jwks_keys", _G, ("issuer",), "Usable keys held of an issuer.", Merge.MIN),
    MetricRow(
        "sidecar_jwks_keys_unusable",
        _G,
        ("issuer", "kind"),
        "Keys that an issuer publishes and that are not used: exposed (a secret or private parts: alarm), or other.",
        Merge.MAX,
    ),
    MetricRow(
        "sidecar_jwks_fetches_total",
        _C,
        ("issuer", "result"),
        "Fetches of an issuer's keys by result: ok, unchanged (304, or the same file), failed.",
    ),
    MetricRow(
        "sidecar_jwks_fetches_spared_total",
        _C,
        ("issuer",),
        "Requests with an unknown key that caused no fetch: the key was just looked for, or the ration is used up.",
    ),
    MetricRow("sidecar_internal_tokens_signed_total", _C, (), "Internal tokens that were signed."),
    MetricRow(
        "sidecar_internal_tokens_reused_total",
        _C,
        (),
        "Uses of internal tokens that had been signed for the same caller.",
    ),
    MetricRow("sidecar_internal_tokens_kept", _G, (), "Internal tokens that are kept for callers that come again."),
    MetricRow(
        "sidecar_internal_key_age_seconds",
        _G,
        (),
        "For how long the key that signs internal tokens has been the one.",
        Merge.MAX,
    ),
    MetricRow(
        "sidecar_introspection_latency_seconds",
        _H,
        (),
        "From a question about an opaque token to the end of the endpoint's answer.",
    ),
    MetricRow(
        "sidecar_introspection_questions_total",
        _C,
        ("introspection", "result"),
        "Questions by what came of them: active, inactive, refused (active, and a claim does not hold), unusable (no "
        "introspection response), failed.",
    ),
    MetricRow(
        "sidecar_introspection_spared_total",
        _C,
        ("introspection", "reason"),
        "Questions that were not asked: rate (the budget is used up), queue (too many wait), breaker (the endpoint "
        "fails), deadline (nobody waited any more).",
    ),
    MetricRow("sidecar_introspection_in_flight", _G, ("introspection",), "Questions under way."),
    MetricRow("sidecar_introspection_queued", _G, ("introspection",), "Questions that wait for one to end."),
    MetricRow(
        "sidecar_introspection_breaker_state",
        _G,
        ("introspection",),
        "An endpoint's circuit breaker: 0 closed, 1 half open, 2 open.",
        Merge.MAX,
    ),
    MetricRow("sidecar_introspection_cache_hits_total", _C, (), "Opaque tokens whose answer was remembered."),
    MetricRow("sidecar_introspection_cache_misses_total", _C, (), "Opaque tokens of which nothing fresh was known."),
    MetricRow(
        "sidecar_introspection_cache_evictions_total", _C, (), "Answers that were forgotten early for want of room."
    ),
    MetricRow("sidecar_introspection_cache_entries", _G, ("kind",), "Answers that are remembered: active, refused."),
    MetricRow("sidecar_revocations", _G, (), "Revocations in force, as this process knows them.", Merge.MAX),
    MetricRow("sidecar_revocations_refused_total", _C, (), "Proved callers refused: revoked, or it was not known."),
    MetricRow("sidecar_revocations_age_seconds", _G, (), "Time since Redis last confirmed what is revoked.", Merge.MAX),
    MetricRow("sidecar_revocations_subscribed", _G, (), "1 while revocations are pushed, else 0: polled.", Merge.MIN),
    MetricRow("sidecar_revocation_changes_total", _C, ("heard",), "Changes of revocations heard of: push, poll."),
    MetricRow("sidecar_revocation_loads_total", _C, (), "Times that all revocations were read anew."),
    MetricRow("sidecar_revocations_restored_total", _C, (), "Revocations put back into a Redis that had lost them."),
    MetricRow(
        "sidecar_revocation_subscriptions_silent_total",
        _C,
        (),
        "Subscriptions made anew because they did not tell of a change that the poll found.",
    ),
    MetricRow(
        "sidecar_failed_authentications_total",
        _C,
        ("result",),
        "Refused credentials: counted against their source's budget, or dropped since too many sources were waiting.",
    ),
    MetricRow("sidecar_suspects", _G, (), "Sources whose budget of failed authentications is used up.", Merge.MAX),
    MetricRow("sidecar_suspects_evicted_total", _C, (), "Such sources that were forgotten for want of room."),
    MetricRow("sidecar_redis_latency_seconds", _H, (), "From sending a limit decision to Redis to its reply."),
    MetricRow("sidecar_redis_failures_total", _C, ("kind",), "Limit decisions that Redis did not make, by kind."),
    MetricRow(
        "sidecar_redis_breaker_state", _G, (), "Circuit breaker of Redis: 0 closed, 1 half open, 2 open.", Merge.MAX
    ),
    MetricRow("sidecar_redis_breaker_opened_total", _C, (), "Times that the circuit breaker has opened."),
    MetricRow("sidecar_redis_connects_total", _C, (), "Times that a connection to Redis has become usable."),
    MetricRow(
        "sidecar_redis_redirections_total",
        _C,
        ("kind",),
        "Answers of a Cluster's node that executed nothing, by kind: moved, ask, tryagain, clusterdown.",
    ),
    MetricRow(
        "sidecar_redis_topology_changes_total",
        _C,
        (),
        "Times that other servers became responsible: a failover, slots that moved.",
    ),
    MetricRow(
        "sidecar_redis_refunds_total",
        _C,
        (),
        "Charges to be given back because another part of their decision, in another slot or store, was denied or "
        "failed.",
    ),
    MetricRow(
        "sidecar_redis_refunds_failed_total",
        _C,
        (),
        "Of those, the ones that Redis did not confirm: they may stay counted until their window ends.",
    ),
    MetricRow(
        "sidecar_redis_node_connected",
        _G,
        ("store", "node"),
        "1 while a server is connected to, else 0; `store` is main or per_second; the first 64 servers of each.",
        Merge.MIN,
    ),
    MetricRow("sidecar_redis_node_in_flight", _G, ("store", "node"), "Commands that await a server's reply."),
    MetricRow(
        "sidecar_redis_node_breaker_state",
        _G,
        ("store", "node"),
        "A server's circuit breaker: 0 closed, 1 half open, 2 open.",
        Merge.MAX,
    ),
    MetricRow("sidecar_redis_script_reloads_total", _C, (), "Times that Redis had forgotten the script of the limits."),
    MetricRow(
        "sidecar_local_counters_forgotten_total",
        _C,
        (),
        "Exhausted counters that the process pushed out for want of room: each let a caller start afresh.",
    ),
    MetricRow(
        "sidecar_local_limit_decisions_total",
        _C,
        (),
        "Limit decisions made by the process itself while Redis was down.",
    ),
    MetricRow(
        "sidecar_limits_shed_total",
        _C,
        (),
        "Limit decisions that were not made because the event loop could not keep up; on_redis_failure decided.",
    ),
    MetricRow(
        "sidecar_loop_lag_seconds", _G, (), "By how much the event loop was late when last looked at.", Merge.MAX
    ),
    MetricRow("sidecar_deny_cache_hits_total", _C, (), "Charges that were denied from memory, without asking Redis."),
    MetricRow("sidecar_deny_cache_entries", _G, (), "Denials that are remembered."),
    MetricRow("sidecar_deny_cache_evictions_total", _C, (), "Denials that were forgotten early for want of room."),
    MetricRow(
        "sidecar_lease_held",
        _G,
        (),
        "Cost taken ahead for hot keys and neither granted nor given back: what is granted beyond a sliding limit.",
    ),
    MetricRow("sidecar_lease_taken_total", _C, (), "Cost taken ahead for hot keys."),
    MetricRow("sidecar_lease_granted_total", _C, (), "Cost granted from what was taken ahead, without asking Redis."),
    MetricRow("sidecar_lease_returned_total", _C, (), "Cost taken ahead that was given back."),
    MetricRow(
        "sidecar_handover_counters", _G, (), "Counters in which Redis has yet to count what was granted without it."
    ),
    MetricRow(
        "sidecar_handover_cost_total",
        _C,
        ("result",),
        "Cost granted without Redis: counted there afterwards, or lost (its fate is unknown, or there was no room).",
    ),
    MetricRow(
        "sidecar_ratelimit_total",
        _C,
        ("domain", "limit", "outcome"),
        "Hits counted by the rate limit service, by the limit's path in its configuration (with values of requests "
        "where `detailed_metric` or `value_to_metric` asks for them, 1,000 of a domain at most) and what came of them.",
    ),
    MetricRow(
        "sidecar_ratelimit_requests_total",
        _C,
        ("domain", "answer"),
        "Rate limit calls: domain (`-` for one that is not configured), answer (ok, over_limit, shadowed, "
        "invalid, error).",
    ),
    MetricRow("sidecar_ratelimit_latency_seconds", _H, (), "From the arrival of a rate limit call to its answer."),
    MetricRow("sidecar_calls_in_flight", _G, (), "gRPC calls begun and not answered."),
    MetricRow("sidecar_connections", _G, (), "Open gRPC connections."),
    MetricRow("sidecar_calls_refused_total", _C, ("reason",), "gRPC calls refused by the transport, by reason."),
    MetricRow("sidecar_policy_generation", _G, (), "Generation of the policy in use.", Merge.MIN),
    MetricRow(
        "sidecar_policy_reloads_total", _C, ("result",), "Attempts to load a new policy: accepted, refused.", Merge.MAX
    ),
    MetricRow(
        "sidecar_policy_last_reload_successful", _G, (), "1 if the last attempt was accepted, else 0.", Merge.MIN
    ),
    MetricRow("sidecar_policy_last_success_timestamp_seconds", _G, (), "When a policy was last accepted.", Merge.MIN),
    MetricRow("sidecar_xds_connected", _G, (), "1 while the xDS server sends rate limits, else 0.", Merge.MIN),
    MetricRow(
        "sidecar_xds_updates_total", _C, ("result",), "Responses of the xDS server: accepted, refused.", Merge.MAX
    ),
    MetricRow("sidecar_xds_failures_total", _C, (), "Times that the xDS server could not be asked, or went away."),
    MetricRow("sidecar_audit_events_written_total", _C, (), "Audit events that reached their destination."),
    MetricRow("sidecar_audit_events_dropped_total", _C, (), "Audit events lost: too slow or failing a destination."),
    MetricRow("sidecar_log_lines_dropped_total", _C, (), "Log lines lost because nobody was reading stderr."),
    MetricRow("sidecar_workers", _G, ("state",), "Worker processes by state, where there are several.", Merge.MAX),
    MetricRow("sidecar_worker_restarts_total", _C, (), "Worker processes that ended unasked and were started again."),
    MetricRow(
        "sidecar_build_info", _G, ("version", "python", "engine"), "1; the labels say what is running.", Merge.MAX
    ),
    MetricRow("process_cpu_seconds_total", _C, (), "User and system CPU time.", Merge.PER_WORKER),
    MetricRow("process_resident_memory_bytes", _G, (), "Resident memory.", Merge.PER_WORKER),
    MetricRow("process_virtual_memory_bytes", _G, (), "Virtual memory.", Merge.PER_WORKER),
    MetricRow("process_open_fds", _G, (), "Open file descriptors.", Merge.PER_WORKER),
    MetricRow("process_max_fds", _G, (), "Most file descriptors that may be open.", Merge.PER_WORKER),
    MetricRow("process_start_time_seconds", _G, (), "When the process started.", Merge.PER_WORKER),
)

ROWS: Final = {row.name: row for row in METRICS}


def bucket_bounds(name: str) -> tuple[int, ...]:
    """A histogram's upper bounds in microseconds, without the last, infinite one."""
    if ROWS[name].kind is not Kind.HISTOGRAM:
        raise ValueError(f"{name} is not a histogram")
    return DECISION_BOUNDS_US


def markdown() -> str:
    """The page docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Served at `/metrics` of the admin listener, in the Prometheus text format or, where asked for, OpenMetrics.",
        "With several workers one scrape shows all of them: the last column says how their values are merged. No label",
        "takes its value from a request.",
        "",
        "| metric | type | labels | meaning | workers |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row.name}` | {row.kind} | {', '.join(f'`{label}`' for label in row.labels) or '-'} | {row.help} | "
        f"{row.merge} |"
        for row in METRICS
    ]
    bounds = ", ".join(f"{bound / 1000:g}" for bound in DECISION_BOUNDS_US)
    lines += ["", f"Buckets of all histograms, in milliseconds: {bounds}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(markdown())
