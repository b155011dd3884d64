"""Many tokens to verify at once: who needs no verification does not wait for them, and no answer changes."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.core import base64url
from sidecar.core import token as tokens
from sidecar.core.decision import DenyReason
from sidecar.edges.turns import TURN_MAX, WAITING_MAX
from tests.support.deciding import OTHER_KEY, Deciding, check_request, compiled, deciding, token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sidecar.core.policy import Policy
    from sidecar.core.token import UnverifiedToken
    from tests.support.deciding import RecordedCall

R = DenyReason
PATH = "/orders/1"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return compiled(tmp_path_factory.mktemp("policy"))


class Turns:
    """The loop's turns, one at a time."""

    def __init__(self, service: Deciding) -> None:
        self._next: list[Callable[[], None]] = []
        service.soon = self._next.append

    def turn(self) -> bool:
        """Whether there was anything to do."""
        steps = self._next[:]
        del self._next[:]
        for step in steps:
            step()
        return bool(steps)

    def all(self) -> None:
        while self.turn():
            pass


@contextmanager
def verified() -> Iterator[list[str]]:
    """The tokens whose signatures are verified, in order."""
    texts: list[str] = []
    verify = tokens.verify

    def noting(unverified: UnverifiedToken, *rest: Any) -> object:
        texts.append(unverified.text)
        return verify(unverified, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "verify", noting)
        yield texts


def good(**claims: Any) -> str:
    return token(scope="orders:read", **claims)


def forged() -> str:
    """A token under a signature that is none of its key's."""
    head, _, _ = good(jti=secrets.token_hex(4)).rpartition(".")
    return f"{head}.{base64url.encode(secrets.token_bytes(64))}"


def reason(call: RecordedCall) -> str:
    response = call.response
    return str(response.dynamic_metadata["reason"]) if response.status.code else "allowed"


async def test_warm_callers_are_answered_before_forged_ones_that_came_before_them(policy: Policy) -> None:
    """Of 200 forged tokens and 20 known ones of one turn, the known are answered in it, with one slice of the forged.

    Then a slice a turn; whoever comes warm meanwhile is answered in the turn that decides it.
    """
    async with deciding(policy) as it:
        warm = good()
        assert (await it.ask(check_request(PATH, warm))).status.code == 0
        loop = Turns(it)
        with verified() as texts:
            flood = [it.begin(check_request(PATH, forged())) for _ in range(200)]
            known = [it.begin(check_request(PATH, warm)) for _ in range(20)]
            loop.turn()
            assert [reason(call) for call in known] == ["allowed"] * 20
            assert sum(bool(call.answers) for call in flood) == len(texts) == TURN_MAX
            late = it.begin(check_request(PATH, warm))
            loop.turn()
            assert reason(late) == "allowed"
            assert sum(bool(call.answers) for call in flood) == len(texts) == 2 * TURN_MAX
            loop.all()
            assert len(texts) == 200
        assert {reason(call) for call in flood} == {R.TOKEN_SIGNATURE_INVALID.value}
        assert it.bugs == []


async def test_one_token_that_is_not_known_is_verified_at_once(policy: Policy) -> None:
    """On a process with nothing else to verify, in the turn that decides it."""
    async with deciding(policy) as it:
        loop = Turns(it)
        call = it.begin(check_request(PATH, good()))
        loop.turn()
        assert reason(call) == "allowed"
        assert it.service.turns.deferred == 0


async def test_so_many_wait_and_the_next_is_denied_as_overloaded(policy: Policy) -> None:
    """A slice at once, N that wait and are answered as ever, and one more, which is not verified."""
    async with deciding(policy) as it:
        loop = Turns(it)
        calls = [it.begin(check_request(PATH, forged())) for _ in range(TURN_MAX + WAITING_MAX + 1)]
        with verified() as texts:
            loop.turn()
            assert reason(calls[-1]) == R.OVERLOADED.value
            assert not any(call.answers for call in calls[TURN_MAX:-1])
            loop.all()
            assert len(texts) == len(calls) - 1
        assert {reason(call) for call in calls[:-1]} == {R.TOKEN_SIGNATURE_INVALID.value}
        assert calls[-1].response.denied_response.status.code == 503


async def test_whoever_has_gone_is_not_verified(policy: Policy) -> None:
    """Of Checks that are cancelled, or out of time, while they wait, no signature is verified."""
    async with deciding(policy) as it:
        loop = Turns(it)
        with verified() as texts:
            calls = [it.begin(check_request(PATH, forged())) for _ in range(TURN_MAX)]
            gone, slow, stays = [it.begin(check_request(PATH, good(jti=name))) for name in ("gone", "slow", "stays")]
            slow.deadline = 0.0
            loop.turn()
            gone.cancelled = True
            loop.all()
            assert len(texts) == len(calls) + 1
        assert gone.answers == []
        assert (reason(slow), reason(stays)) == (R.OVERLOADED.value, "allowed")


async def test_one_token_that_waits_many_times_is_verified_once(policy: Policy) -> None:
    """What waits is looked up again when its turn comes."""
    async with deciding(policy) as it:
        loop = Turns(it)
        for _ in range(TURN_MAX):
            it.begin(check_request(PATH, forged()))
        text = good()
        with verified() as texts:
            calls = [it.begin(check_request(PATH, text)) for _ in range(50)]
            loop.all()
            assert texts.count(text) == 1
        assert {reason(call) for call in calls} == {"allowed"}


async def test_a_key_that_is_replaced_meanwhile_vouches_for_nobody(policy: Policy, tmp_path: Path) -> None:
    """A turn is no proof: what is verified then is verified by the keys of then, under the Check's policy."""
    changed = compiled(tmp_path, keys=[OTHER_KEY], generation=2)
    async with deciding(policy) as it, deciding(changed) as other:
        loop = Turns(it)
        for _ in range(TURN_MAX):
            it.begin(check_request(PATH, forged()))
        call = it.begin(check_request(PATH, good()))
        loop.turn()
        assert call.answers == []
        (issuer,) = (each for each in changed.issuers.values() if each.name == "main")
        keys = other.jwks.keys(issuer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(it.jwks, "keys", lambda _issuer: keys)
            loop.all()
        assert reason(call) == R.TOKEN_SIGNATURE_INVALID.value
