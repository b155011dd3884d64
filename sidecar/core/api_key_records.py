"""What is kept of an API key: never the key, but what it is recognised by, and what it is good for.

A key is kept as the HMAC-SHA-256 of its SHA-256 under a pepper that the store does not know. A fast hash is right: a
key has 160 random bits. The SHA-256 in between lets keys be imported of which somebody has only that.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

import msgspec

from sidecar.core.api_key_format import is_key_id
from sidecar.core.paths import canonical_host
from sidecar.core.principal import Principal

if TYPE_CHECKING:
    from sidecar.core.principal import Json

HASH_BYTES: Final = 32
PEPPER_BYTES_MIN: Final = 32
PEPPER_BYTES_MAX: Final = 256
PEPPERS_MAX: Final = 64
PEPPER_FILE_BYTES_MAX: Final = 64 * 1024
PEPPER_VERSION_MAX: Final = 999_999

TEXT_CHARS_MAX: Final = 256
"""Of an owner, a tenant, a scope, a role, a value of metadata."""
TIER_CHARS_MAX: Final = 63
LIST_ITEMS_MAX: Final = 100
RECORD_BYTES_MAX: Final = 64 * 1024

_NEVER_US: Final = 2**63
_HASH: Final = re.compile(r"([1-9][0-9]{0,5}):([0-9a-f]{64})")
_SCOPE: Final = re.compile(r"[!#-\[\]-~]+")
_METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]
Network: TypeAlias = IPv4Network | IPv6Network


class RecordError(ValueError):
    """A record, or a file of peppers, is not one; says what is wrong, and holds no secret."""


@dataclass(frozen=True, slots=True, repr=False)
class Peppers:
    """The secrets under which keys are hashed, by version. Compared by value.

    Raises:
        RecordError: There is none, or one is too short.
    """

    versions: Mapping[int, bytes]

    def __post_init__(self) -> None:
        if not 1 <= len(self.versions) <= PEPPERS_MAX:
            raise RecordError(f"there are {len(self.versions)} peppers; 1 to {PEPPERS_MAX} are accepted")
        for version, pepper in self.versions.items():
            if not 1 <= version <= PEPPER_VERSION_MAX:
                raise RecordError(f"{version} is no version of a pepper; 1 to {PEPPER_VERSION_MAX} is")
            if not PEPPER_BYTES_MIN <= len(pepper) <= PEPPER_BYTES_MAX:
                bounds = f"{PEPPER_BYTES_MIN} to {PEPPER_BYTES_MAX}"
                raise RecordError(f"pepper {version} has {len(pepper)} bytes; {bounds} are accepted")

    def __repr__(self) -> str:
        return f"Peppers(versions={sorted(self.versions)})"

    @property
    def newest(self) -> int:
        """The version that hashes new keys: the greatest."""
        return max(self.versions)

    def hash(self, digest: bytes) -> str:
        """What is kept of a key with this digest: `<version>:<hexadecimal>`."""
        version = self.newest
        return f"{version}:{hash_under(self.versions[version], digest).hex()}"


def hash_under(pepper: bytes, digest: bytes) -> bytes:
    """The HMAC-SHA-256 of a key's digest."""
    return hmac.digest(pepper, digest, "sha256")


def parse_peppers(raw: bytes) -> Peppers:
    """A file of peppers: a JSON object or lines, each version with its pepper in base64.

    Raises:
        RecordError: It is not such a file. Quotes nothing of it.
    """
    if len(raw) > PEPPER_FILE_BYTES_MAX:
        raise RecordError(f"it is larger than {PEPPER_FILE_BYTES_MAX} bytes")
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        raise RecordError("it is not ASCII text") from None
    versions: dict[int, bytes] = {}
    for number, (version, encoded) in enumerate(_pepper_pairs(text), 1):
        if not re.fullmatch(r"[1-9][0-9]{0,5}", version):
            raise RecordError(f"entry {number} has no version: a number from 1 to {PEPPER_VERSION_MAX}")
        if int(version) in versions:
            raise RecordError(f"version {version} is there twice")
        try:
            versions[int(version)] = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            raise RecordError(f"the pepper of version {version} is not base64") from None
    return Peppers(versions)


