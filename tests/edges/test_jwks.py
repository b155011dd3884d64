"""The keys' engine against a real server: rotation, outages, floods of unknown keys, reloads."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import pytest_asyncio

from sidecar.core import token
from sidecar.core.issuer import KEYS_MAX, FetchSettings, IssuerPolicy, JwksFile, JwksUrl, OidcDiscovery
from sidecar.core.token_cache import TokenCache
from sidecar.edges import jwks as engine_module
from sidecar.edges.http_client import BODY_BYTES_MAX
from sidecar.edges.issuers_route import described
from sidecar.edges.jwks import IssuerKeys, JwksEngine, JwksTimings
from tests.support.issuer import Behaviour, Issuer, drips, hangs, response, sends
from tests.support.tokens import NOW_US, issuer_policy, jwks, make_key

if TYPE_CHECKING:
    from sidecar.core.keys import KeySet

FAST = JwksTimings(refresh_s_min=0.02, retry_s_min=0.01, retry_s_max=0.02)
RARE = JwksTimings(refresh_s_min=3600, retry_s_min=3600, retry_s_max=3600)
"""Nothing happens in the background but the first fetch: what is fetched, a request asked for."""

OLD, NEW = make_key(kid="old", number=1), make_key(kid="new", number=2)


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Yield to the loop until the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


@pytest_asyncio.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer(OLD) as server:
        yield server


class Engine:
    """An engine over issuers, stopped at the end of the test, that remembers its events."""

    def __init__(self, timings: JwksTimings, *issuers: IssuerPolicy) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.engine = JwksEngine(issuers, lambda name, fields: self.events.append((name, dict(fields))), timings)
        self.policy = issuers[0]

    async def __aenter__(self) -> Self:
        self.engine.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.stop()

    @property
    def state(self) -> IssuerKeys:
        return self.engine.states[self.policy.issuer]

    @property
    def keys(self) -> KeySet | None:
        return self.engine.keys(self.policy)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    @property
    def kids(self) -> set[str]:
        return set() if self.keys is None else set(self.keys.kids)

    async def ensure(self, kid: str | None, within_s: float = 5.0) -> KeySet | None:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[KeySet | None] = loop.create_future()
        self.engine.ensure(self.policy, kid, loop.time() + within_s, answer.set_result)
        return await answer


def policy_for(server: Issuer, **changes: Any) -> IssuerPolicy:
    """How it is fetched (`FetchSettings`) can be changed by name, too."""
    fetched = {field.name for field in fields(FetchSettings)}
    fetch = FetchSettings(**({"insecure_http": True} | {k: v for k, v in changes.items() if k in fetched}))
    defaults = {"keys": JwksUrl(f"{server.url}/jwks"), "fetch": fetch, "refresh_s": 3600}
    return issuer_policy(**(defaults | {k: v for k, v in changes.items() if k not in fetched}))


async def test_keys_arrive_in_the_background_and_make_it_ready(issuer: Issuer) -> None:
    """Not ready and without keys until the first good fetch."""
    async with Engine(RARE, policy_for(issuer)) as sut:
        assert not sut.engine.ready
        assert sut.keys is None
        await until(lambda: sut.engine.ready)
        assert sut.kids == {"old"}
        assert (sut.state.key_count, sut.state.epoch, sut.state.fetches_ok, sut.state.last_error) == (1, 1, 1, "")
        assert 0 <= sut.state.age_s(asyncio.get_running_loop().time()) < 5


async def test_optional_issuers_do_not_hold_readiness_back(issuer: Issuer) -> None:
    """`required: false` and unreachable: ready, and denied keys for that issuer alone."""
    lost = issuer_policy(issuer="https://lost.example", keys=JwksUrl("http://192.0.2.1/jwks"), required=False)
    async with Engine(RARE, policy_for(issuer), lost) as sut:
        await until(lambda: sut.engine.ready and sut.engine.states[lost.issuer].last_error)
        assert sut.engine.keys(lost) is None


async def test_an_unchanged_fetch_changes_nothing(issuer: Issuer) -> None:
    """The same keys in another order are the same set object: cached tokens need no second look."""
    issuer.keys = [OLD, NEW]
    async with Engine(FAST, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)
        before = sut.keys
        issuer.keys = [NEW, OLD]
        seen = sut.state.fetches_ok
        await until(lambda: sut.state.fetches_ok >= seen + 2)
        assert sut.keys is before
        assert sut.state.epoch == 1


async def test_rotation_overlap_and_removal(issuer: Issuer) -> None:
    """A new key works beside the old one; once the old one is removed, a cached token that it signed dies."""
    cache = TokenCache()
    async with Engine(FAST, policy_for(issuer)) as sut:
        await until(lambda: sut.kids == {"old"})
        text = OLD.token()
        parsed = token.parse(text)
        assert isinstance(parsed, token.UnverifiedToken)
        assert sut.keys is not None
        principal = token.verify(parsed, sut.policy, sut.keys, NOW_US)
        assert not isinstance(principal, token.Rejected | token.NeedKey)
        cache.put(parsed, sut.policy, sut.keys, principal)

        issuer.keys = [OLD, NEW]
        await until(lambda: sut.kids == {"old", "new"})
        entry = cache.get(text)
        assert entry is not None
        assert entry.holds(sut.policy, sut.keys)

        issuer.keys = [NEW]
        await until(lambda: sut.kids == {"new"})
        assert not entry.holds(sut.policy, sut.keys)
        assert sut.state.epoch == 3


OUTAGES: dict[str, tuple[Behaviour, str]] = {
    "status 500": (sends(response(500)), "status 500"),
    "status 204": (sends(b"HTTP/1.1 204 X\r\n\r\n"), "status 204"),
    "hangs": (hangs, "did not answer completely within"),
    "slow drip": (drips, "did not answer completely within"),
    "closes at once": (sends(), "complete HTTP/1.1"),
    "cut short": (sends(b"HTTP/1.1 200 X\r\ncontent-length: 99\r\n\r\n{"), "complete HTTP/1.1"),
    "not HTTP": (sends(b"\x16\x03\x01 hello\r\n\r\n"), "HTTP/1.1"),
    "empty body": (sends(response(200)), "not JSON"),
    "empty set": (sends(response(200, b'{"keys":[]}')), "no usable key"),
    "no keys member": (sends(response(200, b"{}")), "no array"),
    "HTML": (sends(response(200, b"<html>")), "not JSON"),
    "deep nesting": (sends(response(200, b"[" * 10_000)), "nested deeper"),
    "only unusable keys": (sends(response(200, jwks({"kty": "oct", "k": "AAAA"}))), "symmetric"),
    "too many keys": (sends(response(200, jwks(*[OLD] * (KEYS_MAX + 1)))), "more than 100"),
    "duplicate kid": (sends(response(200, jwks(OLD, OLD))), "same kid"),
    "huge body": (sends(response(200, b" " * (BODY_BYTES_MAX + 1))), "more than 524288"),
    "huge body without length": (
        sends(b"HTTP/1.0 200 X\r\n\r\n", *[b" " * 65536] * 9),
        "more than 524288",
    ),
    "huge headers": (sends(b"HTTP/1.1 200 X\r\n", b"x: " + b"y" * 100_000), "HTTP/1.1"),
    "redirect": (sends(response(302, b"", "location: http://127.0.0.1/jwks")), "redirect"),
    "gzip": (sends(response(200, b"x", "content-encoding: gzip")), "content coding"),
}


@pytest.mark.parametrize(("behaviour", "why"), OUTAGES.values(), ids=OUTAGES.keys())
async def test_an_outage_keeps_the_last_good_keys(issuer: Issuer, behaviour: Behaviour, why: str) -> None:
    """CVE-2026-48524: whatever the server does, the keys stay, the fault is named, and recovery needs no restart."""
    async with Engine(FAST, policy_for(issuer, timeout_s=0.2)) as sut:
        await until(lambda: sut.keys)
        before = sut.keys
        issuer.behaviour = behaviour
        await until(lambda: sut.state.fetches_failed)
        assert sut.keys is before
        assert why in sut.state.last_error
        await until(lambda: "jwks_fetch_failed" in sut.names)
        assert next(fields["keys_kept"] for name, fields in sut.events if name == "jwks_fetch_failed") == 1
        issuer.behaviour, issuer.keys = None, [OLD, NEW]
        await until(lambda: sut.kids == {"old", "new"})
        assert sut.state.last_error == ""


async def test_keys_that_became_too_old_are_not_used(issuer: Issuer) -> None:
    """After `keys_stale_s_max` without a good fetch there are no keys, until a fetch succeeds."""
    async with Engine(FAST, policy_for(issuer, keys_stale_s_max=1)) as sut:
        await until(lambda: sut.keys)
        issuer.behaviour = sends(response(500))
        await until(lambda: sut.keys is None)
        assert sut.engine.ready
        await until(lambda: "jwks_expired" in sut.names)
        issuer.behaviour = None
        await until(lambda: sut.keys)


async def test_an_unknown_key_is_fetched_once_for_all_who_wait(issuer: Issuer) -> None:
    """Single flight: fifty callers, one fetch, and each gets the new key."""
    async with Engine(RARE, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)
        issuer.keys = [OLD, NEW]
        answers = await asyncio.gather(*(sut.ensure("new") for _ in range(50)))
        assert all(keys is not None and "new" in keys.kids for keys in answers)
        assert issuer.fetches == 2


async def test_a_flood_of_unknown_keys_makes_the_rationed_fetches_only(issuer: Issuer) -> None:
    """Two thousand invented names: the first fetch, a burst of two, and everyone else is answered at once."""
    async with Engine(RARE, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)
        for number in range(2000):
            keys = await sut.ensure(f"invented-{number}")
            assert keys is sut.keys
        assert issuer.fetches == 1 + RARE.ration_burst
        assert sut.state.refused == 2000 - RARE.ration_burst


async def test_the_ration_fills_again(issuer: Issuer) -> None:
    """After `ration_s` one more fetch is allowed, and no more than the burst however long nobody asked."""
    timings = JwksTimings(refresh_s_min=3600, ration_s=0.02, unknown_kid_s=0.0)
    async with Engine(timings, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)
        issuer.keys = [NEW]
        names = itertools.count()
        await sut.ensure(f"invented-{next(names)}")
        await sut.ensure(f"invented-{next(names)}")
        async with asyncio.timeout(5):
            while issuer.fetches < 5:
                await sut.ensure(f"invented-{next(names)}")
        assert sut.kids == {"new"}


async def test_a_key_that_was_not_found_is_remembered(issuer: Issuer) -> None:
    """The same unknown name asks the issuer once, although the ration would allow more."""
    async with Engine(RARE, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)
        for _ in range(10):
            await sut.ensure("nobody")
        assert issuer.fetches == 2


@pytest.mark.parametrize("more", [0, 1])
async def test_remembered_names_are_bounded(issuer: Issuer, monkeypatch: pytest.MonkeyPatch, more: int) -> None:
    """At N all are remembered; at N + 1 the first is forgotten."""
    monkeypatch.setattr(engine_module, "UNKNOWN_KIDS_MAX", 3)
    timings = JwksTimings(refresh_s_min=3600, ration_burst=1000)
    async with Engine(timings, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)
        for number in range(3 + more):
            await sut.ensure(f"invented-{number}")
        before = issuer.fetches
        await sut.ensure("invented-0")
        assert issuer.fetches == before + more


async def test_nobody_waits_past_the_deadline(issuer: Issuer) -> None:
    """With an issuer that hangs, the caller is answered with what there is when its time is over."""
    async with Engine(RARE, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)
        issuer.gate.clear()
        keys = await sut.ensure("new", within_s=0.02)
        assert keys is sut.keys
        issuer.gate.set()
        await until(lambda: sut.state.fetches_ok == 2)


async def test_a_deadline_in_the_past_is_answered_at_once(issuer: Issuer) -> None:
    """No fetch is started for a caller who is gone."""
    async with Engine(RARE, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)
        answers: list[KeySet | None] = []
        sut.engine.ensure(sut.policy, "new", -1.0, answers.append)
        assert answers == [sut.keys]
        assert issuer.fetches == 1


async def test_the_first_fetch_is_waited_for(issuer: Issuer) -> None:
    """A request that comes before there are any keys joins the fetch that is under way, and uses no ration."""
    issuer.gate.clear()
    async with Engine(RARE, policy_for(issuer)) as sut:
        await until(lambda: issuer.fetches)
        waiting = asyncio.ensure_future(sut.ensure(None))
        await until(lambda: sut.state._waiters)
        issuer.gate.set()
        keys = await waiting
        assert keys is not None
        assert issuer.fetches == 1


@pytest.mark.parametrize("more", [0, 1])
async def test_waiters_are_bounded(issuer: Issuer, monkeypatch: pytest.MonkeyPatch, more: int) -> None:
    """The one beyond the limit is answered at once, the others when the fetch ends."""
    monkeypatch.setattr(engine_module, "WAITERS_MAX", 4)
    async with Engine(RARE, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)
        issuer.gate.clear()
        answers: list[KeySet | None] = []
        for _ in range(4 + more):
            sut.engine.ensure(sut.policy, "new", math.inf, answers.append)
        assert len(answers) == more
        issuer.gate.set()
        await until(lambda: len(answers) == 4 + more)


async def test_what_a_caller_raises_harms_nobody_else(issuer: Issuer) -> None:
    """The exception goes to the loop's handler; the others are answered and fetching goes on."""
    raised: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context["exception"]))
    async with Engine(RARE, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)

        def explode(_keys: KeySet | None) -> None:
            raise RuntimeError("the caller's own trouble")

        sut.engine.ensure(sut.policy, "new", math.inf, explode)
        assert await sut.ensure("new") is sut.keys
        assert [str(error) for error in raised] == ["the caller's own trouble"]
        assert await sut.ensure("newer") is sut.keys
        assert issuer.fetches == 3


