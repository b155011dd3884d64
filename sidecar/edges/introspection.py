"""Asks introspection endpoints about opaque tokens, and remembers what they said (RFC 7662).

Whoever sends tokens that nobody knows must not be able to turn them into a flood on the endpoint, nor into waiting for
others. So: one question per token at a time, whoever asks; a bounded number of questions under way, and of those that
wait; a budget of questions (`core.introspection.QuestionBudget`); a circuit breaker; and whoever is over any of these
is answered at once. A Check waits until its own deadline at most; the question goes on, for the next Check.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlencode

from sidecar.core.breaker import Breaker
from sidecar.core.introspection import (
    ANSWER_BYTES_MAX,
    Answer,
    AnswerCache,
    QuestionBudget,
    Unanswered,
    read_answer,
)
from sidecar.edges.client_authentication import ClientAuthenticator
from sidecar.edges.http_client import FetchError, StatusError, TooLongError, post_form, target_of
from sidecar.edges.metrics import LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.introspection import IntrospectionPolicy, NeedIntrospection

WAITERS_MAX: Final = 4_096
"""Checks that wait for one endpoint; those beyond are answered at once."""

BREAKER_FAILURES_MAX: Final = 5
BREAKER_OPEN_US: Final = 1_000_000
BREAKER_OPEN_US_MAX: Final = 15_000_000

OF_ONE_QUESTION: Final = frozenset({400, 413, 414, 422, 429, 431})
"""Statuses that say something about what was asked, or how often, and not about the endpoint: callers bring them about,
and would choose with 429 when Envoy decides (`on_failure: error`)."""

_US_PER_S: Final = 1_000_000

Finding: TypeAlias = Answer | Unanswered
Done: TypeAlias = Callable[[Finding], None]
OnEvent: TypeAlias = Callable[[str, Mapping[str, Any]], None]


class _Flight:
    """One question, and who waits for its answer; a waiter's number is its own."""

    __slots__ = ("need", "started", "waiters")

    def __init__(self, need: NeedIntrospection) -> None:
        self.need = need
        self.started = False
        self.waiters: dict[int, tuple[Done, asyncio.TimerHandle | None]] = {}