def _pepper_pairs(text: str) -> list[tuple[str, str]]:
    if text.lstrip().startswith("{"):
        try:
            return list(msgspec.json.decode(text, type=dict[str, str]).items())
        except msgspec.DecodeError:
            raise RecordError("it is not a JSON object of texts") from None
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.partition(":")[::2] for line in lines if line and not line.startswith("#")]
    return [(version.strip(), encoded.strip()) for version, encoded in pairs]


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A key as stores keep it; `hold` says what it means, and checks what types cannot.

    Attributes:
        id: The key id.
        owner: Who the key is: the principal's subject.
        hash: Of the key: `<pepper version>:<hexadecimal>`.
        previous_hash: Of the key that it had before it was rotated, "" without one; accepted until `previous_until`.
        networks: CIDRs of addresses that may use it; any where empty. So with `hosts` (`*.suffix` too) and `methods`.
        expires_at: From when on it is refused; None: never.
        status: `disabled` can be undone, `revoked` is for good.
        revoked_at: Since when it is neither.
        rotated_at: When it got its present secret, None: at `created_at`.
        metadata: For the operator; a claim of the principal.
    """

    id: str
    owner: str
    hash: str
    created_at: Moment
    expires_at: Moment | None = None
    not_before: Moment | None = None
    status: Literal["active", "disabled", "revoked"] = "active"
    tenant: str = ""
    tier: str = ""
    scopes: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    previous_hash: str = ""
    previous_until: Moment | None = None
    created_by: str = ""
    rotated_at: Moment | None = None
    revoked_at: Moment | None = None
    metadata: dict[str, str] = {}


@dataclass(frozen=True, slots=True, eq=False)
class HeldKey:
    """A record, compiled for use.

    Attributes:
        hashes: The present one, and the previous one where there is one: pepper version and hash.
        begins_us, expires_us, previous_until_us: Microseconds since the epoch.
        restricted: Whether any of networks, hosts and methods is limited.
    """

    record: KeyRecord
    principal: Principal
    hashes: tuple[tuple[int, bytes], ...]
    begins_us: int
    expires_us: int
    previous_until_us: int
    networks: tuple[Network, ...]
    hosts: tuple[str, ...]
    restricted: bool


def decode_record(raw: bytes) -> KeyRecord:
    """A record as it is kept in Redis.

    Raises:
        RecordError: It is not one.
    """
    if len(raw) > RECORD_BYTES_MAX:
        raise RecordError(f"it is larger than {RECORD_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(raw, type=KeyRecord)
    except msgspec.DecodeError as error:
        raise RecordError(str(error)) from None


def hold(record: KeyRecord, keyring: str) -> HeldKey:
    """A record as it is used.

    Args:
        record: Of the store.
        keyring: The policy's name of the keyring: the principal's issuer.

    Raises:
        RecordError: A value cannot be used; names the field.
    """
    _check_texts(record)
    hashes = [_parsed_hash("hash", record.hash)]
    if record.previous_hash:
        if record.previous_until is None:
            raise RecordError("previous_hash: it has no end: previous_until is missing")
        hashes.append(_parsed_hash("previous_hash", record.previous_hash))
    return HeldKey(
        record=record,
        principal=_principal(record, keyring),
        hashes=tuple(hashes),
        begins_us=0 if record.not_before is None else moment_us(record.not_before),
        expires_us=_NEVER_US if record.expires_at is None else moment_us(record.expires_at),
        previous_until_us=0 if record.previous_until is None else moment_us(record.previous_until),
        networks=tuple(_network(text) for text in record.networks),
        hosts=tuple(_host(text) for text in record.hosts),
        restricted=bool(record.networks or record.hosts or record.methods),
    )


def moment_us(moment: datetime) -> int:
    """Microseconds since the epoch."""
    whole, micro = divmod(moment.timestamp(), 1)
    return int(whole) * 1_000_000 + round(micro * 1_000_000)


def address_in(text: str, networks: tuple[Network, ...]) -> bool:
    """Whether an address is in one of the networks; IPv4 that comes as IPv6 (`::ffff:`) is IPv4."""
    try:
        address: IPv4Address | IPv6Address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    return any(address in network for network in networks)


def host_in(authority: str, hosts: tuple[str, ...]) -> bool:
    """Whether a host as sent is one of these; `*.suffix` is every host below the suffix."""
    host = canonical_host(authority)
    if host is None:
        return False
    return any(host.endswith(each[1:]) if each.startswith("*.") else host == each for each in hosts)


def _principal(record: KeyRecord, keyring: str) -> Principal:
    claims: dict[str, Json] = {
        "sub": record.owner,
        "owner": record.owner,
        "keyring": keyring,
        "key_id": record.id,
        "scope": " ".join(record.scopes),
        "roles": list(record.roles),
        "iat": moment_us(record.created_at) // 1_000_000,
        "metadata": dict(record.metadata),
    }
    if record.tenant:
        claims["tenant"] = record.tenant
    if record.tier:
        claims["tier"] = record.tier
    if record.expires_at is not None:
        claims["exp"] = moment_us(record.expires_at) // 1_000_000
    return Principal(
        keyring,
        record.owner,
        "",
        frozenset(record.scopes),
        frozenset(record.roles),
        claims,
        "api_key",
        record.tier,
        record.tenant,
        record.id,
    )


def _check_texts(record: KeyRecord) -> None:
    if not is_key_id(record.id):
        raise RecordError("id: it is not 12 letters and digits")
    if not record.owner:
        raise RecordError("owner: it is empty")
    for name in ("owner", "tenant", "created_by"):
        _check_text(name, getattr(record, name), TEXT_CHARS_MAX)
    _check_text("tier", record.tier, TIER_CHARS_MAX)
    for name in ("scopes", "roles", "networks", "hosts", "methods"):
        _check_list(name, getattr(record, name))
    if not all(_SCOPE.fullmatch(scope) for scope in record.scopes):
        raise RecordError("scopes: one is not printable ASCII text without spaces, quotes and backslashes (RFC 6749)")
    if not all(_METHOD.fullmatch(method) for method in record.methods):
        raise RecordError("methods: one is not a method such as GET")
    _check_list("metadata", tuple(record.metadata))
    for value in record.metadata.values():
        _check_text("metadata", value, TEXT_CHARS_MAX)


def _check_list(name: str, items: tuple[str, ...]) -> None:
    if len(items) > LIST_ITEMS_MAX:
        raise RecordError(f"{name}: there are {len(items)}; at most {LIST_ITEMS_MAX} are accepted")
    for item in items:
        _check_text(name, item, TEXT_CHARS_MAX)
        if not item:
            raise RecordError(f"{name}: one is empty")


def _check_text(name: str, text: str, chars_max: int) -> None:
    if len(text) > chars_max or not text.isprintable():
        raise RecordError(f"{name}: it is not printable text of at most {chars_max} characters")


def _parsed_hash(name: str, text: str) -> tuple[int, bytes]:
    found = _HASH.fullmatch(text)
    if found is None:
        raise RecordError(f"{name}: it is not VERSION:HEX, a pepper's version and 64 hexadecimal digits")
    return int(found[1]), bytes.fromhex(found[2])


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError:
        raise RecordError(f"networks: {text!r} is not a network such as 192.0.2.0/24") from None


def _host(text: str) -> str:
    name = text.removeprefix("*.")
    host = canonical_host(name)
    if host is None or ":" in name.rpartition("]")[2]:
        raise RecordError(f"hosts: {text!r} is not a host such as api.example.com or *.example.com")
    return text[: len(text) - len(name)] + host