async def test_a_listener_that_fails_does_not_stop_the_keys(issuer: Issuer) -> None:
    """Its exception goes to the loop's handler; keys are fetched and refreshed all the same."""
    raised: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context["exception"]))

    def explode(_name: str, _fields: object) -> None:
        raise BrokenPipeError

    policy = policy_for(issuer)
    engine = JwksEngine([policy], explode, FAST)
    engine.start()
    await until(lambda: engine.states[policy.issuer].fetches_ok >= 3 and raised)
    assert engine.keys(policy) is not None
    await engine.stop()


async def test_a_failed_fetch_is_not_taken_for_an_unknown_key(issuer: Issuer) -> None:
    """While the issuer fails, a name that was not found is not remembered: the next caller may ask again."""
    async with Engine(RARE, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)
        issuer.behaviour = sends(response(500))
        await sut.ensure("new")
        issuer.behaviour, issuer.keys = None, [NEW]
        keys = await sut.ensure("new")
        assert keys is not None
        assert keys.kids == {"new"}


async def test_discovery(issuer: Issuer) -> None:
    """The document's issuer must be the policy's; then its jwks_uri is fetched."""
    policy = policy_for(issuer, issuer=issuer.url, keys=OidcDiscovery(issuer.url))
    async with Engine(FAST, policy) as sut:
        await until(lambda: sut.kids == {"old"})
        assert issuer.requests[:2] == ["/.well-known/openid-configuration", "/jwks"]


