"""YAML to data with lines: what is read, what is refused, and that nothing else ever happens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.policy import yaml
from sidecar.policy.compile import compile_source
from sidecar.policy.faults import Fault, PolicyError, did_you_mean, shown
from sidecar.policy.yaml import DEPTH_MAX, FILE_BYTES_MAX, INTEGER_DIGITS_MAX, NODES_MAX, dotted, parse

SAMPLES = [path.read_bytes() for path in (Path(__file__).parent / "good").glob("**/*.yaml")]

FRAGMENTS = [
    *(b"{ } [ ] : , - \n \t # & * ! | > ' \" % @ ` ? << &a *a !!str --- ... ~ null true 1e999 0x1f".split(b" ")),
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xfe\xff", b"\xed\xa0\x80", b'"\\ud800"', b"\xc2\x85", b" "),
    *(b"rules issuers limits match path template redis url name anonymous authorize all_of any_of".split()),
]


def refused(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        parse(text.encode(), "f")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("True", "True"),
        ("yes", "yes"),
        ("off", "off"),
        ("null", None),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-12", -12),
        ("+3", 3),
        ("0", 0),
        ("010", "010"),
        ("0o10", "0o10"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", ".5"),
        (".inf", ".inf"),
        ("2020-01-01", "2020-01-01"),
        ('"12"', "12"),
        ("'true'", "true"),
        ("! x", "x"),
    ],
)
def test_scalars(text, value):
    """Plain words and numbers as in JSON; everything else, and everything quoted, is text."""
    found = parse(f"a: {text}".encode(), "f").root["a"]
    assert (found, type(found)) == (value, type(value))


def test_lines_of_keys_items_and_what_is_not_there():
    """The line of the key or item; for a path that leads nowhere, of the nearest thing around it."""
    source = parse(b"a:\n  b: 1\n  c:\n    - x\n    - {d: 1,\n       e: 2}\nf: &f\n  g: 1\nh: *f\n", "f")
    lines = {("a",): 1, ("a", "b"): 2, ("a", "c", 1): 5, ("a", "c", 1, "e"): 6, ("h", "g"): 8}
    assert {path: source.line_of(path) for path in lines} == lines
    assert source.line_of(("a", "none", "deeper")) == 1
    assert source.line_of(("a", "c", 9)) == 3


def test_paths_are_written_as_people_write_them():
    """Names with dots, slashes or spaces are in quotes."""
    assert dotted(("rules", 2, "match", "path")) == "rules[2].match.path"
    assert dotted(("issuers", "a.b", "x-a")) == 'issuers["a.b"].x-a'


def test_all_repeated_keys_are_reported_with_both_lines():
    """Also below each other."""
    text = refused("a: 1\nb: {c: 1, c: 2}\na: 2\n")
    assert text.splitlines() == [
        "f:2: b.c: the key is repeated: lines 2 and 2; each key once",
        "f:3: a: the key is repeated: lines 1 and 3; each key once",
    ]


def test_aliases_are_counted_as_often_as_they_are_used(monkeypatch):
    """A document of exactly the limit is read, one with a value more is not."""
    text = b"- &a [x, x]\n- *a\n- *a\n"  # 1 + 3 * 3 values
    monkeypatch.setattr(yaml, "NODES_MAX", 10)
    assert len(parse(text, "f").root) == 3
    monkeypatch.setattr(yaml, "NODES_MAX", 9)
    with pytest.raises(PolicyError, match="too large once its aliases are unfolded"):
        parse(text, "f")


def test_a_document_that_unfolds_without_end_is_refused_at_once():
    """Ten to the eighth values out of half a kilobyte: a billion laughs."""
    levels = [("a", "x")] + [(b, f"*{a}") for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    assert str(NODES_MAX) in refused("".join(f"{name}: &{name} [{', '.join([item] * 10)}]\n" for name, item in levels))


def test_depth_is_bounded():
    """The deepest document that is read, and one level more."""
    assert parse(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX, "f").root
    assert "nested too deeply" in refused("[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1))
    assert "nested too deeply" in refused("[" * 100_000)


def test_size_is_bounded(tmp_path):
    """The largest file that is read, and one byte more; from bytes and from a file."""
    largest = b"a: 1\n#".ljust(FILE_BYTES_MAX, b"#")
    assert parse(largest, "f").root == {"a": 1}
    path = tmp_path / "f.yaml"
    path.write_bytes(largest + b"#")
    with pytest.raises(PolicyError, match="too large"):
        yaml.read(path)


def test_integers_are_bounded():
    """The longest integer, and one digit more."""
    digits = "9" * INTEGER_DIGITS_MAX
    assert parse(f"a: {digits}".encode(), "f").root == {"a": int(digits)}
    assert "too long" in refused(f"a: {digits}9")


def test_faults_are_one_line_each_in_order():
    """A fault's text cannot start a line of its own; equal faults are reported once."""
    faults = [Fault("f", 2, "b", "two\nlines", "x"), Fault("f", 1, "", "first"), Fault("f", 1, "", "first")]
    assert str(PolicyError(faults)) == "f:1: first\nf:2: b: two lines; x"
    assert len(shown("x" * 1000)) < 100


def test_suggestions_name_the_closest_and_only_few():
    """A close name is suggested; long lists are counted instead."""
    assert did_you_mean("mian", ["main", "other"], "issuers") == "did you mean 'main'? issuers: main, other"
    assert did_you_mean("x", [], "issuers") == "there are no issuers"
    assert did_you_mean("zzz", [f"name{n}" for n in range(31)], "issuers") == "there are 31 issuers"


def outcome(raw: bytes) -> None:
    """Compile bytes: success or PolicyError, with usable faults, is all that may come of it."""
    try:
        source = parse(raw, "f")
        compile_source(source, Path("/nonexistent"), 1)
    except PolicyError as error:
        faults = error.faults
    else:
        return
    lines = raw.count(b"\n") + raw.count(b"\r") + raw.count(b"\xc2\x85") + raw.count(b"\xe2\x80") + 2
    assert faults
    assert all(fault.line <= lines and fault.message and "\n" not in str(fault) for fault in faults)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(raw):
    """No bytes raise anything but PolicyError."""
    outcome(raw)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map(b" ".join))
@settings(max_examples=400, deadline=None)
def test_anything_like_yaml_is_read_or_refused(raw):
    """No sequence of YAML's own signs raises anything but PolicyError."""
    outcome(raw)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_damaged_policy_is_read_or_refused(data):
    """Good policies, with a piece replaced anywhere, never raise anything but PolicyError."""
    raw = data.draw(st.sampled_from(SAMPLES))
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, min(len(raw), start + 20)))
    outcome(raw[:start] + data.draw(st.sampled_from(FRAGMENTS)) + raw[end:])
