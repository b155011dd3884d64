"""Opaque tokens: what an introspection endpoint says of one, read strictly, becomes a `Principal` (RFC 7662).

Pure. `OpaqueTokens` is the method: it refuses what is no token before anybody is asked, returns `NeedIntrospection`
for a token that it knows nothing of, and reads what was found. `AnswerCache` keeps answers; the engine
(edges/introspection.py) asks the endpoint.

An answer is believed only whole: status 200, a JSON object that everyone reads alike, `active` the boolean true, and
every claim in it valid by the rules for signed tokens (claims.py). `active: false` and a claim that does not hold are
answers about the token, and are kept for a short while; everything else is no answer, and is the endpoint's failure.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from json import dumps
from typing import TYPE_CHECKING, TypeAlias

from sidecar.core.claims import Rejected, believe, still_valid, valid_within_us
from sidecar.core.confirmation import confirm, is_bound, shown_as_dpop
from sidecar.core.credentials import HeaderPlace
from sidecar.core.decision import DenyReason
from sidecar.core.principal import Principal
from sidecar.core.strict_json import JsonError, read_object

if TYPE_CHECKING:
    from sidecar.core.context import RequestContext
    from sidecar.core.credentials import Place
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.methods import Findings, Need
    from sidecar.core.principal import Json

ANSWER_BYTES_MAX = 64 * 1024
"""Of an answer's body; real ones have less than 2 KiB."""

ACTIVE_ENTRIES_MAX = 10_000
ACTIVE_BYTES_MAX = 32 * 1024 * 1024
"""Active tokens that are remembered, and the memory for them: about 3 KiB each for usual answers."""

_ENTRY_BYTES = 1_500
_BYTES_PER_ANSWER_BYTE = 3
"""As in token_cache.py."""

REFUSED_ENTRIES_MAX = 4_096
"""Inactive tokens that are remembered: in a place of their own, since whoever sends garbage chooses what fills it."""

_US_PER_S = 1_000_000
_CLOCK_SLACK_US = _US_PER_S
"""A Check may have begun a little before the answer that it finds was noted; more is a clock that was set back."""

BEARER = HeaderPlace("authorization", ("bearer",))
"""Where bearer tokens are, unless a rule says otherwise (RFC 6750 section 2.1)."""

_B64TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
_TOKEN_TYPES = frozenset({"bearer", "dpop", "access_token"})
_TEXTS = ("iss", "sub", "client_id", "username", "jti", "scope", "token_type", "token_use")


@dataclass(frozen=True, slots=True)
class ClientSecretBasic:
    """A client's name and secret in the Authorization header (RFC 6749 section 2.3.1)."""

    client_id: str
    secret_file: str


@dataclass(frozen=True, slots=True)
class PrivateKeyJwt:
    """A JWT that the client signs (RFC 7523 section 2.2).

    Attributes:
        key_file: PEM file with the private key; its kind decides on the algorithm.
        key_id: `kid`, None for a JWT without one.
        audience: `aud`.
    """

    client_id: str
    key_file: str
    key_id: str | None
    audience: str


@dataclass(frozen=True, slots=True)
class TlsClientAuth:
    """A client's certificate (RFC 8705 section 2)."""

    client_id: str
    certificate_file: str
    key_file: str


ClientAuthentication: TypeAlias = ClientSecretBasic | PrivateKeyJwt | TlsClientAuth