DISCOVERY_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "another issuer": ({"issuer": "https://evil.example"}, "another issuer"),
    "trailing slash": ({"issuer": "SLASH"}, "another issuer"),
    "issuer list": ({"issuer": ["x"]}, "another issuer"),
    "no jwks_uri": ({"jwks_uri": None}, "no jwks_uri"),
    "jwks_uri file": ({"jwks_uri": "file:///etc/passwd"}, "not https"),
    "jwks_uri ftp": ({"jwks_uri": "ftp://127.0.0.1/jwks"}, "not https"),
    "jwks_uri data": ({"jwks_uri": 'data:,{"keys":[]}'}, "not https"),
    "jwks_uri elsewhere in the clear": ({"jwks_uri": "http://192.0.2.1/jwks"}, "loopback"),
    "jwks_uri with credentials": ({"jwks_uri": "https://u:p@127.0.0.1/jwks"}, "credentials"),
    "jwks_uri with control bytes": ({"jwks_uri": "https://127.0.0.1/\r\nx: y"}, "character"),
}


@pytest.mark.parametrize(("configuration", "why"), DISCOVERY_FAULTS.values(), ids=DISCOVERY_FAULTS.keys())
async def test_discovery_that_points_elsewhere_is_refused(
    issuer: Issuer, configuration: dict[str, Any], why: str
) -> None:
    """OIDC Discovery section 4.3, CVE-2026-48522: no keys, no request for them."""
    issuer.configuration = {k: issuer.url + "/" if v == "SLASH" else v for k, v in configuration.items()}
    async with Engine(RARE, policy_for(issuer, issuer=issuer.url, keys=OidcDiscovery(issuer.url))) as sut:
        await until(lambda: sut.state.last_error)
        assert why in sut.state.last_error
        assert sut.keys is None
        assert issuer.fetches == 0


