"""The last good keys of an issuer in a file, so that a restart while the issuer is away does not lose them.

Only public keys that are in use are written. What is read is trusted no more than what is fetched: it must be of the
same issuer and source, within the same limits, no older than keys may become, and in a file that nobody else can write.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.keys import JWKS_VALUES_MAX, KeySetError, usable_part
from sidecar.core.strict_json import JsonError, read_object
from sidecar.edges.key_sources import parse_keys

if TYPE_CHECKING:
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.keys import KeySet

VERSION = 1
ENVELOPE_BYTES_MAX = 4 * 1024
"""What the file may hold besides the keys, which are at most as long as a document."""
CLOCK_BACK_S_MAX = 60.0
"""How far the clock may have been set back since the file was written."""


class KeptKeysError(Exception):
    """The keys cannot be read, or cannot be kept. The message says why, without the path."""


class Kept(NamedTuple):
    """Keys as they were kept, and how long ago they were fetched."""

    keys: KeySet
    age_s: float


def read(path: str, issuer: IssuerPolicy, now_s: float) -> Kept | None:
    """The keys of an issuer that were kept; None where there is no file. `now_s`: seconds since the epoch.

    Raises:
        KeptKeysError: What is there cannot be used.
    """
    try:
        body = _read(path, issuer.fetch.body_bytes_max + ENVELOPE_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeptKeysError(f"the file of kept keys cannot be read: {error.strerror or type(error).__name__}") from None
    try:
        document = read_object(body, JWKS_VALUES_MAX)
    except JsonError as error:
        raise KeptKeysError(f"the file of kept keys {error}") from None
    if document.get("version") != VERSION or document.get("source") != _source(issuer):
        raise KeptKeysError(
            "the file of kept keys is of another issuer or source, or of another version of this program"
        )
    fetched_at = document.get("fetched_at")
    if isinstance(fetched_at, bool) or not isinstance(fetched_at, int):
        raise KeptKeysError("the file of kept keys does not say when they were fetched")
    age_s = now_s - fetched_at
    if not -CLOCK_BACK_S_MAX <= age_s < issuer.keys_stale_s_max:
        raise KeptKeysError(f"the kept keys are {age_s:.0f} s old, not 0 to {issuer.keys_stale_s_max}")
    try:
        keys = parse_keys(json.dumps({"keys": document.get("keys")}).encode(), issuer)
    except KeySetError as error:
        raise KeptKeysError(f"the kept keys cannot be used: {error}") from None
    return Kept(keys, max(0.0, age_s))


def write(path: str, issuer: IssuerPolicy, body: bytes, keys: KeySet, now_s: float) -> None:
    """Keep what of a document became `keys`, in one step, in a file that only this user can read and write.

    Raises:
        KeptKeysError: The file cannot be written.
    """
    kept = usable_part(body, keys)
    text = json.dumps({"version": VERSION, "source": _source(issuer), "fetched_at": int(now_s), "keys": kept})
    target = Path(path)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise KeptKeysError(f"the keys cannot be kept: {error.strerror or type(error).__name__}") from None


def _source(issuer: IssuerPolicy) -> str:
    """Names issuer and source; a digest, since URLs may hold what is not for everyone."""
    return sha256(json.dumps([issuer.issuer, repr(issuer.keys)]).encode()).hexdigest()


def _read(path: str, bytes_max: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeptKeysError("the file of kept keys is not a regular file")
        if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise KeptKeysError("others can write the file of kept keys: its mode must be 0644 at most, its owner ours")
        body = file.read(bytes_max + 1)
    if len(body) > bytes_max:
        raise KeptKeysError(f"the file of kept keys is larger than {bytes_max} bytes")
    return body
