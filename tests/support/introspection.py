"""A real introspection endpoint (RFC 7662) that checks who asks, notes what it is asked, and misbehaves on demand."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs

from sidecar.core.introspection import ClientSecretBasic, IntrospectionPolicy
from tests.support.issuer import response
from tests.support.tokens import AUDIENCE, NOW_S, issuer_policy

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

Behaviour = Callable[["Endpoint", asyncio.StreamWriter], Awaitable[None]]


def answer(**changes: Any) -> dict[str, Any]:
    """What a usual endpoint says of an active token; None removes a member."""
    members = {
        "active": True,
        "scope": "orders:read orders:write",
        "client_id": "web",
        "username": "alice@example.com",
        "token_type": "Bearer",
        "exp": NOW_S + 600,
        "iat": NOW_S - 10,
        "sub": "alice",
        "aud": AUDIENCE,
        "iss": "https://issuer.example",
        "jti": "7f1c",
    } | changes
    return {name: value for name, value in members.items() if value is not None}


def sends(*chunks: bytes) -> Behaviour:
    """Writes these bytes, whatever they are, and closes."""

    async def behave(_endpoint: Endpoint, writer: asyncio.StreamWriter) -> None:
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()

    return behave


def says(body: bytes, *headers: str, status: int = 200) -> Behaviour:
    """Answers with this body."""
    return sends(response(status, body, "content-type: application/json", *headers))


async def hangs(endpoint: Endpoint, _writer: asyncio.StreamWriter) -> None:
    """Never answers, and keeps the connection."""
    await endpoint.closing.wait()


async def drips(endpoint: Endpoint, writer: asyncio.StreamWriter) -> None:
    """Sends a good answer one byte at a time, so slowly that it never ends."""
    for byte in response(200, json.dumps(answer()).encode()):
        writer.write(bytes([byte]))
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await endpoint.closing.wait()
                return


@dataclass
class Question:
    """What one request asked."""

    headers: dict[str, str]
    form: dict[str, list[str]]

    @property
    def token(self) -> str:
        return self.form["token"][0]


@dataclass
class Endpoint:
    """Knows tokens; every other one is inactive.

    Attributes:
        known: What is said of a token.
        behaviour: Instead of an answer.
        gate: While not set, answers wait.
        questions: What was asked.
    """

    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    behaviour: Behaviour | None = None
    tls: ssl.SSLContext | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    questions: list[Question] = field(default_factory=list)
    _server: asyncio.Server | None = None

    @property
    def asked(self) -> list[str]:
        """The tokens, in the order of the questions."""
        return [question.token for question in self.questions]

    @property
    def url(self) -> str:
        assert self._server is not None
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/introspect"

    async def __aenter__(self) -> Self:
        self.gate.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self.closing.set()
        self.gate.set()
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request_line, *lines = head.rstrip("\r\n").split("\r\n")
            assert request_line == "POST /introspect HTTP/1.1", request_line
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            form = (await reader.readexactly(int(headers["content-length"]))).decode()
            question = Question(headers, parse_qs(form, strict_parsing=True))
            self.questions.append(question)
            await self.gate.wait()
            if self.behaviour is not None:
                await self.behaviour(self, writer)
            else:
                body = self.known.get(question.token, {"active": False})
                writer.write(response(200, json.dumps(body).encode(), "content-type: application/json"))
            await writer.drain()
        writer.close()


def introspection_policy(directory: Path | None = None, **changes: Any) -> IntrospectionPolicy:
    """A policy whose client has the secret `opensesame`, in a file of the directory."""
    secret_file = "/nowhere"
    if directory is not None:
        path = directory / "secret"
        path.write_text("opensesame\n")
        secret_file = str(path)
    rules = changes.pop("rules", {})
    settings: dict[str, Any] = {
        "name": "legacy",
        "url": "https://issuer.example/introspect",
        "client": ClientSecretBasic("sidecar", secret_file),
        "rules": issuer_policy(**({"name": "legacy", "issuer": "", "algorithms": frozenset()} | rules)),
        "insecure_http": True,
    }
    return IntrospectionPolicy(**(settings | changes))
