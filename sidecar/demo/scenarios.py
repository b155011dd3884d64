"""The requests that the demo sends, each with the answer that it must get; the end-to-end tests send the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.demo.client import Client, Reply
from sidecar.demo.issuer import DemoIssuer, tampered

IDENTITY_HEADERS = ("x-user-id", "x-user-scopes", "authorization")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One request and what must come of it.

    Attributes:
        times: How often it is sent; the last answer counts, the ones before must be 200.
        reason: The end of the problem's `type`; "" where Sidecar sends no problem.
        response: Parts that these response headers must contain; "": present.
        upstream: What the upstream must see of these headers; None: nothing.
    """

    title: str
    target: str
    status: int
    method: str = "GET"
    token: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    times: int = 1
    reason: str = ""
    response: Mapping[str, str] = field(default_factory=dict)
    upstream: Mapping[str, str | None] = field(default_factory=dict)

    def send(self, client: Client) -> Reply:
        """Send it through Envoy; the last reply, or the first one of a series that was refused too early."""
        credential = (("authorization", f"Bearer {self.token}"),) if self.token else ()
        headers = (*credential, *self.headers)
        for _ in range(self.times - 1):
            reply = client.request(self.method, self.target, headers)
            if reply.status != 200:
                return Reply(0, reply.headers, b"one of the requests before the last one was refused: " + reply.body)
        return client.request(self.method, self.target, headers)

    def differences(self, reply: Reply) -> list[str]:
        """What is not as it must be; empty when all is."""
        wrong: list[str] = []
        if reply.status != self.status:
            wrong.append(f"status {reply.status}, not {self.status}; body {reply.body[:300]!r}")
        if self.reason and not str(reply.json().get("type", "")).endswith(self.reason):
            wrong.append(f"problem type {reply.json().get('type')!r}, not {self.reason!r}")
        for name, part in self.response.items():
            value = reply.header(name)
            if not value or part not in value:
                wrong.append(f"response header {name}: {value!r}, which should hold {part!r}")
        if self.upstream:
            seen = reply.json().get("headers", {})
            if not seen:
                wrong.append("the upstream did not answer")
            for name, expected in self.upstream.items():
                if seen.get(name) != expected:
                    wrong.append(f"the upstream saw {name}: {seen.get(name)!r}, not {expected!r}")
        return wrong


def why(reply: Reply) -> list[str]:
    """What a person should see of a reply, line by line."""
    body = reply.json()
    if reply.status == 200:
        seen = body.get("headers", {})
        known = [f"{name}: {seen[name]}" for name in IDENTITY_HEADERS if name in seen]
        return ["the upstream saw " + (", ".join(known) or "no identity header")]
    lines = [str(body["detail"])] if "detail" in body else []
    if reply.header("x-envoy-ratelimited"):
        lines.append("refused by Envoy's ratelimit filter, which asked Sidecar")
    names = ("www-authenticate", "retry-after", "ratelimit", "ratelimit-policy")
    shown = [*names, *(name for name, _ in reply.headers if name.startswith("x-ratelimit"))]
    lines += [f"{name}: {reply.header(name)}" for name in shown if reply.header(name)]
    return lines or [reply.body.decode(errors="replace")]


def scenarios(issuer: DemoIssuer, subject: str = "alice") -> list[Scenario]:
    """All of them, in an order that reads as a story, for one subject who has used up nothing yet."""
    good = issuer.token({"sub": subject})
    return [*_refused_tokens(issuer, good), *_identity(good, subject), *_limits(good), *_paths(good)]


def _refused_tokens(issuer: DemoIssuer, good: str) -> list[Scenario]:
    invalid = {"www-authenticate": 'error="invalid_token"'}
    order = "/orders/7"
    return [
        Scenario(
            title="no token",
            target=order,
            status=401,
            reason="credential_missing",
            response={"www-authenticate": "Bearer realm=", "content-type": "application/problem+json"},
        ),
        Scenario(
            title="an expired token",
            target=order,
            token=issuer.token(expires_in_s=-300),
            status=401,
            reason="token_expired",
            response=invalid,
        ),
        Scenario(
            title="a token for another audience",
            target=order,
            token=issuer.token({"aud": "billing-api"}),
            status=401,
            reason="token_audience_mismatch",
            response=invalid,
        ),
        Scenario(
            title="a token whose subject was changed",
            target=order,
            token=tampered(good),
            status=401,
            reason="token_signature_invalid",
            response=invalid,
        ),
        Scenario(
            title="a token without the scope",
            method="PUT",
            target=order,
            token=good,
            status=403,
            reason="scope_insufficient",
            response={"www-authenticate": 'scope="orders:write"'},
        ),
    ]


def _identity(good: str, subject: str) -> list[Scenario]:
    forged = (("x-user-id", "admin"), ("x-user-id", "root"), ("x-user-scopes", "everything"))
    proved = {"x-user-id": subject, "x-user-scopes": "orders:read", "authorization": None}
    nobody = {"x-user-id": None, "x-user-scopes": None}
    return [
        Scenario(title="a good token", target="/orders/7", token=good, status=200, upstream=proved),
        Scenario(
            title="a good token, x-user-id: admin forged",
            target="/orders/7",
            token=good,
            headers=forged,
            status=200,
            upstream=proved,
        ),
        Scenario(
            title="a public page, x-user-id: admin forged",
            target="/public/index",
            headers=forged,
            status=200,
            upstream=nobody,
        ),
    ]


def _limits(good: str) -> list[Scenario]:
    return [
        Scenario(
            title="the fourth search in a minute",
            target="/search",
            token=good,
            times=4,
            status=429,
            reason="quota-exceeded",
            response={"retry-after": "", "ratelimit": "", "ratelimit-policy": ""},
        ),
        Scenario(
            title="the third report in an hour (RLS)",
            target="/reports/q3",
            token=good,
            times=3,
            status=429,
            response={"x-envoy-ratelimited": "true", "x-ratelimit-limit": "2", "x-ratelimit-remaining": "0"},
        ),
    ]


def _paths(good: str) -> list[Scenario]:
    return [
        Scenario(
            title="a path that can be read in two ways",
            target="/public/..%252forders/7",
            token=good,
            status=400,
            reason="path_ambiguous",
        ),
        Scenario(title="a path that no rule opens", target="/admin", token=good, status=403, reason="no_rule"),
    ]