async def test_a_key_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """Written anew, or replaced by swapping a link as Kubernetes does; unchanged, it is not parsed again."""
    file, link = tmp_path / "jwks-1.json", tmp_path / "jwks.json"
    file.write_bytes(jwks(OLD))
    link.symlink_to(file)
    async with Engine(FAST, issuer_policy(keys=JwksFile(str(link)), refresh_s=0)) as sut:
        await until(lambda: sut.kids == {"old"})
        replacement = tmp_path / "jwks-2.json"
        replacement.write_bytes(jwks(NEW))
        (tmp_path / "next").symlink_to(replacement)
        (tmp_path / "next").replace(link)
        await until(lambda: sut.kids == {"new"})
        replacement.write_bytes(b"{}")
        await until(lambda: sut.state.last_error)
        assert sut.kids == {"new"}


@pytest.mark.parametrize("kind", ["absent", "directory", "fifo"])
async def test_a_key_file_that_is_none_is_named(tmp_path: Path, kind: str) -> None:
    """Nothing blocks on a pipe or a directory."""
    path = tmp_path / "jwks.json"
    if kind == "directory":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    async with Engine(RARE, issuer_policy(keys=JwksFile(str(path)))) as sut:
        await until(lambda: sut.state.last_error)
        assert "key file" in sut.state.last_error
        assert str(tmp_path) not in sut.state.last_error


