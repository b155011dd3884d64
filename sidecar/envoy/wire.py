"""Protobuf's wire format, written by hand where an answer is made of parts known beforehand.

Building a CheckResponse from message objects costs about 15 us, since each Struct value and header option is several
objects; joining fragments that were encoded when the rule was first used costs a few. The tests hold every fragment
against the parsed message. Field numbers are those of proto/sidecar/envoy/pb and google/protobuf/struct.proto.
"""

from __future__ import annotations

import struct
from typing import Final

_ONE_BYTE: Final = tuple(bytes((n,)) for n in range(128))
_DOUBLE: Final = struct.Struct("<d")

OVERWRITE: Final = b"\x12\x00\x18\x02"
"""HeaderValueOption.append = false and append_action = OVERWRITE_IF_EXISTS_OR_ADD: always both, always in agreement."""


SET: Final = 0x12
"""OkHttpResponse.headers, which the upstream gets, and DeniedHttpResponse.headers, which the client gets."""


def varint(number: int) -> bytes:
    """A non-negative number in base 128, least significant group first."""
    if number < 128:
        return _ONE_BYTE[number]
    groups = bytearray()
    while number >= 128:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def delimited(tag: int, payload: bytes) -> bytes:
    """A length-delimited field; `tag` is field number * 8 + 2, below 128."""
    size = len(payload)
    if size < 128:
        return b"%c%c%b" % (tag, size, payload)
    if size < 16384:  # as below, without a loop
        return b"%c%c%c%b" % (tag, size & 127 | 128, size >> 7, payload)
    return b"%c%b%b" % (tag, varint(size), payload)


def header_name(name: str) -> bytes:
    """What `header_option` needs of a name: HeaderValue.key."""
    return delimited(0x0A, name.encode("ascii"))


def header_option(tag: int, name: bytes, value: bytes) -> bytes:
    """A HeaderValueOption field that sets a header and overwrites whatever was there.

    Args:
        tag: Of the repeated HeaderValueOption field, below 128.
        name: From `header_name`.
        value: The field value.
    """
    size = len(name) + len(value)
    if size < 112:  # every length below fits one byte
        return b"%c%c\x0a%c%b\x12%c%b\x12\x00\x18\x02" % (tag, size + 8, size + 2, name, len(value), value)
    return delimited(tag, delimited(0x0A, name + delimited(0x12, value)) + OVERWRITE)


def struct_key(name: str) -> bytes:
    """What the functions below need of a Struct field's name: the map entry's key."""
    return delimited(0x0A, name.encode("utf-8"))


def struct_string(key: bytes, value: bytes) -> bytes:
    """A Struct's string field; `value` is UTF-8."""
    size = len(value)
    if size + len(key) < 112:
        return b"\x0a%c%b\x12%c\x1a%c%b" % (len(key) + size + 4, key, size + 2, size, value)
    return delimited(0x0A, key + delimited(0x12, delimited(0x1A, value)))


def struct_number(key: bytes, value: float) -> bytes:
    """A Struct's number field."""
    return delimited(0x0A, key + b"\x12\x09\x11" + _DOUBLE.pack(value))


def struct_bool(key: bytes, value: bool) -> bytes:
    """A Struct's boolean field."""
    return delimited(0x0A, key + (b"\x12\x02\x20\x01" if value else b"\x12\x02\x20\x00"))


def struct_list(key: bytes, values: bytes) -> bytes:
    """A Struct's list field; `values` are from `list_struct`."""
    return delimited(0x0A, key + delimited(0x12, delimited(0x32, values)))


def list_struct(fields: bytes) -> bytes:
    """A list's element that is a Struct, from its fields."""
    return delimited(0x0A, delimited(0x2A, fields))