@dataclass(slots=True, eq=False)
class Remembered:
    """Where a policy's answers are; None until serving has begun with it."""

    answers: AnswerCache | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IntrospectionPolicy:
    """One introspection endpoint, and what must hold of its answers.

    Attributes:
        name: The policy's name for it (`introspection.<name>`); labels metrics, and is the principal's `issuer`.
        url: The endpoint's.
        rules: What must hold of an answer's claims, as of a token's: audiences, leeway, where scopes and roles are.
            Its `issuer` is the `iss` that an answer must have, "" where any will do.
        subject_claim: Which of `sub`, `username` and `client_id` is the subject.
        token_type_hint: Say that it is an access token (RFC 7662 section 2.1).
        active_s: The longest that an active token's answer is used; 0: asked each time.
        inactive_s: How long an inactive token's is; 0: asked each time.
        on_failure_error: While the endpoint cannot be asked, Envoy decides; else the request is denied.
        timeout_s: For one question, connecting included.
        rate_count, rate_us: So many questions in so many microseconds, at once or spread.
        concurrent_max: Questions under way.
        queue_max: Questions that wait for one of these to end.
        remembered: So that what is known need not be asked for: also for callers of whom nothing is asked any more.
        identity: Digest of what is asked, and as whom: two endpoints never share an answer.
    """

    name: str
    url: str
    client: ClientAuthentication
    rules: IssuerPolicy
    subject_claim: str = "sub"
    token_type_hint: bool = True
    token_bytes_max: int = 2048
    active_s: float = 60.0
    inactive_s: float = 10.0
    on_failure_error: bool = False
    timeout_s: float = 2.0
    rate_count: int = 100
    rate_us: int = _US_PER_S
    concurrent_max: int = 16
    queue_max: int = 256
    insecure_http: bool = False
    ca_file: str | None = None
    remembered: Remembered = field(default_factory=Remembered, compare=False, repr=False)
    identity: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = [self.name, self.url, type(self.client).__name__, self.client.client_id, self.token_type_hint]
        object.__setattr__(self, "identity", sha256(dumps(parts).encode()).digest())


@dataclass(frozen=True, slots=True)
class NeedIntrospection:
    """Nothing is known of this token: ask the endpoint.

    Attributes:
        key: Digest of the endpoint's identity and the token.
        token: As shown, and well-formed.
    """

    policy: IntrospectionPolicy
    key: bytes
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The endpoint was not asked, or gave no answer that can be used.

    Attributes:
        detail: For the operator; holds nothing of the token.
        outage: The endpoint fails as such, whatever it is asked: only then does the policy's choice of `error` hold.
            What callers can bring about by what they send - a strange token, or too many - is always denied.
    """

    detail: str
    outage: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What an endpoint said of a token, and between when it may be used.

    Attributes:
        proved: Whom it describes, or why it is refused.
        policy: By which it was read.
        noted_us, until_us: When it was read, and from when on it has to be asked for again.
        cost_bytes: Estimated memory.
    """

    proved: Principal | Rejected
    policy: IntrospectionPolicy
    noted_us: int
    until_us: float
    cost_bytes: int = 0

    @property
    def active(self) -> bool:
        """Whether the token may be used."""
        return isinstance(self.proved, Principal)

    @property
    def outcome(self) -> str:
        """What it says in a word, for metrics; `refused`: active, and a claim does not hold."""
        if isinstance(self.proved, Principal):
            return "active"
        return "inactive" if self.proved.reason is DenyReason.TOKEN_INACTIVE else "refused"

    def at(self, now_us: int) -> Principal | Rejected:
        """The same, with the token's dates compared with the time."""
        proved = self.proved
        if isinstance(proved, Rejected):
            return proved
        return still_valid(proved, self.policy.rules, now_us) or proved

    def fresh(self, policy: IntrospectionPolicy, now_us: int) -> bool:
        """Whether it may be used now, under this policy, without asking again."""
        if not self.noted_us - _CLOCK_SLACK_US <= now_us < self.until_us:
            return False
        return policy is self.policy or policy == self.policy


@dataclass(frozen=True, slots=True)
class OpaqueTokens:
    """Proves opaque tokens that one endpoint knows; see `methods.Method`.

    With `require_dpop` only those that are bound to a key.
    """

    policy: IntrospectionPolicy
    place: Place = BEARER
    require_dpop: bool = False

    def shown(self, request: RequestContext) -> str | Rejected | None:
        """The token on the request, as it was sent."""
        return self.place.shown(request)

    def prove(
        self, shown: str, request: RequestContext, findings: Findings, now_us: int
    ) -> Principal | Need | Rejected:
        """Whom the token stands for; a finding is an `Answer`, `Unanswered`, or None for a failure without a reason."""
        policy = self.policy
        if len(shown) > policy.token_bytes_max:
            return Rejected(DenyReason.TOKEN_MALFORMED, f"longer than {policy.token_bytes_max} bytes")
        if _B64TOKEN.fullmatch(shown) is None:
            return Rejected(DenyReason.TOKEN_MALFORMED, "has a character that bearer tokens do not have (RFC 6750)")
        key = token_key(policy, shown)
        answers = policy.remembered.answers
        found = findings.get(key) if answers is None else findings.get(key) or answers.find(policy, key, now_us)
        if found is None and key not in findings:
            return NeedIntrospection(policy, key, shown)
        if not isinstance(found, Answer):
            return _unanswered(policy, found)
        proved = found.at(now_us)
        if isinstance(proved, Rejected):
            return proved
        binding, required = policy.rules.binding, self.require_dpop
        if not (required or is_bound(proved.claims, binding) or shown_as_dpop(shown, request)):
            return proved
        fault = confirm(proved.claims, shown, binding, request, findings, now_us, require_dpop=required)
        return proved if fault is None else fault


