"""What a scrape reads from each part: its plain counters, as samples of the rows in metrics_table.py."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from sidecar.core.api_keys import Result
from sidecar.core.breaker import BreakerState
from sidecar.core.limits import StoreFailure
from sidecar.edges.metrics import LatencyHistogram, Sample, Source
from sidecar.edges.redis_store import REDIRECTIONS
from sidecar.edges.redis_topology import named_stores

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.policy import Policy
    from sidecar.core.token_cache import TokenCache
    from sidecar.edges.ads import AdsStatus
    from sidecar.edges.api_key_engine import ApiKeyEngine
    from sidecar.edges.audit_sink import AuditSink
    from sidecar.edges.internal_tokens import InternalTokenSigner
    from sidecar.edges.introspection import IntrospectionEngine
    from sidecar.edges.jwks import JwksEngine
    from sidecar.edges.limiter import Limiter
    from sidecar.edges.local_store import LocalStore
    from sidecar.edges.redis_topology import TopologyStore
    from sidecar.edges.replay_store import ReplayStore
    from sidecar.edges.turns import VerificationTurns
    from sidecar.policy.holder import PolicyHolder
    from sidecar.transport.service import Server

_BREAKER_NUMBERS: Final = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


def token_cache(cache: TokenCache) -> Source:
    """Hits, misses and size of the verified-token cache."""
    return lambda: [
        Sample("sidecar_token_cache_hits_total", (), cache.hits),
        Sample("sidecar_token_cache_misses_total", (), cache.misses),
        Sample("sidecar_token_cache_evictions_total", (), cache.evictions),
        Sample("sidecar_token_cache_entries", (), len(cache)),
        Sample("sidecar_token_cache_bytes", (), cache.size_bytes),
    ]


def turns(verifications: VerificationTurns) -> Source:
    """Tokens that wait to be verified, had to, or were refused instead."""
    return lambda: [
        Sample("sidecar_verifications_waiting", (), len(verifications)),
        Sample("sidecar_verifications_deferred_total", (), verifications.deferred),
        Sample("sidecar_verifications_refused_total", ("queue",), verifications.refused),
        Sample("sidecar_verifications_refused_total", ("deadline",), verifications.late),
    ]


def internal_tokens(signer: InternalTokenSigner, now_us: Callable[[], int]) -> Source:
    """Signatures and kept tokens, and the age of the key."""
    return lambda: [
        Sample("sidecar_internal_tokens_signed_total", (), signer.signed),
        Sample("sidecar_internal_tokens_reused_total", (), signer.hits),
        Sample("sidecar_internal_tokens_kept", (), len(signer)),
        Sample("sidecar_internal_key_age_seconds", (), signer.signing_for_s(now_us())),
    ]


def proofs(replays: ReplayStore) -> Source:
    """DPoP proofs that were good, by whether they were used for the first time."""
    return lambda: [
        Sample("sidecar_dpop_proofs_total", ("first",), replays.first),
        Sample("sidecar_dpop_proofs_total", ("replayed",), replays.replayed),
        Sample("sidecar_dpop_proofs_total", ("unavailable",), replays.unavailable),
        Sample("sidecar_dpop_proofs_local_total", (), replays.noted_locally),
    ]


def jwks(engine: JwksEngine) -> Source:
    """Age, number and fetches of each issuer's keys, and what its documents held besides."""

    def read() -> list[Sample]:
        now = asyncio.get_running_loop().time()
        samples: list[Sample] = []
        for state in engine.states.values():
            name = state.issuer.name
            samples.append(Sample("sidecar_jwks_keys", (name,), state.key_count))
            changed = state.fetches_ok - state.fetches_unchanged
            exposed = sum(key.exposed for key in state.dropped)
            samples.append(Sample("sidecar_jwks_keys_unusable", (name, "exposed"), exposed))
            samples.append(Sample("sidecar_jwks_keys_unusable", (name, "other"), len(state.dropped) - exposed))
            samples.append(Sample("sidecar_jwks_fetches_total", (name, "ok"), changed))
            samples.append(Sample("sidecar_jwks_fetches_total", (name, "unchanged"), state.fetches_unchanged))
            samples.append(Sample("sidecar_jwks_fetches_total", (name, "failed"), state.fetches_failed))
            samples.append(Sample("sidecar_jwks_fetches_spared_total", (name,), state.refused))
            age_s = state.age_s(now)
            if not math.isnan(age_s):
                samples.append(Sample("sidecar_jwks_age_seconds", (name,), age_s))
        return samples

    return read


