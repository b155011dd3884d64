"""Whole files: each bad one is refused for the one fault in its name, and each good one means what it says."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from sidecar.policy.compile import load
from sidecar.policy.faults import PolicyError
from sidecar.policy.schema import json_schema
from sidecar.policy.yaml import read

HERE = Path(__file__).parent
BAD = sorted((HERE / "bad").glob("*.yaml"))
POLICIES = [*(HERE / "good").glob("*.yaml"), HERE / "../../deploy/sidecar.example.yaml"]

BEYOND_THE_SCHEMA = frozenset((HERE / "beyond_the_schema.txt").read_text().split())
"""The bad files whose fault no schema can know: the world, two places together, arithmetic, how paths are read."""


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_each_bad_file_has_the_one_fault_in_its_name(path, monkeypatch):
    """The fault is reported alone, with its line, its path and what would be accepted."""
    monkeypatch.chdir(path.parent)
    with pytest.raises(PolicyError) as caught:
        load(Path(path.name), 1)
    assert f"{caught.value}\n" == path.with_suffix(".txt").read_text()
    assert len(caught.value.faults) == 1
    assert all(fault.accepted for fault in caught.value.faults)


def test_no_message_repeats_a_password():
    """What people put into a policy by mistake does not travel on into logs."""
    holding = [path for path in BAD if "hunter2" in path.read_bytes().decode("utf-8", "replace")]
    assert len(holding) >= 3
    assert not [path for path in holding if "hunter2" in path.with_suffix(".txt").read_text()]


def test_every_expectation_belongs_to_a_file():
    """No golden text outlives its file."""
    assert {path.stem for path in BAD} == {path.stem for path in (HERE / "bad").glob("*.txt")}


def test_all_faults_are_reported_at_once_with_their_lines(monkeypatch):
    """A file with every kind of fault gets one report of all of them."""
    monkeypatch.chdir(HERE / "many")
    with pytest.raises(PolicyError) as caught:
        load(Path("faults.yaml"), 1)
    assert f"{caught.value}\n" == Path("faults.txt").read_text()


@pytest.mark.parametrize("key", ["<text>", "< x", "[key]", "0", ""])
def test_odd_keys_are_unknown_keys_with_their_lines(tmp_path, key):
    """No key is taken for a mark of the validator."""
    path = tmp_path / "sidecar.yaml"
    path.write_text(f'log:\n  level: info\n  "{key}": 1\n"{key}": 1\n')
    with pytest.raises(PolicyError) as caught:
        load(path, 1)
    assert [(fault.line, fault.message) for fault in caught.value.faults] == [
        (3, f"unknown key {key!r}"),
        (4, f"unknown key {key!r}"),
    ]


def test_an_unreadable_file_is_a_fault(tmp_path):
    """A missing file and a directory are reported like any other fault."""
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(PolicyError, match="cannot be read"):
            load(path, 1)


def test_faults_of_rate_limit_files_are_reported_with_the_policys_own(tmp_path):
    """One report covers the policy and the files that it names."""
    (tmp_path / "ratelimit").mkdir()
    (tmp_path / "ratelimit" / "a.yaml").write_text("domain: a\nfoo: 1\n")
    policy = tmp_path / "sidecar.yaml"
    policy.write_text("redis: {url: embedded}\nratelimit: {directory: ratelimit}\nlog: {level: loud}\n")
    with pytest.raises(PolicyError) as caught:
        load(policy, 1)
    assert {Path(fault.file).name for fault in caught.value.faults} == {"a.yaml", "sidecar.yaml"}


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_good_files_load_and_the_schema_accepts_them(path, validator):
    """What loads is never marked as wrong by an editor."""
    assert_accepted(path, validator)


def test_a_policy_that_says_everything_loads(full_directory, validator):
    """Every section, with files of keys and certificates beside it."""
    assert_accepted(full_directory / "sidecar.yaml", validator)


def assert_accepted(path, validator):
    assert load(path, 7).policy.generation == 7
    assert not list(validator.iter_errors(read(path).root))


def test_the_schema_refuses_what_it_can_know_to_be_wrong(validator):
    """Of the bad files that are YAML, the schema accepts exactly those that are listed."""
    accepted = set()
    for path in BAD:
        try:
            root = read(path).root
        except PolicyError:
            continue
        if validator.is_valid(root):
            accepted.add(path.stem)
    assert accepted == BEYOND_THE_SCHEMA
    assert len(accepted) < len(BAD) // 2
