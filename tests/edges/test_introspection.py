"""The engine that asks introspection endpoints, against a real one: outages, floods, secrets, reloads."""

from __future__ import annotations

import asyncio
import json
import math
import time
from base64 import b64decode, urlsafe_b64decode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote_plus

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.core import token as tokens
from sidecar.core.breaker import BreakerState
from sidecar.core.introspection import (
    ANSWER_BYTES_MAX,
    Answer,
    ClientSecretBasic,
    IntrospectionPolicy,
    NeedIntrospection,
    PrivateKeyJwt,
    TlsClientAuth,
    Unanswered,
    token_key,
)
from sidecar.core.keys import parse_jwks
from sidecar.core.principal import Principal
from sidecar.edges import introspection as engine_module
from sidecar.edges.client_authentication import ClientAuthenticator
from sidecar.edges.http_client import FetchError
from sidecar.edges.introspection import BREAKER_FAILURES_MAX, BREAKER_OPEN_US, Finding, IntrospectionEngine
from tests.support.certificates import make_certificates
from tests.support.introspection import Endpoint, answer, drips, hangs, introspection_policy, says, sends
from tests.support.issuer import response
from tests.support.tokens import issuer_policy, jwks, make_key

SECRET = "opensesame"
TOKEN = "the-token_of.alice~1"


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Yield to the loop until the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - nothing tells of most conditions
            await asyncio.sleep(0)


def now_us() -> int:
    return time.time_ns() // 1000


def living(**changes: Any) -> dict[str, Any]:
    """A good answer about a token that lives now."""
    now_s = time.time_ns() // 1_000_000_000
    return answer(**({"exp": now_s + 600, "iat": now_s - 10} | changes))


class Engine:
    """An engine under test."""

    def __init__(self, *policies: IntrospectionPolicy, clock_us: Callable[[], int] = now_us) -> None:
        self.policy = policies[0]
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.engine = IntrospectionEngine(policies, self._note, clock_us)

    def _note(self, name: str, fields: Any) -> None:
        self.events.append((name, dict(fields)))

    @property
    def endpoint(self) -> engine_module.Endpoint:
        return self.engine.endpoints[self.policy.name]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.stop()

    def begin(
        self, token: str = TOKEN, deadline: float = math.inf, policy: IntrospectionPolicy | None = None
    ) -> asyncio.Future[Finding]:
        policy = policy or self.policy
        found: asyncio.Future[Finding] = asyncio.get_running_loop().create_future()
        self.engine.ask(NeedIntrospection(policy, token_key(policy, token), token), deadline, found.set_result)
        return found

    async def ask(self, token: str = TOKEN, deadline: float = math.inf) -> Finding:
        async with asyncio.timeout(5):
            return await self.begin(token, deadline)


@pytest_asyncio.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with Endpoint(known={TOKEN: living()}) as server:
        yield server


@pytest.fixture
def policy(endpoint: Endpoint, tmp_path: Path) -> IntrospectionPolicy:
    return introspection_policy(tmp_path, url=endpoint.url)


def is_active(found: Finding) -> bool:
    return isinstance(found, Answer) and found.active


async def test_a_question_is_a_form_with_the_clients_secret(endpoint: Endpoint, policy: IntrospectionPolicy) -> None:
    """RFC 7662 section 2.1, RFC 6749 section 2.3.1; the answer is the principal's."""
    async with Engine(policy) as sut:
        assert is_active(await sut.ask())
    [question] = endpoint.questions
    assert question.form == {"token": [TOKEN], "token_type_hint": ["access_token"]}
    assert question.headers["content-type"] == "application/x-www-form-urlencoded"
    assert question.headers["accept"] == "application/json"
    scheme, _, pair = question.headers["authorization"].partition(" ")
    assert (scheme, b64decode(pair)) == ("Basic", b"sidecar:opensesame")


