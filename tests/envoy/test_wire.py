"""Hand-written wire format against protobuf's own, at the lengths where the number of length bytes changes."""

from __future__ import annotations

import pytest
from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from sidecar.envoy import wire
from sidecar.envoy.pb import core_pb2, ext_authz_pb2

LENGTHS = sorted({0, 1, *range(90, 140), *range(16_360, 16_400)})


@pytest.mark.parametrize("length", LENGTHS)
def test_header_options(length):
    """Each is one HeaderValueOption with both append fields, whatever the value's length."""
    message = ext_authz_pb2.OkHttpResponse.FromString(
        wire.header_option(0x12, wire.header_name("x-user-id"), b"v" * length)
    )
    option = core_pb2.HeaderValueOption(append_action=2)
    option.append.value = False
    option.header.key, option.header.value = "x-user-id", "v" * length
    assert list(message.headers) == [option]


@pytest.mark.parametrize("length", LENGTHS)
def test_struct_fields(length):
    """A Struct of every kind of field that is written, with strings of any length."""
    text = "v" * length
    element = wire.list_struct(wire.struct_string(wire.struct_key("name"), text.encode()))
    message = struct_pb2.Struct.FromString(
        wire.struct_string(wire.struct_key("text"), text.encode())
        + wire.struct_number(wire.struct_key("number"), 2.5)
        + wire.struct_bool(wire.struct_key("yes"), value=True)
        + wire.struct_bool(wire.struct_key("no"), value=False)
        + wire.struct_list(wire.struct_key("list"), element * 2)
    )
    expected = struct_pb2.Struct()
    expected.update({"text": text, "number": 2.5, "yes": True, "no": False, "list": [{"name": text}] * 2})
    assert message == expected


@given(st.integers(0, 2**64 - 1))
def test_varint(number):
    """Base 128, least significant group first; no more bytes than needed."""
    encoded = wire.varint(number)
    assert sum((byte & 127) << 7 * at for at, byte in enumerate(encoded)) == number
    assert [byte >> 7 for byte in encoded] == [1] * (len(encoded) - 1) + [0]
    assert len(encoded) == max(1, -(-number.bit_length() // 7))


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_key_and_string(key, text):
    """Long keys as well as long values."""
    message = struct_pb2.Struct.FromString(wire.struct_string(wire.struct_key(key), text.encode()))
    assert dict(message) == {key: text}
