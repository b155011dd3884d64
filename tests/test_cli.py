"""The commands as their users run them: exit status, where what is printed, and no traceback whatever is asked."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sidecar import cli, explain
from tests.support.deciding import KEY, check_request, compiled, token
from tests.support.issuer import Issuer
from tests.support.tokens import AUDIENCE, ISSUER

FAULTY = "rules:\n  - {name: a, match: {path: {prefix: /}}}\nlimit: {}\n"


@pytest.fixture(scope="module")
def policy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policy")
    compiled(directory)
    return directory / "policy.yaml"


def sidecar(*arguments: object, stdin: bytes = b"", environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "sidecar", *map(str, arguments)]
    done = subprocess.run(
        command, input=stdin, capture_output=True, check=False, timeout=30, env={"PATH": "", **(environment or {})}
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def explained(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """What `explain --output json` prints, in this process."""
    assert cli.main(["explain", *map(str, arguments), "--output", "json"]) == 0
    explanation: dict[str, Any] = json.loads(capsys.readouterr().out)
    return explanation


@pytest.mark.parametrize("command", [[], ["serve"], ["check"], ["schema"], ["explain"], ["conformance"]])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    """`--help` prints usage and exits with 0."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: sidecar")


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["serve"], ["check"], ["explain"], ["serve", "--config"], ["check", "a", "b"], ["conformance", "x"]],
)
def test_a_wrong_command_line_is_status_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """The usage goes to standard error."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: sidecar" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints it."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"sidecar {cli.sidecar.__version__}\n"


def test_check_praises_a_good_policy(capsys: pytest.CaptureFixture[str], policy_file: Path) -> None:
    """Status 0, and what is in it."""
    assert cli.main(["check", str(policy_file)]) == 0
    assert capsys.readouterr().out == f"{policy_file}: good (11 rules, 2 issuers, 0 domains)\n"


def test_check_prints_every_fault(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Status 1; one line for each fault: file, line, place, what is wrong; what is accepted."""
    path = tmp_path / "faulty.yaml"
    path.write_text(FAULTY)
    assert cli.main(["check", str(path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    first, second = printed.err.splitlines()
    assert first.startswith(f"{path}:2: rules[0]: neither authenticate nor anonymous is given; ")
    assert second.startswith(f"{path}:3: limit: unknown key 'limit'; did you mean 'limits'?")


@pytest.mark.parametrize("command", [["check"], ["serve", "--config"], ["explain"]])
@pytest.mark.parametrize("written", [None, b"", b"\xff\xfe\x00", b"[" * 5000, b"a: &a [*a]", b"\x00", b"- " * 5000])
def test_nonsense_is_a_fault_with_its_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str], written: bytes | None
) -> None:
    """A file that is not there, or not a policy, is named; status 1, no traceback."""
    path = tmp_path / "nonsense.yaml"
    if written is not None:
        path.write_bytes(written)
    assert cli.main([*command, str(path)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"{path}:")
    assert printed.out == ""


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0, a JSON Schema with every section."""
    assert cli.main(["schema"]) == 0
    assert {"rules", "issuers", "limits"} <= json.loads(capsys.readouterr().out)["properties"].keys()


def test_explain_tells_an_allowed_request_from_its_flags(capsys: pytest.CaptureFixture[str], policy_file: Path) -> None:
    """Each step, the record for the audit log, and the answer for Envoy; nothing of the token."""
    credential = token()
    arguments = ("--host", "API.example.com:8080", "--path", "/orders/7?x=1", "--source", "192.0.2.9")
    told = explained(capsys, policy_file, *arguments, "--header", f"Authorization: Bearer {credential}")
    assert {step["step"]: step["found"] for step in told["steps"]} == {
        "request": "GET api.example.com /orders/7",
        "match": "rule 'read-order', {'id': '7'}",
        "authenticate": "subject 'alice' of issuer 'main'",
        "authorize": "holds (scopes named: orders:read)",
        "limit": "none",
        "decision": "allowed",
    }
    assert told["decision"]["source_address"] == "192.0.2.9"
    headers = {
        option["header"]["key"]: option["header"]["value"] for option in told["answer"]["ok_response"]["headers"]
    }
    assert headers == {"x-user-id": "alice", "x-user-scopes": "orders:read orders:write", "x-order": "7"}
    assert credential.split(".")[2] not in json.dumps(told)


@pytest.mark.parametrize(
    ("arguments", "last_step", "reason"),
    [
        (["--host", ""], "match", "request_malformed"),
        (["--method", "post"], "match", "request_malformed"),
        (["--path", "//x"], "match", "path_ambiguous"),
        (["--path", "/other"], "match", "no_rule"),
        (["--path", ""], "request", "request_undecodable"),
        (["--path", "/orders/1"], "authenticate", "credential_missing"),
        (["--path", "/orders/1", "--header", "authorization:Bearer x"], "authenticate", "token_malformed"),
        (["--path", "/orders/1", "--header", "no-colon"], "authenticate", "credential_missing"),
        (
            ["--path", "/orders/1", "--header", "authorization:Bearer x", "--header", "Authorization:Bearer y"],
            "authenticate",
            "credential_repeated",
        ),
    ],
)
def test_explain_names_the_step_that_denies(
    capsys: pytest.CaptureFixture[str], policy_file: Path, arguments: list[str], last_step: str, reason: str
) -> None:
    """A denial is explained with status 0: it is the answer to the question."""
    told = explained(capsys, policy_file, *arguments)
    *_, step, outcome = told["steps"]
    assert step["step"] == last_step
    assert step["found"].startswith(f"denied, {reason}")
    assert outcome["found"].startswith("denied with ")
    assert told["decision"]["reason"] == reason


def test_explain_counts_limits_from_zero(capsys: pytest.CaptureFixture[str], policy_file: Path) -> None:
    """Looking takes nothing: the same question has the same answer."""
    for _ in range(2):
        told = explained(capsys, policy_file, "--path", "/tight", "--header", f"authorization: Bearer {token()}")
        assert {"step": "limit", "found": "'tight': 1 of 2 in 86400 s used"} in told["steps"]


LIMITS = """
redis: {url: embedded}
limits:
  a: {rate: 9/day, plans: {by: {header: x-plan}, rates: {gold: 20/hour}}, cost: {header: x-cost}, key: {constant: a}}
  b: {rate: {requests: 3}, algorithm: concurrency, reserve: {hold: 90s}, key: {constant: b}, warn_at: 1}
  c: {rate: {requests: 0, calendar: month, time_zone: Asia/Tokyo}, shadow: true, key: {constant: c}}
  d: {rate: 0/second, key: {constant: d}}
rules:
  - {name: r, match: {path: {exact: /}}, anonymous: true, limits: [a, b, c]}
  - {name: s, match: {path: {exact: /s}}, anonymous: true, limits: [d]}
"""


def test_explain_tells_what_limits_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Plan, cost, hold, calendar, shadow, threshold; and a cost that is none."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(LIMITS)
    told = explained(capsys, policy, "--path", "/", "--header", "x-plan: gold", "--header", "x-cost: 4")
    assert [step["found"] for step in told["steps"] if step["step"] == "limit"] == [
        "'a', plan 'gold': 4 of 20 in 3600 s used, cost 4",
        "'b': 1 of 3 under way, held for 90 s at most, above its soft threshold",
        "'c': 0 of 0 in this month of Asia/Tokyo used, a shadow that would have denied",
    ]
    assert told["answer"]["dynamic_metadata"]["reservation"]
    told = explained(capsys, policy, "--path", "/s")
    assert {"step": "limit", "found": "'d': 0 of 0 in 1 s used, exceeded"} in told["steps"]
    told = explained(capsys, policy, "--path", "/")
    assert told["steps"][-2]["found"].startswith("denied, cost_malformed: the cost for limit 'a' is not a whole number")


def test_explain_keeps_no_keys(tmp_path: Path) -> None:
    """Looking changes nothing: a file of kept keys would be of whoever looks, and serving could not read it."""
    policy = tmp_path / "policy.yaml"

    async def explained_with_an_issuer() -> explain.Explanation:
        async with Issuer(KEY) as issuer:
            policy.write_text(
                f"issuers: {{main: {{issuer: {ISSUER}, audiences: [{AUDIENCE}], algorithms: [ES256], "
                f"keys_persist: kept.json, insecure_http: true, keys: {{jwks_url: {issuer.url}/jwks}}}}}}\n"
                "rules: [{name: all, match: {path: {prefix: /}}, authenticate: {issuers: [main]}}]\n"
            )
            return await asyncio.to_thread(explain.explain, policy, check_request("/", token()))

    assert asyncio.run(explained_with_an_issuer()).record["decision"] == "allowed"
    assert [each.name for each in tmp_path.iterdir()] == ["policy.yaml"]


def test_explain_reads_a_request_from_standard_input(policy_file: Path) -> None:
    """`--json`; for people, steps stand in columns and the answer below them."""
    described = {
        "path": "/orders/1",
        "headers": [["Authorization", f"Bearer {token()}"]],
        "host": "h",
        "method": "HEAD",
    }
    status, out, err = sidecar("explain", policy_file, "--json", stdin=json.dumps(described).encode())
    assert (status, err) == (0, "")
    assert out.startswith("request       HEAD h /orders/1\nmatch         rule 'read-order', {'id': '1'}\n")
    assert "\ndecision      allowed\n\nEnvoy is told:\n{\n" in out


@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        b"nonsense",
        b"[]",
        b'"x"',
        b"null",
        b'{"path": 1}',
        b'{"path": null}',
        b'{"path": "\xff"}',
        b'{"host": "\\ud800"}',
        b'{"method": ["GET"]}',
        b'{"verb": "GET"}',
        b'{"headers": null}',
        b'{"headers": 5}',
        b'{"headers": ["abc"]}',
        b'{"headers": [["a", 1]]}',
        b'{"headers": {"a": null}}',
        b"[" * 100_000,
        b'{"headers":' * 100_000,
    ],
)
def test_a_request_that_cannot_be_read_is_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, policy_file: Path, stdin: bytes
) -> None:
    """One line that says what is accepted; no traceback."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    assert cli.main(["explain", str(policy_file), "--json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sidecar explain: ")
    assert len(line) < 200


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_no_traceback_whatever_the_terminals_encoding(policy_file: Path, encoding: str) -> None:
    """Bytes that are no text are refused, and text is written so that any terminal takes it."""
    environment = {"PYTHONIOENCODING": encoding}
    status, out, err = sidecar("explain", policy_file, "--json", stdin=b'{"path": "\xff"}', environment=environment)
    assert (status, out, err.count("\n")) == (2, "", 1)
    described = json.dumps({"path": "/orders/\u00e9", "host": "h\u00e9"}).encode()
    status, out, err = sidecar("explain", policy_file, "--json", stdin=described, environment=environment)
    assert (status, err) == (0, "")
    faulty = policy_file.with_name("n\u00e9.yaml")
    faulty.write_text("r\u00e9gles: 1\n")
    status, _, err = sidecar("check", faulty, environment=environment)
    assert status == 1
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    """`sidecar schema | head` ends without a word."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "sidecar", "schema"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=30)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("command", [["check"], ["serve", "--config"]])
def test_a_file_that_is_no_certificate_is_named(tmp_path: Path, command: list[str]) -> None:
    """Checking and serving refuse it alike: one line with the file, its key and what is accepted; status 1."""
    (tmp_path / "ca.pem").write_text("nonsense")
    path = tmp_path / "policy.yaml"
    path.write_text(
        "redis: {url: 'rediss://127.0.0.1:1', tls: {ca: ca.pem}}\n"
        "server: {listen: '127.0.0.1:0'}\nadmin: {listen: '127.0.0.1:0'}\n"
        "rules: [{name: a, match: {path: {prefix: /}}, anonymous: true}]\n"
    )
    status, out, err = sidecar(*command, path)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"{path}:1: redis.tls.ca: the file {tmp_path / 'ca.pem'} holds no certificates")
    assert err.endswith("; a PEM file of certificates\n")


def test_a_described_request_is_what_envoy_sends() -> None:
    """Names in lower case, repeated headers merged with a comma, as Envoy does."""
    headers = [["A", "1"], ["b", " 2 "], ["a", "3"]]
    described = {"host": "api.example.com", "path": "/x", "method": "PUT", "headers": headers, "source": "192.0.2.7"}
    sent = explain.ext_authz.decode(explain.described_request(described))
    expected = explain.ext_authz.decode(check_request("/x", method="PUT", headers=[("a", "1,3"), ("b", "2")]))
    assert not isinstance(sent, explain.DenyReason)
    assert not isinstance(expected, explain.DenyReason)
    assert (sent.method, sent.host, sent.path, sent.source_address) == ("PUT", "api.example.com", "/x", "192.0.2.7")
    assert dict(sent.headers) == dict(expected.headers)