def token_key(policy: IntrospectionPolicy, token: str) -> bytes:
    """Names a token at an endpoint: the identity's length is fixed, so that no two pairs have the same."""
    return sha256(policy.identity + token.encode("ascii")).digest()


def _unanswered(policy: IntrospectionPolicy, found: Unanswered | None) -> Rejected:
    detail = f"introspection {policy.name!r}: {found.detail if found is not None else 'no answer'}"
    outage = found is not None and found.outage
    return Rejected(DenyReason.INTROSPECTION_UNAVAILABLE, detail, policy.on_failure_error and outage)


def read_answer(policy: IntrospectionPolicy, body: bytes, now_us: int) -> Answer | Unanswered:
    """What the body of a 200 response says of a token (RFC 7662 section 2.2).

    Returns:
        `Unanswered` where it is no introspection response: nothing is known of the token then.
    """
    if len(body) > ANSWER_BYTES_MAX:
        return Unanswered(f"the answer has more than {ANSWER_BYTES_MAX} bytes")
    try:
        members = read_object(body)
    except JsonError as error:
        return Unanswered(f"the answer {error}")
    active = members.get("active")
    if not isinstance(active, bool):
        return Unanswered("the answer's active is neither true nor false")
    proved = _principal(policy, members, now_us) if active else _INACTIVE
    if isinstance(proved, Rejected):
        return Answer(proved, policy, now_us, now_us + policy.inactive_s * _US_PER_S)
    _, expires_us = valid_within_us(proved, policy.rules)
    cost_bytes = _ENTRY_BYTES + _BYTES_PER_ANSWER_BYTE * len(body)
    return Answer(proved, policy, now_us, min(expires_us, now_us + policy.active_s * _US_PER_S), cost_bytes)


_INACTIVE = Rejected(DenyReason.TOKEN_INACTIVE, "the endpoint says that it is not active")


def _principal(policy: IntrospectionPolicy, claims: dict[str, Json], now_us: int) -> Principal | Rejected:
    """The caller whom an active token stands for."""
    fault = _text_fault(claims) or _use_fault(claims) or _issuer_fault(policy, claims)
    if fault is not None:
        return fault
    if policy.subject_claim != "sub":
        claims = claims | {"sub": claims.get(policy.subject_claim)}
    if claims.get("aud") == []:  # how some endpoints say that there is none
        claims = {name: value for name, value in claims.items() if name != "aud"}
    # the answer is about an access token (_use_fault), which the claim rules take as signed ones of this type
    proved = believe(claims, "at+jwt", policy.rules, now_us)
    if isinstance(proved, Rejected):
        return proved
    return replace(proved, issuer=policy.name, method="opaque_token")


def _text_fault(claims: Mapping[str, Json]) -> Rejected | None:
    for name in _TEXTS:
        if name in claims and not isinstance(claims[name], str):
            return Rejected(DenyReason.TOKEN_CLAIM_INVALID, f"{name} is not a string")
    return None


def _use_fault(claims: Mapping[str, Json]) -> Rejected | None:
    """A refresh token is active, too, and must not pass for an access token."""
    kind = _text(claims, "token_type").lower()
    if kind and kind not in _TOKEN_TYPES:
        return Rejected(DenyReason.TOKEN_TYPE_REFUSED, "token_type is none of Bearer, DPoP and access_token")
    if _text(claims, "token_use") not in {"", "access_token"}:
        return Rejected(DenyReason.TOKEN_TYPE_REFUSED, "token_use is not access_token")
    if kind == "dpop" and "cnf" not in claims:
        return Rejected(DenyReason.TOKEN_BINDING_UNSUPPORTED, "token_type is DPoP, and there is no cnf")
    return None


