"""`sidecar keys`, and what running sidecars of two workers make of the keys, on a real Valkey and with a file."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest

from sidecar.check import CHECK
from sidecar.cli import main
from sidecar.demo.processes import free_port, wait_until
from sidecar.edges import api_key_store
from sidecar.envoy.pb.ext_authz_pb2 import CheckResponse
from tests.support.api_keys import id_of, new_key
from tests.support.deciding import check_request
from tests.support.valkey import ValkeyProcess

POLICY = """
server: {{listen: "unix:{directory}/grpc.sock", workers: 2}}
admin: {{listen: "127.0.0.1:{admin}"}}
redis: {{url: "{redis}"}}
api_keys:
  partners: {{prefix: acme, environment: live, pepper_file: pepper, foreign_keys: true}}
  filed: {{prefix: filed, pepper_file: pepper, file: keys.yaml}}
limits:
  per-key: {{rate: 2/day, key: {{claim: key_id}}}}
rules:
  - name: keyed
    match: {{path: {{prefix: /}}}}
    authenticate: {{any_of: [{{api_key: {{keyrings: [partners, filed]}}}}]}}
    upstream: {{headers: {{x-user: {{claim: sub}}}}}}
  - name: scoped
    match: {{path: {{prefix: /scoped}}}}
    authenticate: {{any_of: [{{api_key: {{keyrings: [partners]}}}}]}}
    authorize: {{scope: "orders:read"}}
  - name: limited
    match: {{path: {{prefix: /limited}}}}
    authenticate: {{any_of: [{{api_key: {{keyrings: [partners]}}}}]}}
    limits: [per-key]
