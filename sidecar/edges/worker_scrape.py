"""What the supervisor asks its workers over their private sockets: samples, readiness and policy, made into one answer.

Counters never go backwards: what a worker last showed stays in the sums when it does not answer, or has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final

import msgspec

from sidecar.edges.admin import Answer, Component, PostRoute, Route, json_answer, live_route, ready_answer
from sidecar.edges.admin_client import AdminSilentError, get, get_json, post
from sidecar.edges.hot_keys_route import TOP_PATH, merged_hot_keys
from sidecar.edges.internal_tokens import JWKS_PATH, jwks_answer
from sidecar.edges.issuers_route import ISSUERS_PATH
from sidecar.edges.log import get_log
from sidecar.edges.metrics import Metrics, Sample, decode_samples, encode_samples, merged
from sidecar.edges.metrics_table import ROWS, Kind, Merge
from sidecar.edges.revocation_paths import BODY_BYTES_MAX
from sidecar.edges.revocation_paths import PATH as REVOCATIONS_PATH
from sidecar.transport.service import UnixAddress

RETIRED_SERIES_MAX: Final = 20_000
"""Series kept of workers that ended; beyond that all are forgotten, which a scraper sees as a counter's reset."""

SAMPLES_PATH: Final = "/samples"

_log = get_log("supervisor")


@dataclass(slots=True, eq=False)
class WorkerView:
    """A worker process as the supervisor sees it."""

    index: int
    socket_path: str
    state: str = "starting"
    """starting, running, or restarting."""
    samples: Sequence[Sample] = field(default_factory=tuple)
    """What it last showed."""


async def load_exposition() -> ModuleType:
    """The module exposition.py, imported in a thread the first time."""
    return await asyncio.to_thread(importlib.import_module, "sidecar.edges.exposition")


def samples_route(metrics: Metrics) -> Route:
    """What a worker answers at `SAMPLES_PATH`."""

    async def samples(_headers: Mapping[str, str]) -> Answer:
        await load_exposition()
        return Answer(200, encode_samples(metrics.samples()))

    return samples


def metrics_route(collect: Callable[[], Awaitable[Sequence[Sample]]]) -> Route:
    """`/metrics`, in the format that the scraper prefers."""

    async def metrics(headers: Mapping[str, str]) -> Answer:
        exposition = await load_exposition()
        body, content_type = exposition.render(await collect(), headers.get("accept", ""))
        return Answer(200, body, content_type)

    return metrics


class WorkerScrape:
    """Answers for all workers together.

    Args:
        workers: The workers, which the supervisor keeps up to date.
        own: The supervisor's own metrics.
    """

    def __init__(self, workers: Sequence[WorkerView], own: Metrics) -> None:
        self.restarts = 0
        self._workers = workers
        self._own = own
        self._retired: Sequence[Sample] = ()

    def routes(self) -> dict[str, Route | PostRoute]:
        """The routes of the supervisor's admin listener."""
        return {
            "/livez": live_route(),
            "/readyz": self._ready,
            "/metrics": metrics_route(self.samples),
            "/policy": self._policy,
            TOP_PATH: self._hot_keys,
            ISSUERS_PATH: self._issuers,
            JWKS_PATH: self._jwks,
            REVOCATIONS_PATH: PostRoute(self._revoke, BODY_BYTES_MAX),
        }

    def retire(self, worker: WorkerView) -> None:
        """A worker has ended: what it had counted stays counted."""
        counted = [sample for sample in worker.samples if _is_counted(sample)]
        worker.samples = ()
        self.restarts += 1
        together = merged([("", self._retired), ("", counted)])
        self._retired = together if len(together) <= RETIRED_SERIES_MAX else ()

    async def samples(self) -> list[Sample]:
        """All workers' samples, the retired ones' counts and the supervisor's own, merged."""
        await asyncio.gather(*(self._refresh(worker) for worker in self._workers if worker.state == "running"))
        parts: list[tuple[str, Sequence[Sample]]] = [(str(worker.index), worker.samples) for worker in self._workers]
        own = [sample for sample in self._own.samples() if ROWS[sample.name].merge is Merge.PER_WORKER]
        return merged([*parts, ("", self._retired), ("supervisor", [*own, *self._about_workers()])])

    def _about_workers(self) -> list[Sample]:
        states = [worker.state for worker in self._workers]
        return [
            Sample("sidecar_worker_restarts_total", (), self.restarts),
            *(Sample("sidecar_workers", (s,), states.count(s)) for s in ("starting", "running", "restarting")),
        ]

    async def _refresh(self, worker: WorkerView) -> None:
        try:
            _, body = await get(UnixAddress(worker.socket_path), SAMPLES_PATH)
            worker.samples = decode_samples(body)
        except (AdminSilentError, msgspec.DecodeError) as error:
            _log.warning("worker_not_scraped", worker=worker.index, error=str(error))

    async def _ready(self, _headers: Mapping[str, str]) -> Answer:
        """Ready when a worker runs and every one that runs is ready: one that is not running is not listening."""
        running = [worker for worker in self._workers if worker.state == "running"]
        found = await asyncio.gather(*(_readiness(worker) for worker in running))
        components = {f"worker-{worker.index}": component for worker, component in zip(running, found, strict=True)}
        answer = ready_answer(components)
        absent = {f"worker-{w.index}": {"ready": False, "state": w.state} for w in self._workers if w not in running}
        document = msgspec.json.decode(answer.body)
        document["components"] |= absent
        return json_answer(document, answer.status)

    async def _hot_keys(self, _headers: Mapping[str, str]) -> Answer:
        """The workers' together; one that does not answer is left out."""
        running = [UnixAddress(worker.socket_path) for worker in self._workers if worker.state == "running"]
        asked = (get_json(address, TOP_PATH) for address in running)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return json_answer(merged_hot_keys(each for each in answers if not isinstance(each, BaseException)))

    async def _policy(self, _headers: Mapping[str, str]) -> Answer:
        return await self._first_answer("/policy")

    async def _issuers(self, _headers: Mapping[str, str]) -> Answer:
        """As one worker knows them: each fetches for itself."""
        return await self._first_answer(ISSUERS_PATH)

    async def _jwks(self, _headers: Mapping[str, str]) -> Answer:
        """The keys of whichever worker answers: all read the same files."""
        answer = await self._first_answer(JWKS_PATH)
        return jwks_answer(msgspec.json.decode(answer.body)) if answer.status == 200 else answer

    async def _revoke(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Done by whichever worker answers, for all of them; where none of them takes orders, it says so."""
        for worker in self._workers:
            with contextlib.suppress(AdminSilentError):
                authorization = headers.get("authorization", "")
                return Answer(*await post(UnixAddress(worker.socket_path), REVOCATIONS_PATH, body, authorization))
        return json_answer({"error": "no worker answers"}, 503)

    async def _first_answer(self, path: str) -> Answer:
        for worker in self._workers:
            with contextlib.suppress(AdminSilentError):
                status, body = await get(UnixAddress(worker.socket_path), path)
                return Answer(status, body)
        return json_answer({"error": "no worker answers"}, 503)


def _is_counted(sample: Sample) -> bool:
    row = ROWS.get(sample.name)
    return row is not None and row.kind is not Kind.GAUGE and row.merge is Merge.SUM


async def _readiness(worker: WorkerView) -> Component:
    try:
        status, body = await get(UnixAddress(worker.socket_path), "/readyz")
        document: Any = msgspec.json.decode(body)
        return Component(status == 200, {"components": document["components"]})
    except (AdminSilentError, msgspec.DecodeError, TypeError, KeyError) as error:
        return Component(False, {"error": str(error)})
