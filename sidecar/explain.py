"""`sidecar explain`: what would be decided about a request, and why. The code that decides is the one that serves.

The request is encoded as the CheckRequest that Envoy would send and decoded by the same adapter; keys are fetched from
the issuers as in serving; limits are counted in this process, from zero, since looking must not take from anybody.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf.json_format import MessageToDict

from sidecar import pipeline
from sidecar.core.api_key_records import RecordError, hold
from sidecar.core.api_keys import NO_RECORD, NeedApiKey
from sidecar.core.audit import DecisionEvent
from sidecar.core.authn import NeedKey
from sidecar.core.authz import scopes_named
from sidecar.core.decision import REASONS, Decision, DenyReason
from sidecar.core.dpop import NeedFirstUse
from sidecar.core.internal_tokens import InternalTokenError
from sidecar.core.introspection import NeedIntrospection
from sidecar.core.limits import US_PER_S, Algorithm
from sidecar.core.paths import canonical, canonical_host
from sidecar.core.redaction import masked_text
from sidecar.core.token_cache import TokenCache
from sidecar.edges.api_key_store import KeyStoreError, RedisKeyStore
from sidecar.edges.audit_record import audit_record
from sidecar.edges.holds import new_hold
from sidecar.edges.internal_tokens import InternalTokenSigner
from sidecar.edges.introspection import IntrospectionEngine
from sidecar.edges.jwks import JwksEngine
from sidecar.edges.local_store import LocalStore
from sidecar.edges.redis_topology import build_store
from sidecar.envoy import ext_authz
from sidecar.envoy.pb import ext_authz_pb2
from sidecar.policy.compile import load

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from sidecar.check import Engine
    from sidecar.core.bindings import LimitBinding
    from sidecar.core.limits import Charge, LimitOutcome, StoreFailure, Verdict
    from sidecar.policy.compile import CompiledDocument
    from sidecar.policy.settings import RedisSettings

FETCH_TIMEOUT_S = 5.0
"""How long keys are waited for: nobody's request hangs on it here."""

_FIELDS = {"method", "host", "path", "headers", "source"}
_BEFORE_RULES = (DenyReason.REQUEST_MALFORMED, DenyReason.PATH_AMBIGUOUS, DenyReason.NO_RULE)


class RequestError(ValueError):
    """The description of the request cannot be read; says what is accepted."""


def described_request(description: str | dict[str, Any]) -> bytes:
    """The CheckRequest that Envoy would send for a described request.

    Args:
        description: An object (or its JSON) with `method`, `host`, `path`, `source` as strings and `headers` as an
            object, or as a list of [name, value] pairs, which can repeat a name. Each may be left out.

    Raises:
        RequestError: It is something else.
    """
    if isinstance(description, str):
        try:
            description = json.loads(description)
        except ValueError as error:
            raise RequestError(f"standard input is not JSON: {error}") from None
        except RecursionError:
            raise RequestError("standard input is not a request: its JSON is nested too deep") from None
    if not isinstance(description, dict) or not description.keys() <= _FIELDS:
        raise RequestError(f"a request is a JSON object of {', '.join(sorted(_FIELDS))}")
    headers = description.get("headers", {})
    pairs = list(headers.items()) if isinstance(headers, dict) else headers
    request = ext_authz_pb2.CheckRequest()
    attributes = request.attributes
    http = attributes.request.http
    try:
        http.id = "explain"
        http.method = description.get("method", "GET")
        http.host = description.get("host", "localhost")
        http.path = description.get("path", "/")
        http.scheme = "http"
        attributes.source.address.socket_address.address = description.get("source", "127.0.0.1")
        for name, value in pairs:
            lower = name.strip().lower()
            merged = f"{http.headers[lower]},{value.strip()}" if lower in http.headers else value.strip()
            http.headers[lower] = merged
    except (TypeError, ValueError, AttributeError):
        accepted = "method, host, path, source: strings; headers: an object of strings, or [name, value] pairs"
        raise RequestError(f"a value has the wrong type; accepted are {accepted}") from None
    return request.SerializeToString()


