"""The issuers' keys, fetched in the background and never on the request's path once there are some.

One task per issuer does all of its fetching, so that it is single-flight by construction. A failed, empty or invalid
fetch changes nothing but counters: the last good keys stay until they are `keys_stale_s_max` old. A request whose token
names an unknown key may ask for a fetch (`ensure`); since anyone can invent names of keys, such fetches are rationed
per issuer, a name that was not found is remembered for a while, and whoever is over the ration is answered at once.
Keys that were kept in a file by an earlier process serve until the first fetch, for as long as they would have there.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from sidecar.core.issuer import JwksFile
from sidecar.core.keys import KeySetError
from sidecar.edges import http_client, kept_keys
from sidecar.edges.http_client import FetchError
from sidecar.edges.kept_keys import KeptKeysError
from sidecar.edges.key_sources import Unchanged, parse_keys, read_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.keys import DroppedKey, KeySet

WAITERS_MAX = 1_024
"""Requests of one issuer that wait for keys at a time; those beyond are answered with what there is."""

UNKNOWN_KIDS_MAX = 1_024
"""Names of keys per issuer that are remembered as not found."""

Done: TypeAlias = "Callable[[KeySet | None], None]"
OnEvent: TypeAlias = "Callable[[str, Mapping[str, Any]], None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class JwksTimings:
    """How patient the engine is, in seconds; tests shorten it.

    Attributes:
        refresh_s_min: Keys are not fetched more often in the background, whatever max-age says.
        retry_s_min, retry_s_max: After a failure; doubles from the one to the other.
        ration_s, ration_burst: Fetches for unknown keys: one per `ration_s`, `ration_burst` at once.
        unknown_kid_s: A kid that was not found is not asked for again so soon.
    """

    refresh_s_min: float = 30.0
    retry_s_min: float = 0.5
    retry_s_max: float = 30.0
    ration_s: float = 10.0
    ration_burst: int = 2
    unknown_kid_s: float = 30.0


class JwksEngine:
    """Keeps the keys of every issuer of the policy.

    Args:
        issuers: One per `iss`.
        on_event: Told of fetches, failures and dropped keys, by the event's name and its fields, which hold no secret.
        timings: See there.
    """

    def __init__(
        self,
        issuers: Iterable[IssuerPolicy],
        on_event: OnEvent = lambda _name, _fields: None,
        timings: JwksTimings = JwksTimings(),
    ) -> None:
        self._on_event = on_event
        self._timings = timings
        self._started = False
        self._retired: set[asyncio.Task[None]] = set()
        self._states = {issuer.issuer: self._new_state(issuer) for issuer in issuers}

    def _new_state(self, issuer: IssuerPolicy) -> IssuerKeys:
        return IssuerKeys(issuer, self._on_event, self._timings)

    @property
    def states(self) -> Mapping[str, IssuerKeys]:
        """By `iss`, for metrics and the admin listener."""
        return self._states

    @property
    def ready(self) -> bool:
        """Whether each required issuer has had keys."""
        return all(state.epoch > 0 for state in self._states.values() if state.issuer.required)

    def detail(self, now: float) -> dict[str, object]:
        """For /readyz, by the issuer's name; `now` is the loop's clock."""
        return {
            state.issuer.name: {
                "required": state.issuer.required,
                "keys": state.key_count,
                "age_s": None if math.isnan(state.age_s(now)) else round(state.age_s(now), 1),
                "last_error": state.last_error,
            }
            for state in self._states.values()
        }

    def keys(self, issuer: IssuerPolicy) -> KeySet | None:
        """The issuer's current keys; None before the first fetch, and when the last good ones are too old."""
        state = self._states.get(issuer.issuer)
        return None if state is None else state.current

    def ensure(self, issuer: IssuerPolicy, kid: str | None, deadline: float, done: Done) -> None:
        """Call `done` once with the issuer's keys, at once or after a fetch that may find `kid`.

        Args:
            issuer: Whose keys.
            kid: The key that is missing; None where the issuer has no keys at all.
            deadline: In seconds of the loop's clock; `done` is called by then.
            done: Given the current keys, whether or not they hold the `kid` now; None while there are none.
        """
        state = self._states.get(issuer.issuer)
        if state is None:
            done(None)
        else:
            state.ensure(kid, deadline, done)

    def start(self) -> None:
        """Begin fetching in the background, on the running loop."""
        self._started = True
        for state in self._states.values():
            state.start()

    def replace(self, issuers: Iterable[IssuerPolicy]) -> None:
        """Serve these issuers from now on; those whose keys come from the same place keep them, and their counters."""
        old, self._states = self._states, {}
        for issuer in issuers:
            state = old.pop(issuer.issuer, None)
            if state is None or not state.adopt(issuer):
                if state is not None:
                    self._retire(state)
                state = self._new_state(issuer)
                if self._started:
                    state.start()
            self._states[issuer.issuer] = state
        for state in old.values():
            self._retire(state)

    def _retire(self, state: IssuerKeys) -> None:
        task = state.stop()
        if task is not None:
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)

    async def stop(self) -> None:
        """Stop all fetching; those who wait are answered with what there is."""
        self._started = False
        for state in self._states.values():
            self._retire(state)
        await asyncio.gather(*self._retired, return_exceptions=True)


