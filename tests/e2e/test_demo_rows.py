"""Every row of the demo, through the oldest and the newest Envoy, whatever Envoy does on errors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sidecar.demo.processes import wait_until
from sidecar.demo.scenarios import scenarios
from tests.support.gateway import BOTH_MODES, Gateway, Lab

if TYPE_CHECKING:
    from sidecar.demo.issuer import DemoIssuer


@pytest.mark.parametrize("listener", BOTH_MODES)
def test_each_row_comes_out_as_it_must(gateway: Gateway, issuer: DemoIssuer, listener: str) -> None:
    """Status, reason, challenge, limit headers and the upstream's view are right for each scenario."""
    rows = scenarios(issuer, subject=f"{listener}-{gateway.version}")
    with gateway.client(listener) as client:
        wrong = [f"{row.title}: {line}" for row in rows for line in row.differences(row.send(client))]
    assert wrong == []


@pytest.mark.parametrize("server", [{"engine": "grpcio"}, {"workers": 2}], ids=["grpcio", "workers"])
def test_each_row_comes_out_as_it_must_however_it_is_served(
    lab: Lab, issuer: DemoIssuer, server: dict[str, object]
) -> None:
    """Neither the other engine nor several processes change an answer."""
    gateway = lab.gateway(lab.sidecar(lambda document: document["server"].update(server)))
    with gateway.client("open") as client:
        wrong = [f"{row.title}: {line}" for row in scenarios(issuer) for line in row.differences(row.send(client))]
    assert wrong == []


def test_one_subjects_reports_do_not_use_up_anothers(gateway: Gateway, issuer: DemoIssuer) -> None:
    """Envoy's ratelimit filter counts per subject, which it knows from ext_authz's dynamic metadata alone."""
    statuses = {}
    for name in ("carol", "dave"):
        token = issuer.token({"sub": f"{name}-{gateway.version}"})
        statuses[name] = [gateway.get("closed", "/reports/q1", token).status for _ in range(3)]
    assert statuses == {"carol": [200, 200, 429], "dave": [200, 200, 429]}


def test_access_log_knows_subject_and_rule(gateway: Gateway, issuer: DemoIssuer) -> None:
    """Allowed and denied requests both carry what was decided into Envoy's access log."""
    allowed, denied = "/orders/logged-allowed", "/orders/logged-denied"
    gateway.get("logged", allowed, issuer.token({"sub": "erin"}))
    gateway.get("logged", denied, issuer.token({"sub": "erin", "scope": "none"}))
    lines: dict[str, dict[str, object]] = {}

    def both_logged() -> bool:
        for line in gateway.access_log.read_text().splitlines() if gateway.access_log.exists() else []:
            entry = json.loads(line)
            lines[entry["path"]] = entry
        return {allowed, denied} <= lines.keys()

    wait_until(both_logged, "both requests are in the access log")
    assert (lines[allowed]["subject"], lines[allowed]["rule"]) == ("erin", "read-order")
    assert (lines[denied]["subject"], lines[denied]["rule"]) == ("erin", "read-order")
    assert lines[denied]["status"] == 403
