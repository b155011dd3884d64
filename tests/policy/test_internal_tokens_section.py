"""The `internal_tokens` section: keys in a directory, each named by the time from which it signs."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from sidecar.policy.compile import load, masked
from sidecar.policy.faults import PolicyError
from sidecar.policy.internal_tokens_section import COPIED_CLAIMS_MAX, KEYS_MAX
from tests.support.internal_keys import pem, write_keys


def loaded(directory, extra=""):
    policy = directory / "sidecar.yaml"
    section = f"{{issuer: https://sidecar.internal, audiences: [a], keys: keys{extra}}}"
    policy.write_text(
        f"internal_tokens: {section}\nrules: [{{name: a, match: {{path: {{prefix: /}}}}, anonymous: true}}]\n"
    )
    return load(policy, 1)


def faults(directory, extra=""):
    with pytest.raises(PolicyError) as caught:
        loaded(directory, extra)
    return [str(fault).partition("sidecar.yaml:1: ")[2] for fault in caught.value.faults]


def test_keys_are_sorted_by_the_time_in_their_names(tmp_path):
    """A day begins at midnight in UTC; what is no PEM file, and what is hidden, is none of the keys."""
    keys = write_keys(tmp_path / "keys", "2026-12-01.pem", "2026-11-30T2359Z.pem", "2027-01-01.pem")
    (keys / "README").write_text("")
    (keys / ".2026-01-01.pem").write_text("")
    (keys / "..data").mkdir()
    tokens = loaded(tmp_path).policy.internal_tokens
    moments = [
        datetime(2026, 11, 30, 23, 59, tzinfo=UTC),
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    ]
    assert [key.signs_from_us for key in tokens.keys] == [int(at.timestamp()) * 1_000_000 for at in moments]


def test_what_is_left_out_has_its_default(tmp_path):
    """Two minutes, `at+jwt`, and no copied claims."""
    write_keys(tmp_path / "keys", "2026-12-01.pem")
    tokens = loaded(tmp_path).policy.internal_tokens
    assert (tokens.lifetime_s, tokens.token_type, tokens.claims) == (120, "at+jwt", ())
    assert tokens.directory == str(tmp_path / "keys")


def test_a_policy_without_the_section_signs_nothing(tmp_path):
    """There is no default issuer and no key that makes itself."""
    (tmp_path / "sidecar.yaml").write_text("rules: []\n")
    assert load(tmp_path / "sidecar.yaml", 1).policy.internal_tokens is None


def test_a_header_of_its_own_is_always_taken_off_requests(tmp_path):
    """No rule lets a client's own header of this name, or its twin with underscores, through to the upstream."""
    write_keys(tmp_path / "keys", "2026-12-01.pem")
    [rule] = loaded(tmp_path, ", header: X-Internal-Token").policy.rules.rules
    assert {"x-internal-token", "x_internal_token"} <= set(rule.identity_headers)
    assert "authorization" not in loaded(tmp_path).policy.rules.rules[0].identity_headers


def test_operators_are_not_shown_the_keys(tmp_path):
    """The policy that `/policy` shows names the directory, and nothing that is in it."""
    text = pem()
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "2026-12-01.pem").write_bytes(text)
    shown = str(masked(loaded(tmp_path))) + repr(loaded(tmp_path).policy.internal_tokens)
    assert "'keys': 'keys'" in shown
    assert text.split(b"\n")[1].decode() not in shown


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no key"),
        (["key.pem"], "'key.pem' says no time"),
        (["2026-13-01.pem"], "'2026-13-01.pem' says no time"),
        (["2026-12-01T2460Z.pem"], "'2026-12-01T2460Z.pem' says no time"),
        (["2026-12-01.pem", "2026-12-01T0000Z.pem"], "repeats the time or the key of another"),
    ],
)
def test_file_names_that_say_no_time_are_faults(tmp_path, names, message):
    """Each is named, with the form that is accepted."""
    write_keys(tmp_path / "keys", *names)
    [fault] = faults(tmp_path)
    assert fault.startswith("internal_tokens.keys: ")
    assert message in fault


def test_one_key_has_one_turn(tmp_path):
    """The same key under two names is a copy that was forgotten."""
    keys = write_keys(tmp_path / "keys", "2026-12-01.pem")
    (keys / "2027-01-01.pem").write_bytes((keys / "2026-12-01.pem").read_bytes())
    [fault] = faults(tmp_path)
    assert "2027-01-01.pem repeats the time or the key of another" in fault


def test_a_directory_that_cannot_be_read_is_a_fault(tmp_path):
    """Missing, or a file."""
    assert re.search(r"the directory .*keys cannot be read: No such file", faults(tmp_path)[0])
    (tmp_path / "keys").write_text("")
    assert re.search(r"the directory .*keys cannot be read: Not a directory", faults(tmp_path)[0])


def test_a_file_that_holds_no_key_is_a_fault_that_quotes_nothing(tmp_path):
    """Whatever was put there by mistake does not travel on into logs."""
    write_keys(tmp_path / "keys", "2026-12-01.pem")
    (tmp_path / "keys" / "2026-12-02.pem").write_text("hunter2")
    [fault] = faults(tmp_path)
    assert "2026-12-02.pem holds no private key in PEM, or an encrypted one; one private key in PEM" in fault
    assert "hunter2" not in fault


def test_the_number_of_keys_is_bounded(tmp_path):
    """N are read, N + 1 are refused."""
    names = [f"2026-12-{day:02}.pem" for day in range(1, KEYS_MAX + 2)]
    write_keys(tmp_path / "keys", *names[:-1])
    assert len(loaded(tmp_path).policy.internal_tokens.keys) == KEYS_MAX
    write_keys(tmp_path / "keys", names[-1])
    assert f"holds {KEYS_MAX + 1} keys" in faults(tmp_path)[0]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (", claims: [exp]", "the claim 'exp' is the sidecar's own"),
        (", claims: [cnf]", "the claim 'cnf' is the sidecar's own"),
        (", claims: ['a b']", "'a b' is not a claim's name"),
        (", header: host", "the header 'host' must not be set"),
        (", header: x_token", "the header 'x_token' has an underscore"),
        (", token_type: application/at+jwt", "'application/at+jwt' is not a token's type"),
        (", lifetime: 9s", "9s is out of range"),
        (", lifetime: 61m", "61m is out of range"),
        (f", claims: [{', '.join(f'c{n}' for n in range(COPIED_CLAIMS_MAX + 1))}]", "it has too many items"),
        (", signs: never", "unknown key 'signs'"),
    ],
)
def test_settings_out_of_their_range_are_faults(tmp_path, extra, message):
    """Each alone."""
    write_keys(tmp_path / "keys", "2026-12-01.pem")
    [fault] = faults(tmp_path, extra)
    assert message in fault