class IntrospectionEngine:
    """Keeps what the policy's endpoints said, and asks them.

    Args:
        policies: The endpoints.
        on_event: Told of failures and of their end, by the event's name and its fields, which hold no secret.
        now_us: The time of day, for tokens' dates.

    Attributes:
        cache: Answers of all endpoints together.
        misses: Checks whose token nothing fresh was known of.
        latency: From asking to the end of the answer.
    """

    def __init__(
        self,
        policies: Iterable[IntrospectionPolicy],
        on_event: OnEvent = lambda _name, _fields: None,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.cache = AnswerCache()
        self.misses = 0
        self.latency = LatencyHistogram()
        self._on_event = on_event
        self._now_us = now_us
        self._retired: set[Endpoint] = set()
        self._endpoints: dict[str, Endpoint] = {}
        self.replace(policies)

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """By the policy's names for them, for metrics and the admin listener."""
        return self._endpoints

    def detail(self, now: float) -> dict[str, object]:
        """Each endpoint for the admin listener; `now` is the loop's clock."""
        return {name: endpoint.detail(now) for name, endpoint in self._endpoints.items()}

    def ask(self, need: NeedIntrospection, deadline: float, done: Done) -> None:
        """Call `done` once with what is known of a token, at once or after the endpoint was asked.

        Args:
            need: What a method asked for.
            deadline: In seconds of the loop's clock; `done` is called by then.
            done: Given the answer, or why there is none; what it raises is not seen by others who wait.
        """
        answer = self.cache.find(need.policy, need.key, self._now_us())
        if answer is not None:
            done(answer)
            return
        self.misses += 1
        endpoint = self._endpoints.get(need.policy.name)
        if endpoint is None or endpoint.policy != need.policy:
            done(Unanswered("the policy has just changed"))
            return
        endpoint.ask(need, deadline, done)

    def replace(self, policies: Iterable[IntrospectionPolicy]) -> None:
        """Ask these endpoints from now on; one whose policy is the same goes on, and keeps what it said."""
        old, self._endpoints = self._endpoints, {}
        for policy in policies:
            kept = old.get(policy.name)
            same = kept is not None and kept.policy == policy
            self._endpoints[policy.name] = old.pop(policy.name) if same else Endpoint(policy, self)
            policy.remembered.answers = self.cache
        for endpoint in old.values():
            endpoint.retire()
        self._retired = {endpoint for endpoint in (*self._retired, *old.values()) if endpoint.busy}
        self.cache.keep({endpoint.policy.name: endpoint.policy for endpoint in self._endpoints.values()})

    async def stop(self) -> None:
        """End all questions; who waits is told that there is no answer."""
        endpoints = [*self._endpoints.values(), *self._retired]
        tasks = [task for endpoint in endpoints for task in endpoint.stop()]
        await asyncio.gather(*tasks, return_exceptions=True)

    def answered(self, need: NeedIntrospection, body: bytes) -> Finding:
        """Read an endpoint's answer."""
        return read_answer(need.policy, body, self._now_us())

    def tell(self, name: str, **fields: Any) -> None:
        """Pass an event on."""
        self._on_event(name, fields)


class Endpoint:
    """One endpoint: its questions under way and waiting.

    Attributes:
        breaker: Of this endpoint.
        results: Questions by what came of them: active, inactive, refused, unusable, failed.
        spared: Checks that were answered without a question, by why.
        last_error: Of the last question, "" if it was answered.
        answered_at: Of the last answer, in seconds of the loop's clock; NaN before the first.
    """

    def __init__(self, policy: IntrospectionPolicy, engine: IntrospectionEngine) -> None:
        self.policy = policy
        self.breaker = Breaker(
            failures_max=BREAKER_FAILURES_MAX, open_us=BREAKER_OPEN_US, open_us_max=BREAKER_OPEN_US_MAX
        )
        self.results = dict.fromkeys(("active", "inactive", "refused", "unusable", "failed"), 0)
        self.spared = dict.fromkeys(("rate", "queue", "breaker", "deadline"), 0)
        self.last_error = ""
        self.answered_at = math.nan
        self._engine = engine
        self._target = target_of(policy.url, insecure_http=policy.insecure_http)
        self._client = ClientAuthenticator(policy)
        self._budget: QuestionBudget | None = None
        self._flights: dict[bytes, _Flight] = {}
        self._queue: deque[_Flight] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._waiters_made = 0
        self._retired = False

    @property
    def in_flight(self) -> int:
        """Questions under way."""
        return len(self._tasks)

    @property
    def queued(self) -> int:
        """Questions that wait for one to end."""
        return len(self._queue)

    @property
    def waiting(self) -> int:
        """Checks that wait."""
        return self._waiting

    @property
    def busy(self) -> bool:
        """Whether questions are under way."""
        return bool(self._tasks)

    def detail(self, now: float) -> dict[str, object]:
        """For the admin listener; `now` is the loop's clock."""
        age_s = now - self.answered_at
        return {
            "host": self._target.host,
            "breaker": self.breaker.state.value,
            "in_flight": self.in_flight,
            "queued": self.queued,
            "answer_age_s": None if math.isnan(age_s) else round(age_s, 1),
            "last_error": self.last_error or self._client.last_error,
        }

    def ask(self, need: NeedIntrospection, deadline: float, done: Done) -> None:
        """See `IntrospectionEngine.ask`; nothing fresh is known of the token."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= deadline:
            done(self._spare("deadline", "the Check's time was up before it was asked"))
            return
        flight = self._flights.get(need.key)
        if flight is None or self._waiting >= WAITERS_MAX:
            found = self._begin(need, int(now * _US_PER_S))
            if isinstance(found, Unanswered):
                done(found)
                return
            flight = found
        number = self._waiters_made = self._waiters_made + 1
        timer = None if math.isinf(deadline) else loop.call_at(deadline, self._time_out, flight, number)
        flight.waiters[number] = (done, timer)
        self._waiting += 1

    def _begin(self, need: NeedIntrospection, now_us: int) -> _Flight | Unanswered:
        """A new question, under way or in the queue."""
        policy = self.policy
        at_once = len(self._tasks) < policy.concurrent_max
        if self._waiting >= WAITERS_MAX or not (at_once or len(self._queue) < policy.queue_max):
            return self._spare("queue", "too many questions wait")
        if at_once and not self.breaker.admit(now_us):
            return self._spare("breaker", self._open_because(), outage=True)
        if self._budget is None:
            self._budget = QuestionBudget(policy, now_us)
        if not self._budget.take(now_us, was_active=self._engine.cache.was_active(need.key)):
            if at_once:
                self.breaker.release()
            return self._spare("rate", "its budget of questions is used up")
        flight = self._flights[need.key] = _Flight(need)
        if at_once:
            self._start(flight)
        else:
            self._queue.append(flight)
        return flight

    def _spare(self, why: str, detail: str, *, outage: bool = False) -> Unanswered:
        self.spared[why] += 1
        return Unanswered(detail, outage)

    def _open_because(self) -> str:
        return f"not asked for the moment, after failures: {self.last_error}"

    def _start(self, flight: _Flight) -> None:
        """The breaker has admitted it."""
        flight.started = True
        task = asyncio.get_running_loop().create_task(self._run(flight), name=f"introspection {self.policy.name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _run(self, flight: _Flight) -> None:
        finding: Finding | None = None
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            finding = await self._question(flight.need)
            if isinstance(finding, Answer):
                self._engine.latency.observe(int((loop.time() - began) * _US_PER_S))
        finally:
            if finding is None:  # stopped
                self.breaker.release()
                self._finish(flight, Unanswered("the question was given up"))
            else:
                self._note(flight, finding, loop.time())

    async def _question(self, need: NeedIntrospection) -> Finding:
        policy = need.policy
        try:
            async with asyncio.timeout(policy.timeout_s):
                proof = await self._client.proof()
                form = [("token", need.token)]
                if policy.token_type_hint:
                    form.append(("token_type_hint", "access_token"))
                body = await post_form(
                    self._target,
                    urlencode(form + proof.form).encode(),
                    proof.headers,
                    timeout_s=policy.timeout_s,
                    tls=proof.tls,
                    body_bytes_max=ANSWER_BYTES_MAX,
                )
        except StatusError as error:
            return Unanswered(str(error), error.status not in OF_ONE_QUESTION)
        except TooLongError as error:
            return Unanswered(str(error))
        except FetchError as error:
            return Unanswered(str(error), outage=True)
        except TimeoutError:
            return Unanswered(
                f"{self._target.host} did not answer completely within {policy.timeout_s:g} s", outage=True
            )
        return self._engine.answered(need, body)

    def _note(self, flight: _Flight, finding: Finding, now: float) -> None:
        """The question has ended: count it, remember the answer, and pass it on."""
        before = self.last_error
        if isinstance(finding, Answer):
            self.breaker.succeed()
            self.last_error = ""
            self.answered_at = now
            self.results[finding.outcome] += 1
            if not self._retired:
                self._engine.cache.put(flight.need.key, finding)
        else:
            self.last_error = finding.detail
            if finding.outage:
                self.breaker.fail(int(now * _US_PER_S))
                self.results["failed"] += 1
            else:
                self.breaker.succeed()  # it is there, and answers what it is asked
                self.results["unusable"] += 1
        self._finish(flight, finding)
        if bool(before) != bool(self.last_error):
            name = "introspection_failed" if self.last_error else "introspection_recovered"
            self._engine.tell(name, introspection=self.policy.name, reason=self.last_error or before)

    def _finish(self, flight: _Flight, finding: Finding) -> None:
        """`call_soon`: what one of those who wait raises is not the others' trouble, nor this task's."""
        self._flights.pop(flight.need.key, None)
        loop = asyncio.get_running_loop()
        waiters, flight.waiters = flight.waiters, {}
        self._waiting -= len(waiters)
        for done, timer in waiters.values():
            if timer is not None:
                timer.cancel()
            loop.call_soon(done, finding)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """There is room for the next question; one that nobody waits for any more is not asked."""
        self._tasks.discard(task)
        while self._queue and len(self._tasks) < self.policy.concurrent_max:
            flight = self._queue.popleft()
            if not flight.waiters or self._retired:
                self._finish(flight, self._spare("deadline", "nobody waited for it any more"))
            elif self.breaker.admit(int(asyncio.get_running_loop().time() * _US_PER_S)):
                self._start(flight)
            else:
                self._finish(flight, self._spare("breaker", self._open_because(), outage=True))

    def _time_out(self, flight: _Flight, number: int) -> None:
        """The Check's time is up; a slow endpoint is at fault where the question is under way, else the crowd."""
        waiter = flight.waiters.pop(number, None)
        if waiter is not None:
            self._waiting -= 1
            waiter[0](Unanswered("no answer within the Check's time", outage=flight.started))

    def retire(self) -> None:
        """No more questions; those under way end by themselves, and nobody will need what they say."""
        self._retired = True
        while self._queue:
            self._finish(self._queue.popleft(), Unanswered("the policy has just changed"))

    def stop(self) -> list[asyncio.Task[None]]:
        """End the questions under way; the tasks that end."""
        self.retire()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        return tasks