class IssuerKeys:
    """One issuer's keys and the task that keeps them.

    Attributes:
        current: What verifies tokens now.
        epoch: Counts changes of the keys; 0 before the first.
        fetched_at: Of the last good fetch, in seconds of the loop's clock; NaN before the first.
        last_error: Of the last fetch, "" if it was good.
        fetches_ok, fetches_failed: Counted since the state was made.
        fetches_unchanged: Of the good ones, those that brought no document, since the one that is held is current.
        next_fetch_at: When keys are fetched again, in seconds of the loop's clock; NaN while they are being fetched.
        persist_error: Why the keys could not be read from their file, or written to it; "" if they could.
        dropped: What the last document held besides usable keys, and why it is not used.
        refused: Requests that wanted a fetch and got none, because of the ration, the remembered kids or `WAITERS_MAX`.
    """

    def __init__(self, issuer: IssuerPolicy, on_event: OnEvent, timings: JwksTimings) -> None:
        self.issuer = issuer
        self.current: KeySet | None = None
        self.epoch = 0
        self.fetched_at = math.nan
        self.last_error = ""
        self.fetches_ok = 0
        self.fetches_failed = 0
        self.fetches_unchanged = 0
        self.next_fetch_at = math.nan
        self.persist_error = ""
        self.refused = 0
        self.dropped: tuple[DroppedKey, ...] = ()
        self._on_event = on_event
        self._timings = timings
        self._last_good: KeySet | None = None
        self._failures_in_a_row = 0
        self._version: object = None
        self._body = b""
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._fetching = False
        self._waiters: dict[int, _Waiter] = {}
        self._waiters_made = 0
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._ration = float(timings.ration_burst)
        self._ration_at = -math.inf
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def key_count(self) -> int:
        """Usable keys now."""
        return 0 if self.current is None else self.current.count

    @property
    def unknown_kids(self) -> int:
        """Names of keys that are remembered as not found; some may be due to be forgotten."""
        return len(self._unknown)

    def age_s(self, now: float) -> float:
        """Seconds since the last good fetch; NaN before the first. `now` is the loop's clock."""
        return now - self.fetched_at

    def adopt(self, issuer: IssuerPolicy) -> bool:
        """Go on for a new version of the policy; False where the keys would come from elsewhere or otherwise."""
        same = _origin_of_keys(issuer) == _origin_of_keys(self.issuer)
        if same and issuer != self.issuer:
            self.issuer = issuer
            if self._expiry is not None:
                self._expire_after(self.fetched_at + issuer.keys_stale_s_max)
        return same

    def start(self) -> None:
        """Begin fetching."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"jwks {self.issuer.name}")

    def stop(self) -> asyncio.Task[None] | None:
        """End fetching and answer those who wait."""
        if self._expiry is not None:
            self._expiry.cancel()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self._answer_waiters()
        return task

    async def _run(self) -> None:
        if self.issuer.keys_persist is not None:
            await self._take_kept(self.issuer.keys_persist)
        while True:
            self._fetching = True
            self._wake.clear()
            self.next_fetch_at = math.nan
            max_age_s = await self._fetch_once()
            self._fetching = False
            self._answer_waiters()
            pause_s = self._pause_s(max_age_s)
            self.next_fetch_at = asyncio.get_running_loop().time() + pause_s
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _pause_s(self, max_age_s: float) -> float:
        """Jitter keeps the instances of a deployment from asking all at once."""
        timings = self._timings
        if self.last_error:
            doubled = timings.retry_s_min * 2.0 ** min(self._failures_in_a_row - 1, 30)
            return min(doubled, timings.retry_s_max) * random.uniform(0.5, 1.0)  # noqa: S311 - not for secrets
        floor_s = 0.0 if isinstance(self.issuer.keys, JwksFile) else timings.refresh_s_min
        wanted = max(floor_s, min(max_age_s, self.issuer.refresh_s))
        return wanted * random.uniform(0.9, 1.1)  # noqa: S311 - not for secrets

    async def _fetch_once(self) -> float:
        """Fetch and take over what came; the document's max-age."""
        issuer = self.issuer
        try:
            result = await read_source(issuer, self._version, http_client.get)
            if isinstance(result, Unchanged):
                keys, max_age_s = self._last_good, result.max_age_s
                self.fetches_unchanged += 1
            else:
                keys, max_age_s = parse_keys(result.body, issuer), result.max_age_s
                self._version, self._body = result.version, result.body
        except (FetchError, KeySetError) as error:
            self._failed(str(error))
            return 0.0
        except Exception as error:  # noqa: BLE001 - a defect here must not end the refreshing of keys
            self._failed(f"internal error: {type(error).__name__}")
            return 0.0
        self._succeeded(keys)
        if issuer.keys_persist is not None and self._last_good is not None:
            await self._keep(issuer.keys_persist, self._last_good)
        return max_age_s

    async def _take_kept(self, path: str) -> None:
        """Start with the keys that an earlier process has kept, as old as they are."""
        try:
            kept = await asyncio.to_thread(kept_keys.read, path, self.issuer, time.time())
        except KeptKeysError as error:
            self._persist_failed(str(error))
            return
        if kept is None:
            return
        self.current = self._last_good = kept.keys
        self.epoch += 1
        self.fetched_at = asyncio.get_running_loop().time() - kept.age_s
        self._expire_after(self.fetched_at + self.issuer.keys_stale_s_max)
        fields = {"issuer": self.issuer.name, "keys": kept.keys.count, "epoch": self.epoch}
        self._emit("jwks_changed", fields | {"kept_s": round(kept.age_s)})

    async def _keep(self, path: str, keys: KeySet) -> None:
        try:
            await asyncio.to_thread(kept_keys.write, path, self.issuer, self._body, keys, time.time())
        except KeptKeysError as error:
            self._persist_failed(str(error))
        else:
            self.persist_error = ""

    def _persist_failed(self, why: str) -> None:
        """Told once for each reason: it happens again with each fetch."""
        if why != self.persist_error:
            self._emit("jwks_not_kept", {"issuer": self.issuer.name, "reason": why})
        self.persist_error = why

    def _failed(self, why: str) -> None:
        self.fetches_failed += 1
        self._failures_in_a_row += 1
        self.last_error = why
        self._emit("jwks_fetch_failed", {"issuer": self.issuer.name, "reason": why, "keys_kept": self.key_count})

    def _succeeded(self, keys: KeySet | None) -> None:
        self.fetches_ok += 1
        self._failures_in_a_row = 0
        self.last_error = ""
        now = asyncio.get_running_loop().time()
        self.fetched_at = now
        self._expire_after(now + self.issuer.keys_stale_s_max)
        if keys is not None:
            self._report_dropped(keys.dropped)
            if self._last_good is None or self._last_good.fingerprint != keys.fingerprint:
                self._last_good = keys
                self.epoch += 1
                self._emit("jwks_changed", {"issuer": self.issuer.name, "keys": keys.count, "epoch": self.epoch})
        self.current = self._last_good

    def _emit(self, name: str, fields: Mapping[str, Any]) -> None:
        """`call_soon`: once the state is complete, and without harm to this task if the listener fails."""
        asyncio.get_running_loop().call_soon(self._on_event, name, fields)

    def _report_dropped(self, dropped: tuple[DroppedKey, ...]) -> None:
        """Once, not with every refresh."""
        known, self.dropped = self.dropped, dropped
        for key in dropped:
            if key not in known:
                fields = {"issuer": self.issuer.name, "position": key.position, "kid": key.kid, "reason": key.reason}
                self._emit("jwks_key_exposed" if key.exposed else "jwks_key_dropped", fields)

    def _expire_after(self, when: float) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_at(when, self._expire)

    def _expire(self) -> None:
        self.current = None
        self._emit("jwks_expired", {"issuer": self.issuer.name, "reason": self.last_error})

    def ensure(self, kid: str | None, deadline: float, done: Done) -> None:
        """See `JwksEngine.ensure`."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._task is None or now >= deadline or not self._may_wait(kid, now):
            done(self.current)
            return
        number = self._waiters_made = self._waiters_made + 1
        timer = None if math.isinf(deadline) else loop.call_at(deadline, self._time_out, number)
        self._waiters[number] = _Waiter(kid, done, timer)

    def _may_wait(self, kid: str | None, now: float) -> bool:
        """Whether a fetch is under way or may be started for this request; starts it."""
        if self._is_known_unknown(kid, now) or len(self._waiters) >= WAITERS_MAX:
            self.refused += 1
            return False
        if self._fetching or self._wake.is_set():
            return True
        if not self._take_ration(now):
            self.refused += 1
            return False
        self._wake.set()
        return True

    def _is_known_unknown(self, kid: str | None, now: float) -> bool:
        if kid is None or kid not in self._unknown:
            return False
        if now < self._unknown[kid]:
            return True
        del self._unknown[kid]
        return False

    def _take_ration(self, now: float) -> bool:
        """A token bucket."""
        burst, per_s = self._timings.ration_burst, 1 / self._timings.ration_s
        self._ration = min(burst, self._ration + (now - self._ration_at) * per_s)
        self._ration_at = now
        if self._ration < 1:
            return False
        self._ration -= 1
        return True

    def _answer_waiters(self) -> None:
        """`call_soon`: what one of them raises is not the others' trouble, nor this task's."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            if waiter.timer is not None:
                waiter.timer.cancel()
            if not self.last_error:
                self._remember_unknown(waiter.kid)
            asyncio.get_running_loop().call_soon(waiter.done, self.current)

    def _remember_unknown(self, kid: str | None) -> None:
        if kid is None or self.current is None or kid in self.current.kids:
            return
        self._unknown[kid] = asyncio.get_running_loop().time() + self._timings.unknown_kid_s
        self._unknown.move_to_end(kid)
        if len(self._unknown) > UNKNOWN_KIDS_MAX:
            self._unknown.popitem(last=False)

    def _time_out(self, number: int) -> None:
        waiter = self._waiters.pop(number, None)
        if waiter is not None:
            waiter.done(self.current)


def _origin_of_keys(issuer: IssuerPolicy) -> tuple[object, ...]:
    """What decides which keys are got: from where, whom is trusted to answer, and what is taken from an answer."""
    fetch = replace(issuer.fetch, timeout_s=0.0, connect_timeout_s=0.0, read_timeout_s=0.0)
    return issuer.keys, fetch, issuer.keys_max


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    kid: str | None
    done: Done
    timer: asyncio.TimerHandle | None
