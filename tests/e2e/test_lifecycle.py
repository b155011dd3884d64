"""Reloading and ending under load: nothing is lost, nothing is decided by half a policy."""

from __future__ import annotations

import asyncio
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sidecar.demo.httpd import HttpServer, Request, Response
from sidecar.demo.processes import wait_until
from tests.support.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sidecar.demo.client import Client
    from sidecar.demo.issuer import DemoIssuer
    from sidecar.demo.stack import Sidecar
    from tests.support.gateway import Gateway, Lab

RELOADS = 6
IN_FLIGHT = 16
BAD_POLICY = "rules: [{name: half\n"


def generation(sidecar: Sidecar) -> float:
    """The policy's, as the worker knows it that is furthest behind."""
    return metric(sidecar, "sidecar_policy_generation")


def metric(sidecar: Sidecar, name: str) -> float:
    reply = sidecar.admin("/metrics")
    found = re.search(rf"^{name} (\S+)$", reply.body.decode(), re.MULTILINE) if reply is not None else None
    return float(found.group(1)) if found else 0.0


def replace_file(path: Path, text: str) -> None:
    """As an editor or a deployment does it: a new file is renamed over the old one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def config_map(directory: Path, name: str, text: str) -> None:
    """As Kubernetes does it: the file is a link through `..data`, which is swapped for another directory."""
    versions = [int(entry.name.removeprefix("..v")) for entry in directory.glob("..v*")]
    version = directory / f"..v{max(versions, default=0) + 1}"
    version.mkdir()
    (version / name).write_text(text)
    link = directory / "..data_tmp"
    link.symlink_to(version.name)
    link.replace(directory / "..data")
    if not (directory / name).is_symlink():
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(f"..data/{name}")


class Expecting:
    """Sends requests whose answers no reload may change, and counts each as right or as what it was instead."""

    def __init__(self, gateway: Gateway, issuer: DemoIssuer) -> None:
        good = [("authorization", f"Bearer {issuer.token()}")]
        stale = [("authorization", f"Bearer {issuer.token(expires_in_s=-300)}")]
        self._cases: list[tuple[str, str, list[tuple[str, str]], int]] = [
            ("GET", "/orders/1", good, 200),
            ("GET", "/orders/1", [], 401),
            ("GET", "/orders/1", stale, 401),
            ("PUT", "/orders/1", good, 403),
            ("GET", "/nowhere", good, 403),
        ]
        self.clients: list[Client] = [gateway.client("open") for _ in self._cases]

    def __call__(self, number: int) -> object:
        method, target, headers, expected = self._cases[number]
        status = self.clients[number].request(method, target, headers).status
        return "right" if status == expected else f"{method} {target}: {status}, not {expected}"

    def load(self) -> Load:
        return Load(self, threads=len(self.clients))

    def close(self) -> None:
        for client in self.clients:
            client.close()


@pytest.mark.parametrize(("swap", "workers"), [("rename", 1), ("config_map", 2)])
def test_reload_under_load_loses_and_changes_nothing(lab: Lab, issuer: DemoIssuer, swap: str, workers: int) -> None:
    """While the policy is replaced again and again, once by a bad file, answers stay right; each good one serves."""

    def change(document: dict[str, Any]) -> None:
        document["server"]["workers"] = workers
        document["limits"]["per-user"]["rate"] = "1000000/minute"

    sidecar = lab.sidecar(change)
    gateway = lab.gateway(sidecar)
    document: dict[str, Any] = yaml.safe_load(sidecar.policy_file.read_text())
    write: Callable[[str], None] = (
        (lambda text: replace_file(sidecar.policy_file, text))
        if swap == "rename"
        else (lambda text: config_map(sidecar.directory, sidecar.policy_file.name, text))
    )
    rules = document["rules"]
    extra = {"match": {"path": {"exact": "/new"}}, "anonymous": True}
    expecting = Expecting(gateway, issuer)
    lab.stack.callback(expecting.close)
    with expecting.load() as load:
        load.wait_more(50)
        for number in range(RELOADS):
            before = generation(sidecar)
            if number == RELOADS // 2:
                write(BAD_POLICY)
                wait_until(lambda: metric(sidecar, 'sidecar_policy_reloads_total{result="refused"}') >= 1, "a refusal")
                assert generation(sidecar) == before
                assert sidecar.ready()
            document["rules"] = [*rules, {"name": f"new-{number}", **extra}]
            write(yaml.safe_dump(document))
            wait_until(lambda before=before: generation(sidecar) > before, "a new generation")
            assert gateway.get("open", "/new").status == 200
            load.wait_more(50)
    assert set(load.results) == {"right"}


def test_limits_outlive_a_reload(lab: Lab, issuer: DemoIssuer) -> None:
    """What was counted before a reload counts after it."""
    sidecar = lab.sidecar()
    gateway = lab.gateway(sidecar)
    token = issuer.token()
    assert [gateway.get("closed", "/search", token).status for _ in range(3)] == [200] * 3
    before = generation(sidecar)
    replace_file(sidecar.policy_file, sidecar.policy_file.read_text() + "\n# changed\n")
    wait_until(lambda: generation(sidecar) > before, "a new generation")
    assert gateway.get("closed", "/search", token).status == 429


def test_sighup_reloads(lab: Lab) -> None:
    """SIGHUP reads the file again, whether or not it changed."""
    sidecar = lab.sidecar()
    before = generation(sidecar)
    sidecar.child.signal(signal.SIGHUP)
    wait_until(lambda: generation(sidecar) > before, "a new generation")


@pytest.mark.parametrize("server", [{}, {"engine": "grpcio"}, {"workers": 2}], ids=["http2", "grpcio", "workers"])
def test_sigterm_finishes_what_is_in_flight(lab: Lab, issuer: DemoIssuer, server: dict[str, object]) -> None:
    """Checks that wait for keys when SIGTERM comes are answered by Sidecar, none is dropped; it ends with status 0."""

    async def hang(_request: Request) -> Response:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    keys = HttpServer(hang).start()
    lab.stack.callback(keys.stop)

    def change(document: dict[str, Any]) -> None:
        document["server"].update(server, check_timeout="2s")
        document["issuers"]["demo"]["keys"] = {"jwks_url": f"http://127.0.0.1:{keys.port}/keys"}
        document["issuers"]["demo"]["required"] = False

    sidecar = lab.sidecar(change)
    gateway = lab.gateway(sidecar)

    def send(number: int) -> tuple[int, str]:
        reply = gateway.get("patient-open", "/orders/1", issuer.token({"sub": f"user-{number}"}))
        return reply.status, reply.header("content-type")

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        replies = [pool.submit(send, number) for number in range(IN_FLIGHT)]
        wait_until(lambda: metric(sidecar, "sidecar_calls_in_flight") >= IN_FLIGHT, "all Checks are in flight")
        sidecar.child.signal(signal.SIGTERM)
        answers = {reply.result() for reply in replies}
    assert answers == {(503, "application/problem+json")}
    assert sidecar.child.wait() == 0
