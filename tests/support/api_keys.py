"""Keyrings, records and keys for tests: any secret, known peppers, a fixed time."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from sidecar.core.api_key_cache import KnownKeys
from sidecar.core.api_key_format import ALPHABET, KEY_ID_CHARS, SECRET_CHARS, key_digest, write_key
from sidecar.core.api_key_records import KeyRecord, Peppers, moment_us
from sidecar.core.api_keys import ApiKeyMethod, Keyring
from sidecar.core.context import RequestContext
from sidecar.core.credentials import HeaderPlace

FAMILY = "acme_live"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
NOW_US = moment_us(NOW)
PEPPERS = Peppers({1: b"one" * 11, 2: b"two" * 11})
PLACE = HeaderPlace("x-api-key")

_random = random.Random(7)


def some(chars: int) -> str:
    """Base62 characters."""
    return "".join(_random.choices(ALPHABET, k=chars))


def new_key(family: str = FAMILY, key_id: str = "") -> str:
    """A key that nobody has."""
    return write_key(family, key_id or some(KEY_ID_CHARS), some(SECRET_CHARS))


def id_of(key: str) -> str:
    return key.rsplit("_", 2)[1]


def record_of(key: str, peppers: Peppers = PEPPERS, **fields: Any) -> KeyRecord:
    """The record of a key in our own form; good for 90 days unless `fields` say otherwise."""
    usual = {
        "id": id_of(key),
        "owner": "ann",
        "hash": peppers.hash(key_digest(key)),
        "created_at": NOW,
        "expires_at": NOW + timedelta(days=90),
    }
    return KeyRecord(**(usual | fields))


def keyring(known: KnownKeys | None = None, **fields: Any) -> Keyring:
    held = KnownKeys() if known is None else known
    usual: dict[str, Any] = {"name": "partners", "family": FAMILY, "peppers": PEPPERS, "known": held}
    return Keyring(**(usual | fields))


def method(*keyrings: Keyring) -> ApiKeyMethod:
    return ApiKeyMethod(keyrings, PLACE)


def request(**fields: Any) -> RequestContext:
    usual: dict[str, Any] = {
        "request_id": "1",
        "method": "GET",
        "host": "api.example.com",
        "path": "/",
        "source_address": "192.0.2.7",
    }
    return RequestContext(**(usual | fields))