@dataclass(frozen=True, slots=True)
class Explanation:
    """What each step found, the record that the audit log would get, and the answer that Envoy would get."""

    steps: tuple[tuple[str, str], ...]
    record: dict[str, Any]
    answer: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        steps = [{"step": name, "found": found} for name, found in self.steps]
        return {"steps": steps, "decision": self.record, "answer": self.answer}

    def as_text(self) -> str:
        """For people."""
        width = max(len(name) for name, _ in self.steps)
        lines = [f"{name:<{width}}  {found}" for name, found in self.steps]
        return "\n".join([*lines, "", "Envoy is told:", json.dumps(self.answer, indent=2)])


def explain(policy_file: Path, message: bytes) -> Explanation:
    """Decide one CheckRequest under a policy.

    Raises:
        PolicyError: The policy is refused.
    """
    return asyncio.run(_explain(load(policy_file, 1), message))


async def _explain(document: CompiledDocument, message: bytes) -> Explanation:
    policy = document.policy
    request = ext_authz.decode(message)
    if isinstance(request, DenyReason):
        decision = Decision(request, None, None, (), policy.generation)
        context = None
        charges: Sequence[Charge] = ()
    else:
        context = request
        decision, charges = await _decide(document, context)
    try:
        token = InternalTokenSigner(policy.internal_tokens).token_for(decision, time.time_ns() // 1000)
    except InternalTokenError as error:
        decision = Decision(DenyReason.INTERNAL, decision.rule, decision.principal, (), policy.generation)
        decision.detail = f"no internal token can be made: {error}"
        token = ""
    encoded = ext_authz.encode(decision, context, token)
    answer = MessageToDict(ext_authz_pb2.CheckResponse.FromString(encoded), preserving_proto_field_name=True)
    record = audit_record(DecisionEvent(time.time_ns() // 1000, 0, context, decision))
    steps = _steps(decision, charges, message)
    shown = tuple((name, masked_text(found)) for name, found in steps)
    return Explanation(shown, msgspec.to_builtins(record), _masked(answer))


def _masked(answer: Any) -> Any:
    """The answer without tokens in it: one that the upstream would be told, or that the request's path holds."""
    match answer:
        case str():
            return masked_text(answer)
        case dict():
            return {name: _masked(value) for name, value in answer.items()}
        case list():
            return [_masked(value) for value in answer]
        case _:
            return answer


async def _decide(document: CompiledDocument, request: Any) -> tuple[Decision, Sequence[Charge]]:
    """What is decided, and what was charged for it."""
    policy = document.policy
    charges: Sequence[Charge] = ()
    loop = asyncio.get_running_loop()
    jwks = JwksEngine(replace(issuer, keys_persist=None) for issuer in policy.issuers.values())  # looking keeps nothing
    jwks.start()
    introspection = IntrospectionEngine(policy.introspection.values())
    store = LocalStore()
    cache = TokenCache()
    findings: dict[Hashable, Any] = {}
    engines: dict[type, Engine] = {
        NeedKey: lambda need, deadline, done: jwks.ensure(need.issuer, need.kid, deadline, done),
        NeedIntrospection: introspection.ask,
        NeedFirstUse: lambda _need, _deadline, done: done(True),  # noted nowhere: the client's own request comes later
    }
    try:
        step = pipeline.begin(policy, request, cache, jwks, time.time_ns() // 1000)
        while not isinstance(step, Decision):
            if isinstance(step, pipeline.Charges):
                charges = step.charges
                if step.rule.reserves:
                    step.reserve(new_hold())
                verdict: asyncio.Future[Verdict | StoreFailure] = loop.create_future()
                store.charge(step.charges, loop.time() + 1, verdict.set_result)
                step = pipeline.settle(step, await verdict)
            else:
                if step.key in findings:
                    raise RuntimeError(f"{type(step).__name__} is needed twice")
                if isinstance(step, NeedApiKey):
                    findings[step.key] = await _api_key(document.settings.redis, step)
                else:
                    found: asyncio.Future[Any] = loop.create_future()
                    engines[type(step)](step, loop.time() + FETCH_TIMEOUT_S, found.set_result)
                    findings[step.key] = await found
                step = pipeline.begin(policy, request, cache, jwks, time.time_ns() // 1000, findings)
    finally:
        await introspection.stop()
        await jwks.stop()
    return step, charges


async def _api_key(redis: RedisSettings | None, need: NeedApiKey) -> Any:
    """What Redis has of an API key; None where it does not answer."""
    if redis is None or redis.embedded:
        return None
    store = build_store(redis, "")
    store.start()
    try:
        keys = RedisKeyStore(store, redis.key_prefix, need.keyring.name)
        await keys.connected()
        record = await keys.get(need.key_id)
        return NO_RECORD if record is None else hold(record, need.keyring.name)
    except (KeyStoreError, RecordError):
        return None
    finally:
        await store.close()


def _steps(decision: Decision, charges: Sequence[Charge], message: bytes) -> list[tuple[str, str]]:
    """The story of a decision, told from what it carries."""
    http = ext_authz_pb2.CheckRequest.FromString(message).attributes.request.http
    path = canonical(http.path.partition("?")[0])
    spelled = path if isinstance(path, str) else f"refused: {path.value}"
    steps = [("request", f"{http.method} {canonical_host(http.host)} {spelled}")]
    reason, rule = decision.reason, decision.rule
    denial = f"denied, {reason.value}: {decision.detail}".removesuffix(": ") if reason else ""
    if rule is None:
        name = "match" if reason in _BEFORE_RULES else "request"
        return [*steps, (name, denial), _outcome(decision)]
    steps.append(("match", f"rule {rule.name!r}" + (f", {dict(decision.parameters)}" if decision.parameters else "")))
    principal = decision.principal
    if rule.anonymous:
        steps.append(("authenticate", "anonymous: no credential is asked for"))
    elif principal is None:
        return [*steps, ("authenticate", denial), _outcome(decision)]
    else:
        steps.append(("authenticate", f"subject {principal.subject!r} of issuer {principal.issuer!r}"))
        if reason in {DenyReason.SCOPE_INSUFFICIENT, DenyReason.ROLE_MISSING}:
            return [*steps, ("authorize", denial), _outcome(decision)]
        scopes = ", ".join(scopes_named(rule.authorize))
        steps.append(
            ("authorize", f"holds (scopes named: {scopes or 'none'})" if rule.authorize else "whoever is proved")
        )
    if reason is DenyReason.COST_MALFORMED:
        return [*steps, ("limit", denial), _outcome(decision)]
    if decision.limits:
        charged = zip(rule.limits, charges, decision.limits, strict=True)
        steps += [("limit", _limit(binding, charge, outcome)) for binding, charge, outcome in charged]
    if not rule.limits:
        steps.append(("limit", "none"))
    return [*steps, _outcome(decision)]


def _limit(binding: LimitBinding, charge: Charge, outcome: LimitOutcome) -> str:
    """What one limit says: its plan, what was taken, what is used, and what else it does."""
    limit = outcome.limit
    plan = binding.plan_of(limit)
    of_plan = f", plan {plan!r}" if plan is not None else ""
    if limit.algorithm is Algorithm.CONCURRENCY:
        used = f"{outcome.used} of {limit.requests} under way"
    elif limit.calendar is not None:
        used = f"{outcome.used} of {limit.requests} in this {limit.calendar.period} of {limit.calendar.zone} used"
    else:
        used = f"{outcome.used} of {limit.capacity} in {limit.window_us / US_PER_S:g} s used"
    notes = [f"{limit.name!r}{of_plan}: {used}"]
    if charge.cost != 1:
        notes.append(f"cost {charge.cost}")
    if charge.hold:
        notes.append(f"held for {limit.hold_time_us / US_PER_S:g} s at most")
    if limit.shadow:
        notes.append("a shadow" if outcome.allowed else "a shadow that would have denied")
    elif not outcome.allowed:
        notes.append("exceeded")
    if limit.warn_above is not None and outcome.used > limit.warn_above:
        notes.append("above its soft threshold")
    return ", ".join(notes)


def _outcome(decision: Decision) -> tuple[str, str]:
    if decision.reason is None:
        return "decision", "allowed"
    return "decision", f"denied with {REASONS[decision.reason].http_status} ({decision.reason.value})"
