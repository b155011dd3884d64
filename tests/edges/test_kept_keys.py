"""Keys in a file: what is written, what is read again, and what a restart without the issuer has."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.core.issuer import IssuerPolicy, JwksUrl, OidcDiscovery
from sidecar.core.keys import KeySet, parse_jwks
from sidecar.edges import kept_keys
from sidecar.edges.kept_keys import CLOCK_BACK_S_MAX, ENVELOPE_BYTES_MAX, KeptKeysError
from tests.support.tokens import issuer_policy, jwks, make_key

KEY, OTHER = make_key(kid="old"), make_key("RS256", kid="other")
POLICY = issuer_policy(keys_stale_s_max=3600)
NOW_S = 1_800_000_000.5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def keep(path: Path, *keys: Any, policy: IssuerPolicy = POLICY) -> KeySet:
    body = jwks(*keys)
    found = parse_jwks(body)
    kept_keys.write(str(path), policy, body, found, NOW_S)
    return found


def test_what_is_written_is_read_again(path: Path) -> None:
    """The same set, as old as it is; in a file that nobody else can read, with nothing beside it."""
    written = keep(path, KEY, OTHER)
    kept = kept_keys.read(str(path), POLICY, NOW_S + 60)
    assert kept is not None
    assert kept.keys.fingerprint == written.fingerprint
    assert kept.age_s == 60.5
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_nothing_secret_and_nothing_unusable_is_written(path: Path) -> None:
    """An issuer's private parts are not kept for it."""
    keep(path, KEY, OTHER.jwk | {"kid": "leaked", "d": "c2VjcmV0"}, {"kty": "oct", "k": "c2VjcmV0"})
    assert "c2VjcmV0" not in path.read_text()
    assert json.loads(path.read_text())["keys"] == [KEY.jwk]


def test_no_file_is_no_fault(path: Path) -> None:
    """The first start has none."""
    assert kept_keys.read(str(path), POLICY, NOW_S) is None


@pytest.mark.parametrize(
    ("later_s", "usable"),
    [(3599, True), (3600, False), (1e9, False), (-CLOCK_BACK_S_MAX + 1, True), (-CLOCK_BACK_S_MAX - 1, False)],
)
def test_kept_keys_are_used_as_long_as_keys_may_be(path: Path, later_s: float, usable: bool) -> None:
    """Up to `keys_stale_s_max` from when they were fetched, restarts or not; never from the future."""
    keep(path, KEY)
    if usable:
        assert kept_keys.read(str(path), POLICY, NOW_S + later_s) is not None
    else:
        with pytest.raises(KeptKeysError, match="s old"):
            kept_keys.read(str(path), POLICY, NOW_S + later_s)


SOURCES = {
    "another issuer": issuer_policy(issuer="https://other.example"),
    "another URL": issuer_policy(keys=JwksUrl("https://issuer.example/other")),
    "another kind of source": issuer_policy(keys=OidcDiscovery("https://issuer.example")),
}


@pytest.mark.parametrize("policy", SOURCES.values(), ids=SOURCES.keys())
def test_keys_of_another_source_are_not_taken(path: Path, policy: IssuerPolicy) -> None:
    """RFC 8725 section 3.8: what vouches for one issuer does not become another's by a file's name."""
    keep(path, KEY)
    with pytest.raises(KeptKeysError, match="another issuer or source"):
        kept_keys.read(str(path), policy, NOW_S)


def _changed(**members: Any) -> bytes:
    document = {"version": 1, "source": kept_keys._source(POLICY), "fetched_at": int(NOW_S), "keys": [KEY.jwk]}
    return json.dumps(document | members).encode()


CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "cut short": (_changed()[:-5], "not JSON"),
    "an array": (b"[]", "not an object"),
    "a bare JWKS": (jwks(KEY), "another version"),
    "a later version": (_changed(version=2), "another version"),
    "no date": (_changed(fetched_at=None), "when they were fetched"),
    "a date in words": (_changed(fetched_at="now"), "when they were fetched"),
    "a true date": (_changed(fetched_at=True), "when they were fetched"),
    "no keys": (_changed(keys=[]), "no usable key"),
    "keys of no kind": (_changed(keys={"k": 1}), "no array"),
    "a secret": (_changed(keys=[{"kty": "oct", "k": "AAAA", "alg": "HS256"}]), "symmetric key"),
    "too many keys": (_changed(keys=[KEY.jwk] * 101), "more than 100"),
    "nested": (b'{"keys":' + b"[" * 1000, "nested"),
}


@pytest.mark.parametrize(("content", "why"), CONTENTS.values(), ids=CONTENTS.keys())
def test_files_that_hold_no_keys(path: Path, content: bytes, why: str) -> None:
    """What is read is held to what a fetch is; the fault is named."""
    path.write_bytes(content)
    with pytest.raises(KeptKeysError, match=why):
        kept_keys.read(str(path), POLICY, NOW_S)


_VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.just(KEY.jwk), max_size=2)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.dictionaries(st.sampled_from(["version", "source", "fetched_at", "keys"]), _VALUES).map(
        lambda m: _changed(**m)
    )
)
def test_any_bytes_are_kept_keys_or_refused(path: Path, content: bytes) -> None:
    """Permitted: keys, or a KeptKeysError."""
    path.write_bytes(content)
    try:
        kept = kept_keys.read(str(path), POLICY, NOW_S)
    except KeptKeysError:
        return
    assert kept is not None
    assert kept.keys.kids == {"old"}


@pytest.mark.parametrize("more", [0, 1])
def test_how_long_the_file_may_be(path: Path, more: int) -> None:
    """N bytes are read, N + 1 are not."""
    path.write_bytes(_changed().ljust(POLICY.fetch.body_bytes_max + ENVELOPE_BYTES_MAX + more))
    if more:
        with pytest.raises(KeptKeysError, match="larger than"):
            kept_keys.read(str(path), POLICY, NOW_S)
    else:
        assert kept_keys.read(str(path), POLICY, NOW_S) is not None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_not_believed(path: Path, mode: int) -> None:
    """Whoever can write it could make tokens."""
    keep(path, KEY)
    path.chmod(mode)
    with pytest.raises(KeptKeysError, match="others can write"):
        kept_keys.read(str(path), POLICY, NOW_S)


@pytest.mark.parametrize("kind", ["directory", "fifo", "link"])
def test_what_is_no_file_is_not_read(path: Path, kind: str) -> None:
    """Nothing blocks, no link is followed, and the path is not repeated."""
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        keep(path.with_name("elsewhere"), KEY)
        path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(KeptKeysError) as refused:
        kept_keys.read(str(path), POLICY, NOW_S)
    assert str(path.parent) not in str(refused.value)


def test_a_directory_that_is_gone(path: Path) -> None:
    """A fault that is named; an old file is replaced as a whole or not at all."""
    with pytest.raises(KeptKeysError, match="cannot be kept"):
        keep(path.parent / "no" / "keys.json", KEY)