async def test_reload_keeps_keys_that_come_from_the_same_place(issuer: Issuer) -> None:
    """Another audience is another policy for the same keys: nobody waits, nothing is fetched."""
    async with Engine(RARE, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)
        changed = policy_for(issuer, audiences=frozenset({"other"}))
        sut.engine.replace([changed])
        assert sut.engine.keys(changed) is not None
        assert sut.state.issuer is changed
        assert issuer.fetches == 1


async def test_reload_never_uses_keys_of_another_place(issuer: Issuer) -> None:
    """Where the keys come from has changed: the old ones are forgotten, and requests wait for the new ones."""
    async with Issuer(NEW) as other, Engine(RARE, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)
        sut.engine.replace([policy_for(other)])
        assert sut.keys is None
        keys = await sut.ensure(None)
        assert keys is not None
        assert keys.kids == {"new"}


async def test_reload_forgets_issuers_and_answers_who_waited(issuer: Issuer) -> None:
    """A removed issuer's task ends, its waiters are answered, and it has no keys."""
    issuer.gate.clear()
    async with Engine(RARE, policy_for(issuer)) as sut:
        waiting = asyncio.ensure_future(sut.ensure(None))
        await until(lambda: sut.state._waiters)
        sut.engine.replace([])
        assert await waiting is None
        assert sut.keys is None
        assert await sut.ensure("old") is None


async def test_bad_keys_are_reported_once_and_the_good_ones_used(issuer: Issuer) -> None:
    """A private key in the public set raises an alarm with its kid, not with its material."""
    secret = OLD.jwk | {"kid": "leaked", "d": "c2VjcmV0"}
    issuer.keys = [NEW, secret]
    async with Engine(FAST, policy_for(issuer)) as sut:
        await until(lambda: sut.state.fetches_ok >= 3)
        assert sut.kids == {"new"}
        await until(lambda: "jwks_key_exposed" in sut.names)
        alarms = [fields for name, fields in sut.events if name == "jwks_key_exposed"]
        assert [(alarm["kid"], alarm["reason"]) for alarm in alarms] == [
            ("leaked", "holds private parts: it is compromised")
        ]
        assert "c2VjcmV0" not in repr(sut.events)


async def test_keys_that_did_not_change_are_not_sent_again(issuer: Issuer) -> None:
    """The ETag of the last document brings a 304: the set stays, its age begins anew, and a change is still seen."""
    issuer.etag = '"v1"'
    async with Engine(FAST, policy_for(issuer)) as sut:
        await until(lambda: sut.state.fetches_unchanged >= 2)
        before, fetched_at = sut.keys, sut.state.fetched_at
        await until(lambda: sut.state.fetched_at > fetched_at)
        assert sut.keys is before
        assert sut.state.epoch == 1
        issuer.keys, issuer.etag = [NEW], '"v2"'
        await until(lambda: sut.kids == {"new"})
        assert sut.state.last_error == ""