async def test_name_and_secret_are_encoded_before_they_are_joined(endpoint: Endpoint, tmp_path: Path) -> None:
    """A colon or a percent sign in one of them does not move the border (RFC 6749 section 2.3.1)."""
    (tmp_path / "odd").write_text("a:b %+é\r\n")
    client = ClientSecretBasic("side:car/é", str(tmp_path / "odd"))
    async with Engine(introspection_policy(url=endpoint.url, client=client, token_type_hint=False)) as sut:
        assert is_active(await sut.ask())
    [question] = endpoint.questions
    name, _, secret = b64decode(question.headers["authorization"].removeprefix("Basic ")).decode().partition(":")
    assert (unquote_plus(name), unquote_plus(secret)) == ("side:car/é", "a:b %+é")
    assert question.form == {"token": [TOKEN]}


async def test_a_token_is_encoded(endpoint: Endpoint, policy: IntrospectionPolicy) -> None:
    """What a token may hold (`+`, `/`, `=`) arrives as it was shown, and adds no parameter."""
    async with Engine(policy) as sut:
        await sut.ask("a+b/c==")
    assert endpoint.questions[0].form["token"] == ["a+b/c=="]


@pytest.mark.parametrize("alg", ["RS256", "ES256", "ES384", "ES512", "EdDSA"])
async def test_a_client_signs_a_jwt_for_each_question(endpoint: Endpoint, tmp_path: Path, alg: str) -> None:
    """RFC 7523 section 3: verified by our own front end; its `jti` never comes again, and it is short-lived."""
    key = make_key(alg)
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    client = PrivateKeyJwt("sidecar", str(tmp_path / "key.pem"), "k1", "https://issuer.example")
    async with Engine(introspection_policy(url=endpoint.url, client=client, active_s=0.0)) as sut:
        assert is_active(await sut.ask())
        assert is_active(await sut.ask())
    rules = issuer_policy(issuer="sidecar", audiences=frozenset({"https://issuer.example"}), max_lifetime_s=60)
    names = set()
    for question in endpoint.questions:
        assert "authorization" not in question.headers
        assert question.form["client_assertion_type"] == ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"]
        [assertion] = question.form["client_assertion"]
        parsed = tokens.parse(assertion, 8192)
        assert isinstance(parsed, tokens.UnverifiedToken)
        proved = tokens.verify(parsed, rules, parse_jwks(jwks(key)), now_us())
        assert isinstance(proved, Principal)
        assert proved.subject == "sidecar"
        names.add(proved.claims["jti"])
        header = json.loads(urlsafe_b64decode(assertion.split(".")[0] + "=="))
        assert header == {"alg": alg, "typ": "JWT", "kid": "k1"}
    assert len(names) == 2


async def test_a_client_shows_its_certificate(tmp_path: Path) -> None:
    """RFC 8705 section 2: the endpoint demands one; `client_id` goes along; without one there is no answer."""
    made = make_certificates(tmp_path)
    async with Endpoint(known={TOKEN: living()}, tls=made.server_context(mutual=True)) as endpoint:
        changes = {"url": endpoint.url, "ca_file": str(made.ca), "insecure_http": False}
        client = TlsClientAuth("sidecar", str(made.client), str(made.client_key))
        async with Engine(introspection_policy(tmp_path, **changes, client=client)) as sut:
            found = await sut.ask()
            assert is_active(found)
        assert endpoint.questions[0].form["client_id"] == ["sidecar"]
        async with Engine(introspection_policy(tmp_path, **changes)) as sut:
            assert isinstance(await sut.ask(), Unanswered)
        async with Engine(introspection_policy(tmp_path, url=endpoint.url)) as sut:
            found = await sut.ask()
            assert isinstance(found, Unanswered)
            assert "TLS" in found.detail
        assert len(endpoint.questions) == 1


# -- what may go wrong