audit: {{destination: none}}
"""
QUOTA_EXCEEDED = "//iana.org/assignments/http-problem-types#quota-exceeded"
PEPPER = "1: " + "b25l" * 11 + "\n"


@dataclass
class Served:
    """A sidecar that serves a policy, and what is asked of it and done to its keys."""

    policy: Path
    capture: pytest.CaptureFixture[str]

    @property
    def admin(self) -> str:
        return self.policy.read_text().split("127.0.0.1:")[1].split('"')[0]

    def ask(self, key: str, path: str = "/", channel: grpc.Channel | None = None, **request: Any) -> CheckResponse:
        message = check_request(path, headers=[("x-api-key", key)], **request)
        with grpc.insecure_channel(f"unix:{self.policy.parent}/grpc.sock") if channel is None else channel as own:
            ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = own.unary_unary(CHECK)
            return CheckResponse.FromString(ask(message, timeout=5))

    def reason(self, key: str, path: str = "/", **request: Any) -> str:
        """The reason for the denial, "" for none."""
        answer = self.ask(key, path, **request)
        if answer.status.code == 0:
            return ""
        body = json.loads(answer.denied_response.body)
        return str(body["type"].rpartition(":")[2])

    def run(self, action: str, *arguments: str, keyring: str = "partners", status: int = 0) -> str:
        """What the command prints on standard output; on standard error where it fails."""
        command = ["keys", action, "--config", str(self.policy), "--keyring", keyring, *arguments]
        assert main(command) == status
        printed = self.capture.readouterr()
        return printed.err if status else printed.out

    def json(self, action: str, *arguments: str, keyring: str = "partners") -> Any:
        return json.loads(self.run(action, "--output", "json", *arguments, keyring=keyring))

    def create(self, *arguments: str, keyring: str = "partners", owner: str = "ann") -> str:
        return self.run("create", "--owner", owner, *arguments, keyring=keyring).strip()


@contextmanager
def serving(directory: Path, redis_url: str, workers: int = 2) -> Iterator[Path]:
    path = directory / "policy.yaml"
    (directory / "pepper").write_text(PEPPER)
    (directory / "keys.yaml").write_text("keys: []\n")
    written = POLICY.format(directory=directory, admin=free_port(), redis=redis_url)
    path.write_text(written.replace("workers: 2", f"workers: {workers}"))
    process = subprocess.Popen([sys.executable, "-m", "sidecar", "serve", "--config", str(path)])
    try:
        wait_until((directory / "grpc.sock").exists, "the sidecar listens")
        yield path
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    server = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyProcess) -> Iterator[Path]:
    """Served by a process of its own."""
    with serving(tmp_path_factory.mktemp("keys"), valkey.url) as path:
        yield path


@pytest.fixture
def served(policy: Path, capsys: pytest.CaptureFixture[str]) -> Served:
    found = Served(policy, capsys)
    wait_until(lambda: found.reason(new_key()) == "api_key_invalid", "Redis is connected")
    return found


def test_a_key_that_is_made_is_accepted_until_it_is_revoked(served: Served) -> None:
    """By all workers; the upstream is told whose it is; nobody can read the key again."""
    key = served.create("--scopes", "orders:read,orders:write", "--tier", "gold")
    answers = [served.ask(key) for _ in range(8)]
    assert {answer.status.code for answer in answers} == {0}
    headers = {each.header.key: each.header.value for each in answers[0].ok_response.headers}
    assert headers["x-user"] == "ann"
    assert "x-api-key" in answers[0].ok_response.headers_to_remove
    shown = served.run("show", id_of(key)) + served.run("list") + json.dumps(served.json("show", id_of(key)))
    assert "orders:write" in shown
    assert key not in shown
    assert key.rsplit("_", 1)[1] not in shown
    assert "hash" not in shown

    assert "revoked" in served.run("revoke", id_of(key))
    wait_until(lambda: {served.reason(key) for _ in range(8)} == {"api_key_revoked"}, "all workers have heard")
    assert served.json("show", id_of(key))["state"] == "revoked"
    assert "was revoked before" in served.run("revoke", id_of(key))


def test_scopes_and_limits_come_from_the_key(served: Served) -> None:
    """Two keys of one owner are counted apart; one without the scope may not."""
    first, second = served.create(), served.create("--scopes", "orders:read")
    assert served.reason(first, "/scoped") == "scope_insufficient"
    assert served.reason(second, "/scoped") == ""
    assert [served.reason(first, "/limited") for _ in range(3)] == [
        "",
        "",
        QUOTA_EXCEEDED,
    ]
    assert served.reason(second, "/limited") == ""


def test_unknown_wrong_and_malformed_keys_are_refused(served: Served) -> None:
    """With 401 and a challenge of the scheme; unknown and wrong in the very same words."""
    key = served.create()
    unknown, wrong, malformed = (served.ask(each) for each in (new_key(), new_key(key_id=id_of(key)), "garbage"))
    for answer in (unknown, wrong, malformed):
        assert answer.denied_response.status.code == 401
        headers = {each.header.key: each.header.value for each in answer.denied_response.headers}
        assert headers["www-authenticate"].startswith("ApiKey ")
    bodies = [json.loads(answer.denied_response.body) for answer in (unknown, wrong)]
    assert bodies[0] == bodies[1]
    assert served.reason("garbage") == "api_key_malformed"


def test_a_key_is_for_what_it_was_made_for(served: Served) -> None:
    """Networks, hosts and methods."""
    key = served.create("--networks", "192.0.2.0/24", "--hosts", "api.example.com", "--methods", "GET,HEAD")
    assert served.reason(key) == ""
    assert served.reason(key, method="POST") == "api_key_not_allowed_here"
    assert served.reason(key, host="www.example.com") == "api_key_not_allowed_here"
    assert served.reason(served.create("--networks", "198.51.100.0/24")) == "api_key_not_allowed_here"
    assert served.reason(served.create("--not-before", "1h")) == "api_key_not_yet_valid"


def test_two_secrets_overlap_when_a_key_is_rotated(served: Served) -> None:
    """Both are accepted, uses of the old one are counted; without an overlap it is refused within a second."""
    old = served.create("--expires", "30d")
    assert served.reason(old) == ""
    new = served.run("rotate", id_of(old), "--overlap", "1h").strip()
    assert id_of(new) == id_of(old)
    wait_until(lambda: {served.reason(new) for _ in range(4)} == {""}, "the new secret is accepted")
    assert {served.reason(old) for _ in range(4)} == {""}
    assert "previous_secret_until" in served.json("show", id_of(old))
    newest = served.run("rotate", id_of(old), "--overlap", "0s").strip()
    wait_until(lambda: {served.reason(newest) for _ in range(4)} == {""}, "the newest secret is accepted")
    wait_until(lambda: {served.reason(new) for _ in range(4)} == {"api_key_invalid"}, "the old is refused")


def test_keys_are_imported_by_text_by_digest_and_by_hash(served: Served, tmp_path: Path) -> None:
    """Also such as were made elsewhere; importing again changes nothing."""
    ours, foreign, digested = new_key(), "legacy-0123456789-abcdefghijk", "another-legacy-0123456789"
    lines = [
        {"key": ours, "owner": "ours"},
        {"key": foreign, "owner": "foreign", "expires_at": None, "scopes": ["orders:read"]},
        {"sha256": sha256(digested.encode()).hexdigest(), "owner": "digested"},
    ]
    path = tmp_path / "keys.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert served.run("import", str(path)) == "3 keys imported\n"
    assert {served.reason(key) for key in (ours, foreign, digested)} == {""}
    assert len(served.json("import", str(path))["taken"]) == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: "),
        ('{"owner": "a"}', "line 1: exactly one of key, sha256 and hash"),
        ('{"key": "short-secret-1", "owner": "a"}', "line 1: key: it is not 20 to 256"),
        ('{"key": "a long enough text", "owner": "a"}', "line 1: key: it is not 20 to 256"),
        ('{"sha256": "short-secret-1", "owner": "a"}', "line 1: sha256: it is not 64"),
        ('{"hash": "9:00", "id": "aaaaaaaaaaaa", "owner": "a"}', "line 1: its hash is under a pepper"),
        ('{"key": "short-secret-1-2-3-4-5-6", "owner": "a", "networks": ["x"]}', "line 1: networks: 'x'"),
        ('{"key": "short-secret-1-2-3-4-5-6", "owner": "a", "status": "gone"}', "line 1: Invalid enum value 'gone'"),
        ('{"key": "short-secret-1-2-3-4-5-6", "owner": ""}', "line 1: owner: it is empty"),
    ],
)
def test_a_line_that_cannot_be_imported_is_said(
    served: Served, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    """With its number and without the key; nothing is imported."""
    standard_input = io.TextIOWrapper(io.BytesIO(f"{line}\n".encode()))
    monkeypatch.setattr(sys, "stdin", standard_input)
    printed = served.run("import", "-", status=2)
    assert said in printed
    assert "short-secret" not in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "zzzzzzzzzzzz"), "has no key zzzzzzzzzzzz"),
        (("show", "not-an-id"), "a key is named by its id"),
        (("create", "--owner", ""), "owner: it is empty"),
        (("create", "--owner", "a", "--expires", "soon"), "--expires: 'soon' is neither"),
        (("create", "--owner", "a", "--expires", "2020-01-01"), "--expires: '2020-01-01' is not in the future"),
        (("create", "--owner", "a", "--expires", "1h", "--not-before", "2h"), "--expires: it is not after"),
        (("create", "--owner", "a", "--networks", "192.0.2.1/24"), "networks: '192.0.2.1/24' is not a network"),
        (("create", "--owner", "a", "--metadata", "x"), "--metadata: 'x' is not NAME=VALUE"),
        (("rotate", "zzzzzzzzzzzz", "--overlap", "long"), "has no key"),
        (("prune", "--older-than", "long"), "--older-than: 'long' is not a duration"),
    ],
)
def test_what_cannot_be_done_is_said(served: Served, arguments: tuple[str, ...], said: str) -> None:
    """With what can; exit status 2."""
    assert said in served.run(*arguments, status=2)


def test_a_whole_key_as_an_argument_is_not_repeated(served: Served) -> None:
    """It would be in the terminal and in logs."""
    key = new_key()
    assert key not in served.run("show", key, status=2)


def test_expired_and_revoked_keys_are_pruned(served: Served) -> None:
    """When they have been so for the time that is stated; the others stay."""
    kept, dead = served.create(owner="pruned"), served.create(owner="pruned")
    served.run("revoke", id_of(dead))
    assert id_of(dead) not in served.json("prune", "--older-than", "1h")["pruned"]
    assert id_of(dead) in served.json("prune", "--older-than", "0s")["pruned"]
    assert [each["id"] for each in served.json("list", "--owner", "pruned")] == [id_of(kept)]


def test_a_list_is_cut_and_says_so(served: Served) -> None:
    """On standard error, so that programs see keys alone."""
    for _ in range(2):
        served.create(owner="many")
    assert main(["keys", "list", "--config", str(served.policy), "--keyring", "partners", "--count", "1"]) == 0
    printed = served.capture.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert "more keys; --count shows them" in printed.err


def test_the_key_is_on_standard_output_alone(served: Served) -> None:
    """Text: nothing else is there; what is known of it is on standard error."""
    arguments = ["--config", str(served.policy), "--keyring", "partners", "--owner", "ann", "--created-by", "ops"]
    assert main(["keys", "create", *arguments]) == 0
    printed = served.capture.readouterr()
    key = printed.out.strip()
    assert printed.out == f"{key}\n"
    assert key not in printed.err
    assert id_of(key) in printed.err
    assert served.json("show", id_of(key))["created_by"] == "ops"


def test_keys_in_a_file_are_served_and_changed(served: Served) -> None:
    """The sidecar reads the file again; the file keeps its mode, and what people would see in Git is one line a key."""
    file = served.policy.parent / "keys.yaml"
    file.chmod(0o640)
    key, other = (served.create(keyring="filed", owner=owner) for owner in ("ann", "bob"))
    wait_until(lambda: {served.reason(key) for _ in range(4)} == {""}, "the file is read again")
    assert len(file.read_text().splitlines()) == 3
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in file.parent.iterdir() if "keys" in path.name) == ["keys.yaml"]
    served.run("revoke", id_of(key), keyring="filed")
    wait_until(lambda: {served.reason(key) for _ in range(4)} == {"api_key_revoked"}, "the file is read again")
    assert served.reason(other) == ""
    assert served.json("prune", "--older-than", "0s", keyring="filed")["pruned"] == [id_of(key)]
    assert [each["id"] for each in served.json("list", keyring="filed")] == [id_of(other)]


def test_metrics_count_what_became_of_keys(served: Served) -> None:
    """By keyring and result, and by nothing that a caller chooses."""
    served.reason(served.create())
    with urllib.request.urlopen(f"http://127.0.0.1:{served.admin}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    assert 'sidecar_api_keys_total{keyring="partners",result="accepted"}' in text
    assert 'sidecar_api_key_look_ups_total{keyring="partners",outcome="found"}' in text


def test_a_new_pepper_hashes_new_keys_and_the_old_one_proves(served: Served) -> None:
    """Without a restart: the file is read again."""
    old = served.create()
    assert served.reason(old) == ""
    with (served.policy.parent / "pepper").open("a") as file:
        file.write("2: " + "dHdv" * 11 + "\n")
    new = served.create()
    assert (served.json("show", id_of(old))["pepper"], served.json("show", id_of(new))["pepper"]) == (1, 2)
    wait_until(lambda: {served.reason(new) for _ in range(8)} == {""}, "the sidecars have read the file")
    assert {served.reason(old) for _ in range(8)} == {""}


def test_without_redis_what_is_known_is_used_and_the_rest_is_unavailable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And when it is back, everything is as before."""
    server = ValkeyProcess(tmp_path / "valkey", ["--save", "", "--appendonly", "no"])
    server.start()
    try:
        directory = tmp_path / "sidecar"
        directory.mkdir()
        with serving(directory, server.url, workers=1) as path:
            found = Served(path, capsys)
            wait_until(lambda: found.reason(new_key()) == "api_key_invalid", "Redis is connected")
            warm, cold = found.create(), found.create()
            assert found.reason(warm) == ""
            server.freeze()
            try:
                assert {found.reason(warm) for _ in range(3)} == {""}
                assert found.reason(cold) == "api_keys_unavailable"
                assert found.ask(cold).denied_response.status.code == 503
                assert found.reason("garbage") == "api_key_malformed"
            finally:
                server.thaw()
            wait_until(lambda: found.reason(cold) == "", "Redis answers again")
    finally:
        server.stop()