async def test_an_etag_of_a_document_that_was_refused_is_not_kept(issuer: Issuer) -> None:
    """Otherwise an unusable document would be taken for the good one that came before it."""
    issuer.etag, issuer.keys = '"bad"', []
    async with Engine(FAST, policy_for(issuer)) as sut:
        await until(lambda: sut.state.fetches_failed >= 2)
        assert not any("if-none-match" in head for head in issuer.heads)
        assert sut.keys is None
        issuer.keys = [OLD]
        await until(lambda: sut.kids == {"old"})


async def test_an_etag_belongs_to_its_url(issuer: Issuer) -> None:
    """A discovered URL that has changed is asked for a whole document, whatever its validators were elsewhere."""
    issuer.etag = '"v1"'
    async with Engine(FAST, policy_for(issuer, issuer=issuer.url, keys=OidcDiscovery(issuer.url))) as sut:
        await until(lambda: sut.state.fetches_unchanged)
        issuer.configuration = {"jwks_uri": f"{issuer.url}/moved"}
        await until(lambda: "/moved" in issuer.requests)
        moved = next(head for head in issuer.heads if head.startswith("get /moved "))
        assert "if-none-match" not in moved


async def test_a_restart_without_the_issuer_has_the_kept_keys(issuer: Issuer, tmp_path: Path) -> None:
    """Ready and with keys before any fetch was good; they come of age as if nothing had been restarted."""
    policy = policy_for(issuer, keys_persist=str(tmp_path / "keys.json"))
    async with Engine(RARE, policy) as sut:
        await until(lambda: sut.state.fetches_ok == 1 and (tmp_path / "keys.json").exists())
    issuer.behaviour = sends(response(500))
    async with Engine(RARE, policy) as sut:
        await until(lambda: sut.state.fetches_failed == 1)
        assert sut.engine.ready
        assert sut.kids == {"old"}
        assert 0 <= sut.state.age_s(asyncio.get_running_loop().time()) < 60
        assert sut.state._expiry is not None
    issuer.behaviour, issuer.keys = None, [NEW]
    async with Engine(RARE, policy) as sut:
        await until(lambda: sut.state.fetches_ok == 1)
        assert sut.kids == {"new"}
        assert sut.state.epoch == 2


async def test_a_file_that_cannot_be_used_is_told_once_and_harms_nothing(issuer: Issuer, tmp_path: Path) -> None:
    """Keys are fetched and refreshed; what is wrong with the file shows until it is written."""
    kept = tmp_path / "keys.json"
    kept.write_text("{}")
    async with Engine(FAST, policy_for(issuer, keys_persist=str(kept))) as sut:
        await until(lambda: sut.state.fetches_ok >= 2 and not sut.state.persist_error)
        assert sut.names.count("jwks_not_kept") == 1
    async with Engine(FAST, policy_for(issuer, keys_persist=str(tmp_path / "no" / "keys.json"))) as sut:
        await until(lambda: sut.state.fetches_ok >= 3)
        assert "cannot be kept" in sut.state.persist_error
        await until(lambda: sut.names.count("jwks_not_kept") == 1)
        assert sut.kids == {"old"}


async def test_secrets_from_a_file_verify_and_those_from_a_server_never_do(issuer: Issuer, tmp_path: Path) -> None:
    """CVE-2026-48526: the same document is a set of secrets in a declared file, and no set at a URL."""
    secret = {"kty": "oct", "k": "A" * 43, "alg": "HS256", "kid": "s"}
    file = tmp_path / "secrets.json"
    file.write_bytes(jwks(secret))
    issuer.keys = [secret]
    declared = issuer_policy(keys=JwksFile(str(file), symmetric=True), algorithms=frozenset({"HS256"}))
    async with Engine(RARE, declared) as sut:
        await until(lambda: sut.kids == {"s"})
    for policy in (policy_for(issuer), issuer_policy(keys=JwksFile(str(file)))):
        async with Engine(RARE, policy) as sut:
            await until(lambda: sut.state.last_error)
            assert "symmetric key in a public set" in sut.state.last_error
            assert sut.keys is None


async def test_a_discovered_url_elsewhere_must_be_public(issuer: Issuer) -> None:
    """The issuer's own origin is named by the policy and may be anywhere; another that its document names may not."""
    async with Issuer(NEW) as inside:
        issuer.configuration = {"jwks_uri": f"{inside.url}/jwks"}
        policy = policy_for(issuer, issuer=issuer.url, keys=OidcDiscovery(issuer.url))
        async with Engine(RARE, policy) as sut:
            await until(lambda: sut.state.last_error)
            assert "not public" in sut.state.last_error
            assert inside.requests == []
        allowed = policy_for(issuer, issuer=issuer.url, keys=OidcDiscovery(issuer.url), private_addresses=True)
        async with Engine(RARE, allowed) as sut:
            await until(lambda: sut.kids == {"new"})


