"""The `api_keys` section of a policy, and what it compiles to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

from sidecar.core.api_key_cache import ENTRIES_MAX, FOREVER_US, KnownKeys
from sidecar.core.api_key_format import ENVIRONMENT_PATTERN, PREFIX_PATTERN, family_of
from sidecar.core.api_key_records import PEPPER_FILE_BYTES_MAX, Peppers, RecordError, parse_peppers
from sidecar.core.api_keys import Keyring
from sidecar.policy import durations
from sidecar.policy.api_key_file import read_records
from sidecar.policy.faults import PolicyError
from sidecar.policy.fields import Between, Duration, Form, Text, matching
from sidecar.policy.model import Model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.core.api_key_records import HeldKey
    from sidecar.policy.files import Files
    from sidecar.policy.validate import Validated
    from sidecar.policy.yaml import PathParts

KEYRINGS_MAX = 64
ENTRIES_MOST = 1_000_000

_prefix = matching(PREFIX_PATTERN, "a prefix", "up to 16 small letters and digits, the first a letter, such as acme")
_environment = matching(ENVIRONMENT_PATTERN, "an environment", "up to 16 small letters and digits, such as live")

KeyPrefix: TypeAlias = Annotated[str, Form(_prefix, PREFIX_PATTERN)]
KeyEnvironment: TypeAlias = Annotated[str, Form(_environment, ENVIRONMENT_PATTERN)]


class ApiKeyring(Model):
    """API keys of one kind: `<prefix>_<environment>_<key id>_<secret><checksum>`."""

    prefix: KeyPrefix = Field(description="What its keys begin with.", examples=["acme"])
    environment: KeyEnvironment | None = Field(
        None,
        description="Comes after the prefix; no two keyrings have both in common. Keys go without it where there is "
        "none.",
        examples=["live"],
    )
    pepper_file: Text = Field(
        description="File with the secrets under which keys are hashed: lines, or a JSON object, of a version (a "
        "number) and at least 32 bytes in base64. The greatest version hashes new keys. Read again when it changes.",
        examples=["secrets/pepper"],
    )
    file: Text | None = Field(
        None,
        description="File with all keys of the keyring, for those who manage them in Git; read again when it changes. "
        "Keys are in Redis without it.",
        examples=["keys/partners.yaml"],
    )
    lifetime: Annotated[Duration, Between("1m", "3660d", "1s")] = Field(
        "90d", description="When a new key expires, unless it is said otherwise when it is made.", examples=["90d"]
    )
    cache_entries_max: int = Field(
        ENTRIES_MAX,
        ge=1,
        le=ENTRIES_MOST,
        description="Keys that one sidecar remembers, about 5 KiB each.",
        examples=[ENTRIES_MAX],
    )
    cache_ttl: Annotated[Duration, Between("1s", "30s", "1s")] = Field(
        "10s",
        description="When a remembered key is looked up again. A change is heard of within a second; this bounds it "
        "where the news were lost.",
        examples=["10s"],
    )
    stale_max: Annotated[Duration, Between("0s", "1d", "1s")] = Field(
        "5m",
        description="How old what is remembered of a key may be while Redis cannot answer. Keys that are not "
        "remembered are refused with 503 meanwhile.",
        examples=["5m"],
    )
    foreign_keys: bool = Field(
        False,
        description="Accept imported keys that were made elsewhere, in whatever form. Text without a checksum costs a "
        "look-up; at most one keyring has it.",
        examples=[False],
    )


@dataclass(frozen=True, slots=True, eq=False)
class CompiledKeyring:
    """A keyring, and where it is from.

    Attributes:
        file: Of its keys; None: they are in Redis.
        lifetime_us: Of a new key.
    """

    keyring: Keyring
    pepper_file: Path
    file: Path | None
    lifetime_us: int

    @property
    def watched(self) -> tuple[str, ...]:
        """Files that change what it accepts."""
        return tuple(str(path) for path in (self.pepper_file, self.file) if path is not None)


def compile_api_keys(validated: Validated, files: Files) -> Mapping[str, CompiledKeyring]:
    """Keyrings by name; what is wrong is added to the faults."""
    compiled: dict[str, CompiledKeyring] = {}
    families: dict[str, str] = {}
    foreign = ""
    for name, written in validated.document.api_keys.items():
        where = ("api_keys", name)
        family = family_of(written.prefix, written.environment or "")
        if family in families:
            message = f"its keys begin with {family}_, as those of {families[family]!r} do"
            validated.fault((*where, "prefix"), message, "another prefix or environment")
        families.setdefault(family, name)
        if written.foreign_keys and foreign:
            message = f"{foreign!r} has it already: nobody could say where to look"
            validated.fault((*where, "foreign_keys"), message, "foreign_keys on one keyring")
        foreign = name if written.foreign_keys else foreign
        if written.file is None and not validated.has("redis"):
            message = "the keys are in Redis, and the section redis is missing"
            validated.fault(where, message, "redis: {url: URL}, or file: FILE in the keyring")
        keyring = _compile(validated, files, where, name, written)
        if keyring is not None:
            compiled[name] = keyring
    return compiled


def _compile(
    validated: Validated, files: Files, where: PathParts, name: str, written: ApiKeyring
) -> CompiledKeyring | None:
    peppers = _peppers(validated, files, (*where, "pepper_file"), written.pepper_file)
    records = _records(validated, files, written.file, name)
    if peppers is None or (records is None and written.file is not None):
        return None
    if records is not None:
        known = KnownKeys(written.cache_entries_max, FOREVER_US, 0, notes_uses=False)
        _check_versions(validated, (*where, "pepper_file"), records, peppers)
    else:
        ttl_us, stale_us = durations.parse(written.cache_ttl), durations.parse(written.stale_max)
        known = KnownKeys(written.cache_entries_max, ttl_us, stale_us)
    family = family_of(written.prefix, written.environment or "")
    keyring = Keyring(
        name=name, family=family, peppers=peppers, records=records, foreign=written.foreign_keys, known=known
    )
    file = None if written.file is None else files.path(written.file)
    return CompiledKeyring(keyring, files.path(written.pepper_file), file, durations.parse(written.lifetime))


def _peppers(validated: Validated, files: Files, where: PathParts, name: str) -> Peppers | None:
    before = len(validated.faults)
    path = files.readable(where, name)
    if len(validated.faults) > before:
        return None
    try:
        with Path(path).open("rb") as stream:
            return parse_peppers(stream.read(PEPPER_FILE_BYTES_MAX + 1))
    except OSError as error:
        reason = error.strerror or "not a usable path"
    except RecordError as error:
        reason = str(error)
    accepted = 'lines of VERSION: BASE64, or a JSON object {"VERSION": "BASE64"}, of at least 32 bytes each'
    validated.fault(where, f"the file {path} holds no peppers: {reason}", accepted)
    return None


def _records(validated: Validated, files: Files, name: str | None, keyring: str) -> Mapping[str, HeldKey] | None:
    if name is None:
        return None
    try:
        return read_records(files.path(name), keyring)
    except PolicyError as error:
        validated.faults.extend(error.faults)
        return None


def _check_versions(validated: Validated, where: PathParts, records: Mapping[str, HeldKey], peppers: Peppers) -> None:
    for key_id, held in records.items():
        for version, _ in held.hashes:
            if version not in peppers.versions:
                message = f"key {key_id} is hashed under pepper {version}, which is not there"
                validated.fault(where, message, "every pepper that a key is hashed under")
                return