def _issuer_fault(policy: IntrospectionPolicy, claims: Mapping[str, Json]) -> Rejected | None:
    wanted = policy.rules.issuer
    if wanted and claims.get("iss") != wanted:
        return Rejected(DenyReason.TOKEN_ISSUER_UNKNOWN, "iss is not the policy's")
    return None


def _text(claims: Mapping[str, Json], name: str) -> str:
    value = claims.get(name)
    return value if isinstance(value, str) else ""


class AnswerCache:
    """Answers about the tokens that were used last, active and refused ones apart, each with a bound.

    An active token's entry stays after it is no longer fresh, until it is pushed out: that a token was active is what
    tells a caller's next question from a stranger's (`was_active`).

    Attributes:
        hits, evictions: Counted since the start.
        size_bytes: Estimated memory of the active tokens' entries; the others hold next to nothing.
    """

    def __init__(
        self,
        active_entries_max: int = ACTIVE_ENTRIES_MAX,
        active_bytes_max: int = ACTIVE_BYTES_MAX,
        refused_entries_max: int = REFUSED_ENTRIES_MAX,
    ) -> None:
        self._active: OrderedDict[bytes, Answer] = OrderedDict()
        self._refused: OrderedDict[bytes, Answer] = OrderedDict()
        self._active_max = active_entries_max
        self._bytes_max = active_bytes_max
        self._refused_max = refused_entries_max
        self.hits = 0
        self.evictions = 0
        self.size_bytes = 0

    @property
    def sizes(self) -> tuple[int, int]:
        """Entries of active and of refused tokens."""
        return len(self._active), len(self._refused)

    def find(self, policy: IntrospectionPolicy, key: bytes, now_us: int) -> Answer | None:
        """The answer about a token, where there is one that may still be used under this policy."""
        for entries in (self._active, self._refused):
            answer = entries.get(key)
            if answer is not None and answer.fresh(policy, now_us):
                entries.move_to_end(key)
                self.hits += 1
                return answer
        return None

    def put(self, key: bytes, answer: Answer) -> None:
        """Remember an answer instead of what was known of the token."""
        self.drop(key)
        if answer.until_us <= answer.noted_us:
            return
        if answer.active:
            self._put_active(key, answer)
        elif self._refused_max:
            if len(self._refused) >= self._refused_max:
                self._refused.popitem(last=False)
                self.evictions += 1
            self._refused[key] = answer

    def _put_active(self, key: bytes, answer: Answer) -> None:
        if answer.cost_bytes > self._bytes_max or not self._active_max:
            return
        while len(self._active) >= self._active_max or self.size_bytes + answer.cost_bytes > self._bytes_max:
            _, evicted = self._active.popitem(last=False)
            self.size_bytes -= evicted.cost_bytes
            self.evictions += 1
        self._active[key] = answer
        self.size_bytes += answer.cost_bytes

    def drop(self, key: bytes) -> None:
        """Forget a token."""
        answer = self._active.pop(key, None)
        if answer is not None:
            self.size_bytes -= answer.cost_bytes
        self._refused.pop(key, None)

    def was_active(self, key: bytes) -> bool:
        """Whether the endpoint's last answer about a token was that it is active."""
        return key in self._active

    def keep(self, policies: Mapping[str, IntrospectionPolicy]) -> None:
        """Forget what was said under a policy that is none of these any more."""
        for entries in (self._active, self._refused):
            stale = [key for key, answer in entries.items() if policies.get(answer.policy.name) != answer.policy]
            for key in stale:
                self.drop(key)


class QuestionBudget:
    """How often an endpoint may be asked: a token bucket, a quarter of which is kept for tokens that were active.

    So whoever sends unknown tokens, however many, cannot keep callers with good ones from having theirs looked at anew.
    """

    __slots__ = ("_at_us", "_level", "_policy")

    def __init__(self, policy: IntrospectionPolicy, now_us: int) -> None:
        self._policy = policy
        self._level = float(policy.rate_count)
        self._at_us = now_us

    def take(self, now_us: int, *, was_active: bool) -> bool:
        """Whether one more question may be asked."""
        policy = self._policy
        gained = max(now_us - self._at_us, 0) * policy.rate_count / policy.rate_us
        self._level, self._at_us = min(self._level + gained, policy.rate_count), now_us
        kept = 0 if was_active else policy.rate_count // 4
        if self._level < 1 + kept:
            return False
        self._level -= 1
        return True
