"""The `internal_tokens` section, and the private keys that it names, compiled."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from sidecar.core.internal_tokens import OWN_CLAIMS, InternalTokens, SigningKey
from sidecar.core.limits import US_PER_S
from sidecar.policy import durations
from sidecar.policy.faults import Wrong, shown
from sidecar.policy.fields import TOKEN_PATTERN, Between, Duration, Form, Text, parse_header, parse_upstream_header
from sidecar.policy.model import Model

if TYPE_CHECKING:
    from sidecar.policy.files import Files
    from sidecar.policy.validate import Validated

KEYS_MAX: Final = 16
"""Keys in the directory: one that signs, the next ones, and those of yesterday."""

COPIED_CLAIMS_MAX: Final = 32
AUDIENCES_MAX: Final = 16

TYPE_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$"
CLAIM_PATTERN: Final = r"^[!-~]{1,256}$"

KEY_NAMES: Final = "files named by the time in UTC from which they sign, such as 2026-12-01.pem or 2026-12-01T0600Z.pem"

_KEY_NAME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:T([0-9]{4})Z)?\.pem")


def parse_token_header(text: str) -> str:
    """The header that carries the token, in lower case."""
    name = parse_header(text)
    return name if name == "authorization" else parse_upstream_header(name)


def parse_token_type(text: str) -> str:
    """A `typ` header, without `application/` (RFC 7515 section 4.1.9)."""
    if not re.fullmatch(TYPE_PATTERN[1:-1], text):
        raise Wrong(f"{shown(text)} is not a token's type", "a type such as at+jwt, without application/")
    return text


def parse_copied_claim(text: str) -> str:
    """A claim to copy: none that the sidecar says itself."""
    accepted = "the name of a claim such as email"
    if text in OWN_CLAIMS:
        raise Wrong(f"the claim {text!r} is the sidecar's own", accepted)
    if not re.fullmatch(CLAIM_PATTERN[1:-1], text):
        raise Wrong(f"{shown(text)} is not a claim's name", accepted)
    return text


class InternalTokensSection(Model):
    """JWTs that the sidecar signs for upstreams, in place of the credentials that callers show."""

    issuer: Text = Field(description="`iss`: the name of who vouches.", examples=["https://sidecar.shop.internal"])
    audiences: list[Text] = Field(
        min_length=1,
        max_length=AUDIENCES_MAX,
        description="`aud`, for rules that name none of their own.",
        examples=[["shop-upstreams"]],
    )
    keys: Text = Field(
        description="A directory of private keys in PEM, Ed25519 or EC P-256, at most 16. Each is named by the time in "
        "UTC from which it signs: `2026-12-01.pem` or `2026-12-01T0600Z.pem`. Read again when it changes.",
        examples=["internal-keys"],
    )
    lifetime: Annotated[Duration, Between("10s", "1h", "1s")] = Field(
        "2m",
        description="How long a token lives, at most: it never outlives the caller's own credential.",
        examples=["2m"],
    )
    header: Annotated[str, Form(parse_token_header, TOKEN_PATTERN)] = Field(
        "authorization",
        description="The header that carries it: `authorization` as a bearer token, any other without a scheme. A "
        "client's own header of this name is always removed.",
        examples=["authorization", "x-internal-token"],
    )
    token_type: Annotated[str, Form(parse_token_type, TYPE_PATTERN)] = Field(
        "at+jwt", description="The `typ` header.", examples=["at+jwt", "JWT"]
    )
    claims: list[Annotated[str, Form(parse_copied_claim, CLAIM_PATTERN)]] = Field(
        [],
        max_length=COPIED_CLAIMS_MAX,
        description="Claims that are copied from the credential, besides `acr`, `amr`, `auth_time` and `act`.",
        examples=[["email"]],
    )


def compile_internal_tokens(validated: Validated, files: Files) -> InternalTokens | None:
    """How tokens are made, None without the section; what is wrong is added to the faults."""
    section = validated.document.internal_tokens
    if section is None:
        return None
    return InternalTokens(
        issuer=section.issuer,
        audiences=tuple(section.audiences),
        lifetime_s=durations.parse(section.lifetime) // US_PER_S,
        token_type=section.token_type,
        claims=tuple(section.claims),
        directory=str(files.path(section.keys)),
        keys=_keys(validated, files.path(section.keys)),
    )


def _keys(validated: Validated, directory: Path) -> tuple[SigningKey, ...]:
    where = ("internal_tokens", "keys")
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".pem" and not path.name.startswith("."))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        validated.fault(where, f"the directory {directory} cannot be read: {reason}", f"a directory of {KEY_NAMES}")
        return ()
    if not paths:
        validated.fault(where, f"the directory {directory} holds no key", KEY_NAMES)
    if len(paths) > KEYS_MAX:
        message = f"the directory {directory} holds {len(paths)} keys"
        validated.fault(where, message, f"at most {KEYS_MAX}: remove those that have signed long ago")
        return ()
    keys: dict[int, SigningKey] = {}
    for path in paths:
        key = _key(validated, path)
        if key is None:
            continue
        if key.signs_from_us in keys or any(key.kid == other.kid for other in keys.values()):
            validated.fault(where, f"the file {path} repeats the time or the key of another", "each once")
        keys[key.signs_from_us] = key
    return tuple(keys[at] for at in sorted(keys))


def _key(validated: Validated, path: Path) -> SigningKey | None:
    # here, since who signs nothing need not pay for it
    from sidecar.core.private_keys import KEY_BYTES_MAX, KeyFileError  # noqa: PLC0415
    from sidecar.core.signing_keys import ACCEPTED, read_signing_key  # noqa: PLC0415

    where = ("internal_tokens", "keys")
    signs_from_us = _signs_from_us(path.name)
    if signs_from_us is None:
        validated.fault(where, f"the file name {shown(path.name)} says no time", KEY_NAMES)
        return None
    try:
        with path.open("rb") as stream:
            return read_signing_key(stream.read(KEY_BYTES_MAX + 1), signs_from_us)
    except OSError as error:
        validated.fault(where, f"the file {path} cannot be read: {error.strerror}", ACCEPTED)
    except KeyFileError as error:
        validated.fault(where, f"the file {path} {error}", ACCEPTED)
    return None


def _signs_from_us(name: str) -> int | None:
    """The time that a key's file is named by; None where it is none."""
    found = _KEY_NAME.fullmatch(name)
    if found is None:
        return None
    try:
        at = datetime.strptime(f"{found[1]} {found[2] or '0000'}", "%Y-%m-%d %H%M").replace(tzinfo=UTC)
    except ValueError:
        return None
    return int(at.timestamp()) * US_PER_S