async def test_an_issuers_own_limit_of_keys(issuer: Issuer) -> None:
    """N keys are a set, N + 1 are refused whole, and the last good ones stay."""
    issuer.keys = [OLD, NEW]
    async with Engine(FAST, policy_for(issuer, keys_max=2)) as sut:
        await until(lambda: sut.kids == {"old", "new"})
        issuer.keys = [OLD, NEW, make_key(kid="third", number=3)]
        await until(lambda: sut.state.last_error)
        assert "more than 2 keys" in sut.state.last_error
        assert sut.kids == {"old", "new"}


async def test_reload_with_other_trust_does_not_keep_keys(issuer: Issuer, tmp_path: Path) -> None:
    """Who was believed before is not who is believed now; another patience alone is no such change."""
    async with Engine(RARE, policy_for(issuer)) as sut:
        await until(lambda: sut.keys)
        sut.engine.replace([policy_for(issuer, timeout_s=9.0, read_timeout_s=1.0, refresh_s=60)])
        assert sut.kids == {"old"}
        for change in ({"ca_file": str(tmp_path)}, {"keys_max": 5}, {"proxy": "http://127.0.0.1:1"}):
            sut.engine.replace([policy_for(issuer)])
            await until(lambda: sut.keys)
            sut.engine.replace([policy_for(issuer, **change)])
            assert sut.keys is None


async def test_what_is_shown_of_issuers(issuer: Issuer) -> None:
    """`/issuers`: keys by name and algorithm, ages, failures, what was dropped; neither URLs nor key material."""
    issuer.keys = [OLD, make_key("RS256", kid="leaked").jwk | {"d": "c2VjcmV0", "kid": "leaked"}]
    policy = policy_for(issuer, keys=JwksUrl(f"{issuer.url}/jwks?secret=hunter2"))
    issuer.behaviour = None
    async with Engine(RARE, policy) as sut:
        await until(lambda: sut.state.last_error)
        assert described(sut.engine, 0.0)["issuers"]["main"]["ready"] is False
    async with Engine(RARE, policy_for(issuer)) as sut:
        await until(lambda: sut.keys and not math.isnan(sut.state.next_fetch_at))
        await sut.ensure("invented")
        shown = described(sut.engine, asyncio.get_running_loop().time())["issuers"]["main"]
        assert shown["keys"] == [{"kid": "old", "alg": "ES256"}]
        assert (shown["source"], shown["ready"], shown["required"], shown["epoch"]) == ("jwks_url", True, True, 1)
        assert shown["fetches"] == {"ok": 2, "unchanged": 0, "failed": 0, "refused": 0}
        assert shown["unknown_kids"] == 1
        assert 0 <= shown["age_s"] < 5
        assert [(each["kid"], each["exposed"]) for each in shown["dropped"]] == [("leaked", True)]
        text = json.dumps(shown)
        assert not [word for word in ("hunter2", "c2VjcmV0", "127.0.0.1", OLD.jwk["x"]) if word in text]


@pytest.mark.parametrize(
    ("max_age_s", "refresh_s", "expected_s"),
    [(0, 300, 30), (60, 300, 60), (86_400, 300, 300), (20, 300, 30), (300, 10, 30)],
)
def test_pauses_between_fetches(max_age_s: float, refresh_s: int, expected_s: float) -> None:
    """max-age, held between 30 s and the policy's refresh, plus or minus 10 %; after failures short and growing."""
    state = IssuerKeys(issuer_policy(refresh_s=refresh_s), lambda *_: None, JwksTimings())
    pauses = [state._pause_s(max_age_s) for _ in range(100)]
    assert all(0.9 * expected_s <= pause <= 1.1 * expected_s for pause in pauses)
    assert len(set(pauses)) > 1
    for failures, longest_s in [(1, 0.5), (2, 1.0), (5, 8.0), (20, 30.0), (5000, 30.0)]:
        state.last_error, state._failures_in_a_row = "failed", failures
        assert all(longest_s / 2 <= state._pause_s(max_age_s) <= longest_s for _ in range(20))
