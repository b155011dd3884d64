"""The PEM files that a policy names, tried as serving will use them: what OpenSSL refuses is a fault of the policy.

Files that cannot be read at all are `Files.readable`'s to report, and passed over here.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.policy.validate import Validated
    from sidecar.policy.yaml import PathParts

_CERTIFICATES = "a PEM file of certificates"
_KEY = "a PEM file with the certificate's private key, not encrypted"


def check_authorities(validated: Validated, where: PathParts, path: str | None) -> None:
    """A file of certificates to trust; None where none is named."""
    if path is not None:
        _certificates(validated, where, path)


def check_key_pair(
    validated: Validated, where: PathParts, certificate: str | None, key: str | None, prefix: str = ""
) -> None:
    """A certificate chain and its private key; None where not named.

    They are at `certificate` and `key` below `where`, with the prefix in front of both names.
    """
    if certificate is None or key is None:
        return
    if not _certificates(validated, (*where, f"{prefix}certificate"), certificate):
        return
    try:
        # asked only for an encrypted key: an empty password fails, where no callback at all asks the terminal
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        message = f"the file {key} holds no key that fits the certificate in {certificate}{_reason(error)}"
        validated.fault((*where, f"{prefix}key"), message, _KEY)
    except (OSError, ValueError):
        return


def _certificates(validated: Validated, where: PathParts, path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        validated.fault(where, f"the file {path} holds no certificates{_reason(error)}", _CERTIFICATES)
        return False
    except (OSError, ValueError):
        return False
    return True


def _reason(error: ssl.SSLError) -> str:
    """What OpenSSL calls it, where it says so."""
    return f" ({error.reason.replace('_', ' ').lower()})" if error.reason else ""