def introspection(engine: IntrospectionEngine) -> Source:
    """Questions about opaque tokens, what came of them, and what is remembered."""

    def read() -> list[Sample]:
        active, refused = engine.cache.sizes
        samples = [
            Sample("sidecar_introspection_latency_seconds", (), engine.latency.buckets()),
            Sample("sidecar_introspection_cache_hits_total", (), engine.cache.hits),
            Sample("sidecar_introspection_cache_misses_total", (), engine.misses),
            Sample("sidecar_introspection_cache_evictions_total", (), engine.cache.evictions),
            Sample("sidecar_introspection_cache_entries", ("active",), active),
            Sample("sidecar_introspection_cache_entries", ("refused",), refused),
        ]
        for name, endpoint in engine.endpoints.items():
            for result, count in endpoint.results.items():
                samples.append(Sample("sidecar_introspection_questions_total", (name, result), count))
            for why, count in endpoint.spared.items():
                samples.append(Sample("sidecar_introspection_spared_total", (name, why), count))
            state = _BREAKER_NUMBERS[endpoint.breaker.state]
            samples += [
                Sample("sidecar_introspection_in_flight", (name,), endpoint.in_flight),
                Sample("sidecar_introspection_queued", (name,), endpoint.queued),
                Sample("sidecar_introspection_breaker_state", (name,), state),
            ]
        return samples

    return read


REDIS_NODES_SHOWN_MAX: Final = 64
"""Servers of a store that have metrics of their own."""


def redis(store: TopologyStore, latency: LatencyHistogram) -> Source:
    """Latency, failures and breakers of the limit store; and each server's state."""
    stores = named_stores(store)
    counts = list({id(each): each for each in (store.counts, *(part.counts for part in stores.values()))}.values())

    def read() -> list[Sample]:
        nodes = store.nodes
        states = [_BREAKER_NUMBERS[node.breaker.state] for node in nodes]
        opened = sum(node.breaker.opened_total for node in nodes) + sum(each.breaker_opened_before for each in counts)
        samples = [
            Sample("sidecar_redis_latency_seconds", (), latency.buckets()),
            Sample("sidecar_redis_breaker_state", (), max(states, default=0)),
            Sample("sidecar_redis_breaker_opened_total", (), opened),
            Sample("sidecar_redis_connects_total", (), sum(each.connects for each in counts)),
            Sample("sidecar_redis_script_reloads_total", (), sum(each.script_reloads for each in counts)),
            Sample("sidecar_redis_topology_changes_total", (), sum(each.topology_changes for each in counts)),
            Sample("sidecar_redis_refunds_total", (), sum(each.refunds for each in counts)),
            Sample("sidecar_redis_refunds_failed_total", (), sum(each.refunds_failed for each in counts)),
        ]
        for kind in StoreFailure:
            failed = sum(each.failures[kind] for each in counts)
            samples.append(Sample("sidecar_redis_failures_total", (kind.value,), failed))
        for code in REDIRECTIONS:
            redirected = sum(each.redirections[code] for each in counts)
            samples.append(Sample("sidecar_redis_redirections_total", (code.lower(),), redirected))
        for name, part in stores.items():
            for node in part.nodes[:REDIS_NODES_SHOWN_MAX]:
                labels = (name, str(node.connection.endpoint or "-"))
                samples.append(Sample("sidecar_redis_node_connected", labels, int(node.connection.connected)))
                samples.append(Sample("sidecar_redis_node_in_flight", labels, node.connection.in_flight))
                samples.append(Sample("sidecar_redis_node_breaker_state", labels, _BREAKER_NUMBERS[node.breaker.state]))
        return samples

    return read


def local_store(store: LocalStore) -> Source:
    """Decisions that this process made alone."""
    return lambda: [
        Sample("sidecar_local_limit_decisions_total", (), store.decisions_total),
        Sample("sidecar_local_counters_forgotten_total", (), store.forgotten_total),
    ]


