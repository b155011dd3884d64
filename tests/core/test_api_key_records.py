"""What is kept of API keys: peppers and records, and which of either are refused."""

from __future__ import annotations

import base64
import contextlib
import json
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.api_key_format import key_digest
from sidecar.core.api_key_records import (
    LIST_ITEMS_MAX,
    PEPPER_BYTES_MAX,
    PEPPER_BYTES_MIN,
    PEPPER_FILE_BYTES_MAX,
    PEPPERS_MAX,
    RECORD_BYTES_MAX,
    TEXT_CHARS_MAX,
    TIER_CHARS_MAX,
    KeyRecord,
    Peppers,
    RecordError,
    address_in,
    decode_record,
    hold,
    host_in,
    parse_peppers,
)
from tests.support.api_keys import NOW, NOW_US, PEPPERS, new_key, record_of

KEY = new_key()


def encoded(pepper: bytes = b"p" * PEPPER_BYTES_MIN) -> str:
    return base64.b64encode(pepper).decode()


def test_peppers_are_lines_or_json() -> None:
    """Both say the same; comments and empty lines are passed over; the greatest version hashes."""
    lines = f"# ours\n\n1: {encoded()}\n 12 : {encoded(b'q' * 40)} \n".encode()
    document = json.dumps({"1": encoded(), "12": encoded(b"q" * 40)}).encode()
    assert parse_peppers(lines) == parse_peppers(document)
    assert parse_peppers(lines).newest == 12
    assert parse_peppers(lines).hash(b"d" * 32).startswith("12:")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "there are 0 peppers"),
        (b"one: AAAA", "entry 1 has no version"),
        (b"0: AAAA", "entry 1 has no version"),
        (b"1000000: AAAA", "entry 1 has no version"),
        (b"1: AAAA", "pepper 1 has 3 bytes"),
        (b"1: not-base64!", "the pepper of version 1 is not base64"),
        (f"1: {encoded()}\n1: {encoded()}".encode(), "version 1 is there twice"),
        (b"{", "it is not a JSON object of texts"),
        (b'{"1": 2}', "it is not a JSON object of texts"),
        (b"\xff", "it is not ASCII text"),
        (b"#" * (PEPPER_FILE_BYTES_MAX + 1), "it is larger than"),
        (f"1: {encoded(b'p' * (PEPPER_BYTES_MAX + 1))}".encode(), f"pepper 1 has {PEPPER_BYTES_MAX + 1} bytes"),
        (f"1: {encoded(b'p' * (PEPPER_BYTES_MIN - 1))}".encode(), f"pepper 1 has {PEPPER_BYTES_MIN - 1} bytes"),
    ],
)
def test_what_is_no_file_of_peppers_is_said(raw: bytes, said: str) -> None:
    """Without a word of what is in it."""
    with pytest.raises(RecordError, match=said) as caught:
        parse_peppers(raw)
    assert encoded() not in str(caught.value)


def test_peppers_are_bounded_and_never_shown() -> None:
    """As many as the limit, and not one more; printing them shows versions alone."""
    many = dict.fromkeys(range(1, PEPPERS_MAX + 1), b"p" * 32)
    assert Peppers(many).newest == PEPPERS_MAX
    with pytest.raises(RecordError, match="peppers"):
        Peppers({**many, PEPPERS_MAX + 1: b"p" * 32})
    assert "p" * 32 not in repr(Peppers(many))