def test_a_key_is_explained(served: Served) -> None:
    """As it would be decided, and without the key in what is said."""
    key = served.create("--scopes", "orders:read")
    command = ["explain", str(served.policy), "--path", "/scoped", "--header"]
    for shown, said in ((key, "subject 'ann' of issuer 'partners'"), (new_key(), "denied, api_key_invalid")):
        assert main([*command, f"x-api-key:{shown}"]) == 0
        printed = served.capture.readouterr()
        assert said in printed.out
        assert shown not in printed.out + printed.err


def test_a_file_of_keys_needs_no_redis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the commands nor deciding."""
    (tmp_path / "pepper").write_text(PEPPER)
    (tmp_path / "keys.yaml").write_text("keys: []\n")
    served = Served(tmp_path / "policy.yaml", capsys)
    served.policy.write_text(
        "api_keys: {filed: {prefix: filed, pepper_file: pepper, file: keys.yaml}}\n"
        "rules:\n"
        "  - {name: all, match: {path: {prefix: /}}, authenticate: {any_of: [{api_key: {keyrings: [filed]}}]}}\n"
    )
    key = served.create(keyring="filed", owner="ann")
    assert main(["explain", str(served.policy), "--header", f"x-api-key:{key}"]) == 0
    assert "subject 'ann' of issuer 'filed'" in capsys.readouterr().out
    served.run("revoke", id_of(key), keyring="filed")
    assert main(["explain", str(served.policy), "--header", f"x-api-key:{key}"]) == 0
    assert "denied, api_key_revoked" in capsys.readouterr().out
    assert main(["check", str(served.policy)]) == 0


def test_two_commands_at_a_time_lose_nothing(tmp_path: Path) -> None:
    """Each changes what the other has left."""
    (tmp_path / "pepper").write_text(PEPPER)
    (tmp_path / "keys.yaml").write_text("keys: []\n")
    (tmp_path / "policy.yaml").write_text(
        "api_keys: {filed: {prefix: filed, pepper_file: pepper, file: keys.yaml}}\n"
        "rules: [{name: all, match: {path: {prefix: /}}, anonymous: true}]\n"
    )
    command = [sys.executable, "-m", "sidecar", "keys", "create", "--config", str(tmp_path / "policy.yaml")]
    command += ["--keyring", "filed", "--owner", "ann"]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(30) for process in running] == [0] * 2
    assert len((tmp_path / "keys.yaml").read_text().splitlines()) == 3


def test_a_redis_that_does_not_answer_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 1, and no traceback; an embedded one belongs to another process."""
    monkeypatch.setattr(api_key_store, "CONNECT_TIMEOUT_S", 0.1)
    path = tmp_path / "policy.yaml"
    (tmp_path / "pepper").write_text(PEPPER)
    (tmp_path / "keys.yaml").write_text("keys: []\n")
    written = POLICY.format(directory=tmp_path, admin=1, redis="redis://127.0.0.1:1/0")
    path.write_text(written)
    command = ["keys", "list", "--config", str(path), "--keyring"]
    assert main([*command, "partners"]) == 1
    assert "answer" in capsys.readouterr().err
    assert main([*command, "partner"]) == 2
    assert "did you mean partners?" in capsys.readouterr().err.replace("'", "")
    path.write_text(written.replace("redis://127.0.0.1:1/0", "embedded"))
    assert main([*command, "partners"]) == 2
    assert "embedded" in capsys.readouterr().err