FAILURES: dict[str, tuple[Any, bool]] = {
    "says nothing": (sends(), True),
    "closes early": (sends(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"), True),
    "no HTTP": (sends(b"\x00\x01garbage\r\n\r\n"), True),
    "head too long": (sends(b"HTTP/1.1 200 OK\r\nx: " + b"x" * 40_000), True),
    "401": (says(b"{}", status=401), True),
    "403": (says(b"{}", status=403), True),
    "404": (says(b"{}", status=404), True),
    "429": (says(b"{}", status=429), False),
    "500": (says(json.dumps(living()).encode(), status=500), True),
    "503": (says(b"{}", status=503), True),
    "201 with a good body": (says(json.dumps(living()).encode(), status=201), True),
    "redirect": (says(b"", "location: /introspect2", status=307), True),
    "redirect with a good body": (says(json.dumps(living()).encode(), "location: /x", status=302), True),
    "400": (says(b'{"error": "invalid_request"}', status=400), False),
    "HTML": (says(b"<html>"), False),
    "empty": (says(b""), False),
    "active text": (says(b'{"active": "true"}'), False),
    "active twice": (says(b'{"active": false, "active": true}'), False),
    "two answers": (says(json.dumps(living()).encode() * 2), False),
    "too long": (says(b'{"active": true, "x": "' + b"x" * ANSWER_BYTES_MAX + b'"}'), False),
    "endless": (sends(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 2 * ANSWER_BYTES_MAX), False),
    "compressed": (sends(response(200, b"\x1f\x8b", "content-encoding: gzip")), True),
}


@pytest.mark.parametrize(("behaviour", "outage"), FAILURES.values(), ids=FAILURES.keys())
async def test_what_is_no_answer_is_a_failure(
    endpoint: Endpoint, policy: IntrospectionPolicy, behaviour: Any, outage: bool
) -> None:
    """Nobody is proved, nothing is remembered, neither token nor secret is told, and the next answer counts again."""
    endpoint.behaviour = behaviour
    async with Engine(policy) as sut:
        found = await sut.ask()
        assert isinstance(found, Unanswered)
        assert found.outage is outage
        assert sut.engine.cache.sizes == (0, 0)
        assert [name for name, _ in sut.events] == ["introspection_failed"]
        told = repr((found, sut.events, sut.engine.detail(0), sut.policy))
        assert TOKEN not in told
        assert SECRET not in told
        endpoint.behaviour = None
        assert is_active(await sut.ask())
        assert [name for name, _ in sut.events] == ["introspection_failed", "introspection_recovered"]


@pytest.mark.parametrize("behaviour", [hangs, drips])
async def test_a_slow_endpoint_is_given_up_on(endpoint: Endpoint, tmp_path: Path, behaviour: Any) -> None:
    """The question ends by its own timeout, whoever waits."""
    endpoint.behaviour = behaviour
    async with Engine(introspection_policy(tmp_path, url=endpoint.url, timeout_s=0.05)) as sut:
        found = await sut.ask()
        assert isinstance(found, Unanswered)
        assert found.outage
        assert "0.05 s" in found.detail


async def test_an_endpoint_that_is_not_there(tmp_path: Path) -> None:
    """Refused connections are an outage."""
    async with Endpoint() as gone:
        url = gone.url
    async with Engine(introspection_policy(tmp_path, url=url)) as sut:
        found = await sut.ask()
        assert isinstance(found, Unanswered)
        assert found.outage


async def test_a_check_waits_for_its_own_time_only(endpoint: Endpoint, policy: IntrospectionPolicy) -> None:
    """Its answer is still kept for the next Check; one whose time is up already asks nothing."""
    endpoint.gate.clear()
    async with Engine(policy) as sut:
        loop = asyncio.get_running_loop()
        found = await sut.ask(deadline=loop.time() + 0.01)
        assert isinstance(found, Unanswered)
        assert found.outage
        assert isinstance(await sut.ask("other", deadline=loop.time() - 1), Unanswered)
        endpoint.gate.set()
        await until(lambda: sut.engine.cache.sizes == (1, 0))
        assert is_active(await sut.ask(deadline=loop.time() + 5))
    assert endpoint.asked == [TOKEN]


# -- the cache


async def test_an_answer_is_remembered(endpoint: Endpoint, policy: IntrospectionPolicy) -> None:
    """Active and inactive: one question each, then answers at once."""
    async with Engine(policy) as sut:
        for _ in range(3):
            assert is_active(await sut.ask())
            assert not is_active(await sut.ask("unknown"))
        assert sut.begin().done()
        assert sut.engine.cache.hits == 5
        assert sut.endpoint.results == {"active": 1, "inactive": 1, "refused": 0, "unusable": 0, "failed": 0}
    assert endpoint.asked == [TOKEN, "unknown"]


async def test_an_answer_ends(endpoint: Endpoint, policy: IntrospectionPolicy) -> None:
    """At the cap the endpoint is asked again, and a token that was revoked there is refused from then on."""
    clock = [now_us()]
    async with Engine(policy, clock_us=lambda: clock[0]) as sut:
        assert is_active(await sut.ask())
        endpoint.known.clear()
        clock[0] += 59_999_999
        assert is_active(await sut.ask())
        clock[0] += 1
        assert not is_active(await sut.ask())
        endpoint.known[TOKEN] = living()
        assert not is_active(await sut.ask())
        clock[0] += 10_000_000
        assert is_active(await sut.ask())
    assert endpoint.asked == [TOKEN] * 3


async def test_a_claim_that_does_not_hold_is_remembered_as_refused(
    endpoint: Endpoint, policy: IntrospectionPolicy
) -> None:
    """Another audience's token costs one question, not one a request."""
    endpoint.known[TOKEN] = living(aud="other")
    async with Engine(policy) as sut:
        for _ in range(3):
            assert not is_active(await sut.ask())
        assert sut.endpoint.results["refused"] == 1
    assert endpoint.asked == [TOKEN]


# -- many at once


async def test_many_checks_ask_one_question(endpoint: Endpoint, policy: IntrospectionPolicy) -> None:
    """Single flight: however many show the token meanwhile, it is asked about once."""
    endpoint.gate.clear()
    async with Engine(policy) as sut:
        waiting = [sut.begin() for _ in range(500)]
        await until(lambda: endpoint.questions)
        waiting += [sut.begin() for _ in range(500)]
        endpoint.gate.set()
        async with asyncio.timeout(5):
            assert all(map(is_active, await asyncio.gather(*waiting)))
        assert sut.endpoint.waiting == 0
    assert endpoint.asked == [TOKEN]


async def test_questions_under_way_and_waiting_are_bounded(endpoint: Endpoint, tmp_path: Path) -> None:
    """N are under way, M wait, one more is answered at once; and none is asked that nobody waits for any more."""
    endpoint.gate.clear()
    async with Engine(introspection_policy(tmp_path, url=endpoint.url, concurrent_max=2, queue_max=3)) as sut:
        deadline = asyncio.get_running_loop().time() + 0.02
        waiting = [sut.begin(f"t{n}") for n in range(4)]
        late = sut.begin("late", deadline=deadline)
        assert (sut.endpoint.in_flight, sut.endpoint.queued) == (2, 3)
        over = sut.begin("over")
        assert over.done()
        found = over.result()
        assert isinstance(found, Unanswered)
        assert not found.outage
        assert sut.endpoint.spared["queue"] == 1
        given_up = await late
        assert isinstance(given_up, Unanswered)
        assert not given_up.outage, "it was the crowd's fault, not the endpoint's"
        endpoint.gate.set()
        async with asyncio.timeout(5):
            assert not any(map(is_active, await asyncio.gather(*waiting)))
        await until(lambda: not sut.endpoint.in_flight and not sut.endpoint.queued)
        assert sut.endpoint.spared["deadline"] == 1
    assert sorted(endpoint.asked) == ["t0", "t1", "t2", "t3"]


async def test_checks_that_wait_are_bounded(
    endpoint: Endpoint, policy: IntrospectionPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At N and N+1, whatever they wait for."""
    monkeypatch.setattr(engine_module, "WAITERS_MAX", 3)
    endpoint.gate.clear()
    async with Engine(policy) as sut:
        waiting = [sut.begin(), sut.begin(), sut.begin("other")]
        for token in (TOKEN, "third"):
            assert isinstance(sut.begin(token).result(), Unanswered)
        assert not any(each.done() for each in waiting)
        endpoint.gate.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*waiting)


async def test_a_flood_of_unknown_tokens_does_not_reach_the_endpoint(endpoint: Endpoint, tmp_path: Path) -> None:
    """Of 2,000 at most the budget is asked about; the others are denied at once, and good tokens are still renewed."""
    clock = [now_us()]
    policy = introspection_policy(tmp_path, url=endpoint.url, rate_count=40, rate_us=3_600_000_000, queue_max=1000)
    async with Engine(policy, clock_us=lambda: clock[0]) as sut:
        assert is_active(await sut.ask())
        async with asyncio.timeout(5):
            found = await asyncio.gather(*(sut.begin(f"garbage{n}") for n in range(2000)))
        assert not any(map(is_active, found))
        denied = [each for each in found if isinstance(each, Unanswered)]
        assert not any(each.outage for each in denied)
        assert sut.endpoint.spared["rate"] == len(denied) == 2000 - 29
        assert is_active(await sut.ask()), "remembered"
        clock[0] += 60_000_000
        assert is_active(await sut.ask()), "asked again, out of what is kept for it"
        assert isinstance(await sut.ask("garbage again"), Unanswered)
    assert len(endpoint.questions) == 31


async def test_after_failures_the_endpoint_is_spared(endpoint: Endpoint, policy: IntrospectionPolicy) -> None:
    """The breaker opens after N failures; what is remembered still counts; then one question shows that all is well."""
    async with Engine(policy) as sut:
        assert is_active(await sut.ask())
        endpoint.behaviour = says(b"", status=500)
        for n in range(BREAKER_FAILURES_MAX):
            assert sut.endpoint.breaker.state is BreakerState.CLOSED
            assert isinstance(await sut.ask(f"t{n}"), Unanswered)
        assert sut.endpoint.breaker.state is BreakerState.OPEN
        spared = await sut.ask("one more")
        assert isinstance(spared, Unanswered)
        assert spared.outage
        assert sut.endpoint.spared["breaker"] == 1
        assert len(endpoint.questions) == 1 + BREAKER_FAILURES_MAX
        assert is_active(await sut.ask())
        endpoint.behaviour = None
        sut.endpoint.breaker._opens_until_us -= BREAKER_OPEN_US
        assert not is_active(await sut.ask("one more"))
        assert sut.endpoint.breaker.state is BreakerState.CLOSED


async def test_strange_tokens_do_not_open_the_breaker(endpoint: Endpoint, policy: IntrospectionPolicy) -> None:
    """A caller who finds a token that the endpoint chokes on keeps nobody else from being asked about."""
    async with Engine(policy) as sut:
        for n in range(3 * BREAKER_FAILURES_MAX):
            endpoint.behaviour = says(b"", status=400) if n % 2 else says(b"<html>")
            found = await sut.ask(f"strange{n}")
            assert isinstance(found, Unanswered)
            assert not found.outage
        endpoint.behaviour = None
        assert is_active(await sut.ask())


async def test_what_a_caller_raises_harms_nobody_else(endpoint: Endpoint, policy: IntrospectionPolicy) -> None:
    """The exception goes to the loop's handler; the others are answered and the next question is asked."""
    raised: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context["exception"]))
    async with Engine(policy) as sut:

        def explode(_found: Finding) -> None:
            raise RuntimeError("the caller's own trouble")

        need = NeedIntrospection(policy, token_key(policy, TOKEN), TOKEN)
        sut.engine.ask(need, math.inf, explode)
        assert is_active(await sut.ask())
        assert [str(error) for error in raised] == ["the caller's own trouble"]
        assert not is_active(await sut.ask("next"))


# -- files, reloads, the end


async def test_a_secret_is_read_again_when_it_changes(endpoint: Endpoint, tmp_path: Path) -> None:
    """A rotated one is used without a restart; a file that went bad changes nothing, and says so."""
    policy = introspection_policy(tmp_path, url=endpoint.url)
    client, file = ClientAuthenticator(policy, look_s=0.0), tmp_path / "secret"

    async def secret() -> str:
        proof = await client.proof()
        assert SECRET not in repr(proof)
        return b64decode(proof.headers["Authorization"].removeprefix("Basic ")).decode().partition(":")[2]

    assert await secret() == "opensesame"
    file.write_text("opensesame-2")
    assert await secret() == "opensesame-2"
    for bad in (b"", b"two\nlines", b"\xff", b"x" * 70_000):
        file.write_bytes(bad)
        assert await secret() == "opensesame-2"
        assert "secret file" in client.last_error
    file.unlink()
    assert await secret() == "opensesame-2"
    file.write_text("opensesame-3")
    assert await secret() == "opensesame-3"
    assert client.last_error == ""
    assert "opensesame" not in repr(vars(client))


@pytest.mark.parametrize("bad", [b"", b"no key", b"x" * 20_000])
async def test_a_client_without_a_key_asks_nothing(endpoint: Endpoint, tmp_path: Path, bad: bytes) -> None:
    """It cannot prove itself: an outage, named without the file's contents."""
    (tmp_path / "key.pem").write_bytes(bad)
    policy = introspection_policy(
        url=endpoint.url, client=PrivateKeyJwt("sidecar", str(tmp_path / "key.pem"), None, "a")
    )
    with pytest.raises(FetchError, match="key file"):
        await ClientAuthenticator(policy).proof()
    async with Engine(policy) as sut:
        found = await sut.ask()
        assert isinstance(found, Unanswered)
        assert found.outage
    assert endpoint.questions == []


async def test_reload_keeps_what_an_unchanged_endpoint_said(endpoint: Endpoint, policy: IntrospectionPolicy) -> None:
    """Equal policies are one; another audience, another URL or none forget."""
    async with Engine(policy) as sut:
        assert is_active(await sut.ask())
        before = sut.endpoint
        sut.engine.replace([introspection_policy(Path(policy.client.secret_file).parent, url=policy.url)])
        assert sut.endpoint is before
        assert sut.begin().done()
        changed = introspection_policy(
            Path(policy.client.secret_file).parent, url=policy.url, rules={"audiences": frozenset({"other"})}
        )
        sut.engine.replace([changed])
        assert sut.engine.cache.sizes == (0, 0)
        assert isinstance(await sut.ask(), Unanswered), "a Check under the old policy is not decided by the new one"
        async with asyncio.timeout(5):
            assert not is_active(await sut.begin(policy=changed))
        sut.engine.replace([])
        assert isinstance(await sut.begin(policy=changed), Unanswered)
    assert endpoint.asked == [TOKEN, TOKEN]


async def test_an_answer_to_an_old_policy_is_not_kept(endpoint: Endpoint, policy: IntrospectionPolicy) -> None:
    """Questions under way end by themselves; those that wait are given up."""
    endpoint.gate.clear()
    narrow = introspection_policy(Path(policy.client.secret_file).parent, url=policy.url, concurrent_max=1)
    async with Engine(narrow) as sut:
        under_way, waits = sut.begin(), sut.begin("waits")
        sut.engine.replace([policy])
        endpoint.gate.set()
        async with asyncio.timeout(5):
            assert is_active(await under_way)
            assert isinstance(await waits, Unanswered)
        assert sut.engine.cache.sizes == (0, 0)


async def test_stopping_answers_who_waits(endpoint: Endpoint, policy: IntrospectionPolicy) -> None:
    """Nobody is left waiting, and no task."""
    endpoint.gate.clear()
    async with Engine(policy) as sut:
        waiting = [sut.begin(), sut.begin("other")]
        await until(lambda: len(endpoint.questions) == 2)
        await sut.engine.stop()
        async with asyncio.timeout(5):
            assert all(isinstance(found, Unanswered) for found in await asyncio.gather(*waiting))
        assert sut.endpoint.in_flight == 0
        assert sut.events == []
        assert not any(sut.endpoint.results.values())