def limiter(limiter: Limiter) -> Source:
    """What stands in front of Redis: remembered denials, leases, debts."""
    denials, leases, handover = limiter.denials, limiter.leases, limiter.handover
    return lambda: [
        Sample("sidecar_deny_cache_hits_total", (), denials.hits_total),
        Sample("sidecar_deny_cache_entries", (), len(denials)),
        Sample("sidecar_deny_cache_evictions_total", (), denials.evicted_total),
        Sample("sidecar_lease_held", (), leases.held),
        Sample("sidecar_lease_taken_total", (), leases.taken_total),
        Sample("sidecar_lease_granted_total", (), leases.granted_total),
        Sample("sidecar_lease_returned_total", (), leases.returned_total),
        Sample("sidecar_handover_counters", (), handover.owed),
        Sample("sidecar_handover_cost_total", ("counted",), handover.handed_total),
        Sample("sidecar_handover_cost_total", ("lost",), handover.lost_total),
        Sample("sidecar_limits_shed_total", (), limiter.shed_total),
        Sample("sidecar_loop_lag_seconds", (), limiter.watch.lag_s),
    ]


def api_keys(engine: ApiKeyEngine) -> Source:
    """What became of API keys, and what is remembered of them."""

    def read() -> list[Sample]:
        samples: list[Sample] = []
        for name, keyring in engine.keyrings.items():
            known, counts = keyring.known, engine.counts[name]
            for result in Result:
                number = known.accepted if result is Result.ACCEPTED else known.counts.get(result, 0)
                samples.append(Sample("sidecar_api_keys_total", (name, result.value), number))
            for outcome in ("found", "unknown", "failed", "shed"):
                number = getattr(counts, outcome)
                samples.append(Sample("sidecar_api_key_look_ups_total", (name, outcome), number))
            samples += [
                Sample("sidecar_api_key_previous_secret_uses_total", (name,), known.previous_uses),
                Sample("sidecar_api_key_stale_uses_total", (name,), known.stale_uses),
                Sample("sidecar_api_key_uses_dropped_total", (name,), known.uses_dropped),
                Sample("sidecar_api_key_cache_entries", (name,), len(known)),
                Sample("sidecar_api_key_cache_evictions_total", (name,), known.evictions),
            ]
            soonest_us = known.soonest_expiry_us()
            if soonest_us is not None:
                samples.append(Sample("sidecar_api_key_soonest_expiry_timestamp_seconds", (name,), soonest_us / 1e6))
        return samples

    return read


def ratelimit(policy: Callable[[], Policy]) -> Source:
    """The rate limit service's counts by configured limit."""

    def read() -> list[Sample]:
        return [
            Sample("sidecar_ratelimit_total", (stats.domain, stats.limit, outcome), count)
            for stats in policy().ratelimit.stats.values()
            for outcome, count in stats.outcomes().items()
        ]

    return read


def server(server: Server) -> Source:
    """Calls and connections, and what the transport refused."""
    return lambda: [
        Sample("sidecar_calls_in_flight", (), server.calls_in_flight),
        Sample("sidecar_connections", (), server.connections),
        *(Sample("sidecar_calls_refused_total", (refusal.label,), n) for refusal, n in server.refused.items()),
    ]


def policy(holder: PolicyHolder) -> Source:
    """Generation and reloads."""
    return lambda: [
        Sample("sidecar_policy_generation", (), holder.policy.generation),
        Sample("sidecar_policy_reloads_total", ("accepted",), holder.accepted_total),
        Sample("sidecar_policy_reloads_total", ("refused",), holder.refused_total),
        Sample("sidecar_policy_last_reload_successful", (), 0 if holder.faults else 1),
        Sample("sidecar_policy_last_success_timestamp_seconds", (), holder.accepted_s),
    ]


def xds(status: AdsStatus) -> Source:
    """The subscription to rate limits."""
    return lambda: [
        Sample("sidecar_xds_connected", (), int(status.connected)),
        Sample("sidecar_xds_updates_total", ("accepted",), status.accepted_total),
        Sample("sidecar_xds_updates_total", ("refused",), status.refused_total),
        Sample("sidecar_xds_failures_total", (), status.failures_total),
    ]


def audit(sink: AuditSink) -> Source:
    """Events written and lost."""
    return lambda: [
        Sample("sidecar_audit_events_written_total", (), sink.written),
        Sample("sidecar_audit_events_dropped_total", (), sink.dropped),
    ]
