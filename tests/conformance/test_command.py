"""`sidecar conformance ratelimit` as its users run it, against services that are not ours."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree as ET

import grpc
import pytest
import yaml

from sidecar import cli
from sidecar.conformance import command, grpc_target
from sidecar.conformance.cases import FEATURES, MODES, load_kit
from sidecar.conformance.grpc_target import SHOULD_RATE_LIMIT
from sidecar.conformance.judge import Fault
from sidecar.conformance.runner import SystemClock
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest, RateLimitResponse
from tests.support.ratelimit_model import Model

KIT = load_kit()
CONFIGURATIONS = [file for case in KIT for file in case.configurations]


@contextlib.contextmanager
def serving(answer):
    """A gRPC server of grpcio's whose method is `answer`; gives its address."""

    def handle(request, context):
        given = answer(request)
        if isinstance(given, Fault):
            context.abort(grpc.StatusCode[given.code], given.details)
        return given

    method = grpc.unary_unary_rpc_method_handler(
        handle, RateLimitRequest.FromString, RateLimitResponse.SerializeToString
    )
    service, _, name = SHOULD_RATE_LIMIT[1:].rpartition("/")
    server = grpc.server(ThreadPoolExecutor(1))  # one, since the model counts without locks
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: method})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def model(*wrong, features=frozenset(FEATURES) - MODES):
    server = Model(CONFIGURATIONS, features, SystemClock(), frozenset(wrong))
    return lambda request: server.ask([request])[0]


def conformance(capsys, *arguments):
    status = cli.main(["conformance", "ratelimit", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def few(monkeypatch):
    """A kit of two families: the others add time and no question."""
    cases = tuple(case for case in KIT if case.family in {"answers", "shadow_mode"})
    monkeypatch.setattr(command, "load_kit", lambda: cases)
    return cases


def test_a_service_that_conforms(capsys):
    """Every case passes over gRPC, those of modes are skipped and say why, and the status is 0."""
    with serving(model()) as address:
        status, out, err = conformance(capsys, "--target", address, "--features", "all")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    skipped = sum(bool(case.requires & MODES) for case in KIT)
    assert lines[-1] == f"{len(KIT) - skipped} passed, 0 failed, {skipped} skipped"
    assert "skip  shadow_mode/global (the target is not said to have global_shadow_mode)" in lines


def test_a_service_that_does_not(capsys, few):
    """What differs is printed, and the status is 1; the output's end counts."""
    with serving(model("shadow")) as address:
        status, out, _ = conformance(capsys, "--target", address, "--features", "all")
    assert status == 1
    assert "FAIL  shadow_mode/over_is_answered_ok: A limit in shadow mode counts" in out
    assert "step 3: statuses[0].code is OVER_LIMIT, not OK" in out
    assert "loaded what --write-config writes" not in out


def test_a_service_without_the_configuration(capsys, few):
    """Where nothing was loaded the advice is to load it."""
    with serving(lambda _request: RateLimitResponse(overall_code=RateLimitResponse.OK)) as address:
        status, out, _ = conformance(capsys, "--target", address)
    assert status == 1
    assert out.splitlines()[-1].endswith("has the target loaded what --write-config writes?")


def test_a_mode_asks_only_its_own_cases(capsys):
    """In a mode that changes all answers, only the cases about it are asked."""
    with serving(model(features=frozenset({"global_shadow_mode"}))) as address:
        status, out, _ = conformance(capsys, "--target", address, "--features", "global_shadow_mode")
    assert status == 0
    assert out.splitlines()[-1] == f"2 passed, 0 failed, {len(KIT) - 2} skipped"
    assert "skip  hits/peek (the target is in a mode that changes this answer)" in out


def test_json_and_junit_say_the_same(capsys, few):
    """Both formats have each case's outcome, and why it failed."""
    with serving(model("no name", features=frozenset())) as address:
        _, out, _ = conformance(capsys, "--target", address, "--output", "json")
        report = json.loads(out)
        _, out, _ = conformance(capsys, "--target", address, "--output", "junit")
    suite = ET.fromstring(out)
    assert report["summary"] == {
        "passed": len(few) - int(suite.get("failures")) - int(suite.get("skipped")),
        "failed": int(suite.get("failures")),
        "skipped": int(suite.get("skipped")),
    }
    [named] = [case for case in report["cases"] if (case["family"], case["name"]) == ("answers", "name")]
    wrong = "step 1: statuses[0].current_limit is 1/HOUR, not 1/HOUR named 'per-user'"
    assert (named["outcome"], named["differences"]) == ("failed", [wrong])
    [element] = [
        case for case in suite if (case.get("classname"), case.get("name")) == ("conformance.ratelimit.answers", "name")
    ]
    assert element.find("failure").text.startswith(wrong)


def test_nobody_answers(capsys, monkeypatch):
    """The status is 2, and one line says where nobody was."""
    monkeypatch.setattr(grpc_target, "CONNECT_WITHIN_S", 0.2)
    status, out, err = conformance(capsys, "--target", "127.0.0.1:1")
    assert (status, out) == (2, "")
    assert err == "sidecar conformance: no gRPC server at 127.0.0.1:1 within 0.2 s\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "one of --target, --list and --write-config is needed"), (["--list", "--features", "magic"], "magic")],
)
def test_a_wrong_command_line(capsys, arguments, said):
    """The status is 2."""
    status, out, err = conformance(capsys, *arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_the_cases_are_listed(capsys):
    """With what each needs; as text and as JSON."""
    _, out, _ = conformance(capsys, "--list")
    assert len(out.splitlines()) == len(KIT)
    assert "headers/shadow [headers]: A limit in shadow mode is looked at like any other." in out
    _, out, _ = conformance(capsys, "--list", "--output", "json")
    assert [(case["family"], case["name"]) for case in json.loads(out)] == [(case.family, case.name) for case in KIT]


def test_configurations_are_written_for_what_is_asked(capsys, tmp_path):
    """One file for each domain, or several; only of the cases that these features ask."""
    status, _, err = conformance(capsys, "--write-config", tmp_path / "plain")
    plain = [case for case in KIT if not case.requires]
    assert (status, err) == (0, f"{tmp_path / 'plain'}: {len(plain)} files written\n")
    written = [yaml.safe_load(file.read_text()) for file in sorted((tmp_path / "plain").iterdir())]
    assert sorted(file["domain"] for file in written) == sorted(case.domain for case in plain)
    conformance(capsys, "--write-config", tmp_path / "merged", "--features", "merged_domains")
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert {f"conformance.merged_domains.two_files.{number}.yaml" for number in (1, 2)} < names