def test_a_record_survives_the_store() -> None:
    """What is written is read, with all that it may hold; the key is not in it."""
    record = record_of(
        KEY,
        tenant="t",
        tier="gold",
        scopes=("a", "b"),
        roles=("r",),
        networks=("192.0.2.0/24", "2001:db8::/32"),
        hosts=("*.example.com",),
        methods=("GET",),
        previous_hash=PEPPERS.hash(key_digest("before")),
        previous_until=NOW + timedelta(hours=1),
        not_before=NOW,
        created_by="ops",
        metadata={"team": "x"},
    )
    raw = msgspec.json.encode(record)
    assert decode_record(raw) == record
    assert KEY.encode() not in raw
    assert KEY.rsplit("_", 1)[1].encode() not in raw
    held = hold(record, "partners")
    assert (held.begins_us, held.previous_until_us) == (NOW_US, NOW_US + 3_600_000_000)
    assert len(held.hashes) == 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id": "short"}, "id: "),
        ({"owner": ""}, "owner: "),
        ({"owner": "a\nb"}, "owner: "),
        ({"owner": "a" * (TEXT_CHARS_MAX + 1)}, "owner: "),
        ({"tier": "a" * (TIER_CHARS_MAX + 1)}, "tier: "),
        ({"hash": "1:abc"}, "hash: "),
        ({"hash": "0:" + "a" * 64}, "hash: "),
        ({"hash": "1:" + "A" * 64}, "hash: "),
        ({"previous_hash": "1:abc", "previous_until": NOW}, "previous_hash: "),
        ({"previous_hash": "1:" + "a" * 64}, "previous_hash: it has no end"),
        ({"scopes": ("a b",)}, "scopes: "),
        ({"scopes": ('a"',)}, "scopes: "),
        ({"scopes": ("",)}, "scopes: "),
        ({"scopes": ("a",) * (LIST_ITEMS_MAX + 1)}, "scopes: "),
        ({"networks": ("192.0.2.1/24",)}, "networks: "),
        ({"networks": ("x",)}, "networks: "),
        ({"hosts": ("a b",)}, "hosts: "),
        ({"hosts": ("a:80",)}, "hosts: "),
        ({"hosts": ("*",)}, "hosts: "),
        ({"methods": ("G T",)}, "methods: "),
        ({"metadata": {"a": "\x00"}}, "metadata: "),
        ({"metadata": {str(n): "" for n in range(LIST_ITEMS_MAX + 1)}}, "metadata: "),
    ],
)
def test_a_value_that_cannot_be_used_is_said(fields: dict[str, Any], said: str) -> None:
    """With the field's name: a restriction that cannot be read must not be no restriction."""
    with pytest.raises(RecordError, match=said):
        hold(record_of(KEY, **fields), "partners")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"id":"aaaaaaaaaaaa"}',
        msgspec.json.encode(record_of(KEY)).replace(b'"owner"', b'"ownr"'),
        msgspec.json.encode(record_of(KEY)).replace(b'"ann"', b"7"),
        msgspec.json.encode(record_of(KEY, status="revoked")).replace(b"revoked", b"removed"),
        msgspec.json.encode(record_of(KEY, created_at=datetime(2030, 1, 1))),  # noqa: DTZ001 - that is the point
        b"[" * 10_000,
        b'"' + b"a" * RECORD_BYTES_MAX,
    ],
)
def test_what_is_no_record_is_refused(raw: bytes) -> None:
    """Unknown fields too: one that a newer version writes may be a restriction."""
    with pytest.raises(RecordError):
        decode_record(raw)


@given(st.binary(max_size=300))
def test_bytes_are_a_record_or_refused(raw: bytes) -> None:
    """Nothing else comes out of decoding."""
    with contextlib.suppress(RecordError):
        assert isinstance(decode_record(raw), KeyRecord)


def test_addresses_are_compared_as_numbers() -> None:
    """IPv4 also where it comes as IPv6; what is no address is in no network."""
    networks = hold(record_of(KEY, networks=("192.0.2.0/24", "2001:db8::/32")), "p").networks
    for address in ("192.0.2.0", "192.0.2.255", "::ffff:192.0.2.7", "2001:db8::1"):
        assert address_in(address, networks)
    for address in ("192.0.3.0", "2001:db9::", "::ffff:192.0.3.1", "", "192.0.2.07", "192.0.2.7/32", "localhost"):
        assert not address_in(address, networks)


def test_hosts_are_compared_in_their_canonical_spelling() -> None:
    """A suffix is every host below it and not itself."""
    hosts = hold(record_of(KEY, hosts=("API.example.com", "*.shop.example")), "p").hosts
    for host in ("api.example.com", "Api.Example.Com:443", "a.shop.example", "a.b.shop.example"):
        assert host_in(host, hosts)
    for host in ("example.com", "shop.example", "xshop.example", "api.example.com.evil", "", "user@api.example.com"):
        assert not host_in(host, hosts)
