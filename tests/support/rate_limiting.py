"""A rate limit service over one written configuration, asked without a transport or a server behind it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

from google.protobuf.json_format import MessageToDict, ParseDict
from msgspec import structs

from sidecar.core.descriptors import RateLimitOptions
from sidecar.edges.local_store import LocalStore
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest, RateLimitResponse
from sidecar.envoy.ratelimit import RateLimitService
from sidecar.policy.ratelimit_files import load_directory

HOUR_S = 3_600
NOW_US = 1_700_000_000 * 1_000_000
UNTIL_HOUR_S = HOUR_S - 1_700_000_000 % HOUR_S


class Store:
    """The in-process store on a clock that the test sets, standing for Redis too; it fails when told to."""

    def __init__(self, *, local: bool):
        self.now_us = NOW_US
        self.calls = []
        self.failure = None
        self._local = local
        self._counting = LocalStore(now_us=lambda: self.now_us)

    def charge(self, charges, deadline, done):
        self.calls.append((list(charges), deadline))
        if self.failure is not None:
            done(self.failure)
        else:
            self._counting.charge(charges, deadline, lambda verdict: done(structs.replace(verdict, local=self._local)))


class Call:
    """What the handler does with a call."""

    deadline = math.inf
    cancelled = False
    metadata: dict[str, str] = {}  # noqa: RUF012 - never written

    def __init__(self):
        self.answer = None

    def respond(self, message):
        assert self.answer is None
        self.answer = RateLimitResponse.FromString(message)

    def fail(self, status, message):
        assert self.answer is None
        self.answer = status, message


class Service:
    """A service over one written configuration."""

    def __init__(self, directory: Path, descriptors: str, **options):
        (directory / "d.yaml").write_text(f"domain: d\ndescriptors:\n{descriptors}")
        self.config = load_directory(directory, RateLimitOptions(**options))
        self.held_limits = {}
        self.store, self.local_store, self.events = Store(local=False), Store(local=True), []
        self.service = RateLimitService(
            lambda: SimpleNamespace(ratelimit=self.config, held_limits=self.held_limits),
            self.store,
            self.local_store,
            "test",
            self.events.append,
        )

    def send(self, message: bytes):
        call = Call()
        assert self.service.handle(message, call) is None
        return call.answer

    def ask(self, *descriptors, domain="d", hits=0):
        request = ParseDict(
            {"domain": domain, "hitsAddend": hits, "descriptors": [descriptor(each) for each in descriptors]},
            RateLimitRequest(),
        )
        return self.send(request.SerializeToString())

    def codes(self, *descriptors, hits=0):
        """Letters: the whole's, then each descriptor's; o for OK, x for OVER_LIMIT."""
        answer = self.ask(*descriptors, hits=hits)
        letters = {RateLimitResponse.OK: "o", RateLimitResponse.OVER_LIMIT: "x"}
        return letters[answer.overall_code] + "".join(letters[status.code] for status in answer.statuses)


def descriptor(written):
    """`k=v/k2=v2` or a dict with that as `path` and more fields of a RateLimitDescriptor."""
    more = dict(written) if isinstance(written, dict) else {"path": written}
    path = more.pop("path")
    pairs = (pair.partition("=") for pair in path.split("/") if pair)
    return {"entries": [{"key": key, "value": value} for key, _, value in pairs], **more}


def status(answer, index=0):
    return MessageToDict(answer.statuses[index], preserving_proto_field_name=True)
