"""base64url as JOSE writes it (RFC 7515 section 2): no padding, no other characters, and one spelling for each value.

Decoders that forgive let one signature be spelled in many ways, which walks around whatever is keyed by the token's
text. Here the unused bits of the last character must be zero, as RFC 4648 section 3.5 permits to demand.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from binascii import a2b_base64

ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_PADDING = (b"", None, b"==", b"=")
_CANONICAL_LAST = (ALPHABET, b"", b"AQgw", b"AEIMQUYcgkosw048")
"""By length modulo 4: what the last character may be, so that the bits that it does not need are zero."""


class Base64UrlError(ValueError):
    """Not the one spelling of any value. The message names the fault and quotes nothing."""


def encode(value: bytes) -> str:
    """The one spelling of a value."""
    return urlsafe_b64encode(value).rstrip(b"=").decode("ascii")


def decode(text: bytes) -> bytes:
    """The value that `text` spells.

    Raises:
        Base64UrlError: A character outside of the alphabet, an impossible length, or unused bits that are not zero.
    """
    if text.translate(None, ALPHABET):
        raise Base64UrlError("has a character outside of the base64url alphabet")
    return decode_checked(text)


def decode_checked(text: bytes) -> bytes:
    """As `decode`, for text whose characters are already known to be in `ALPHABET`."""
    rest = len(text) % 4
    padding = _PADDING[rest]
    if padding is None:
        raise Base64UrlError("has a length that no value has")
    if rest and text[-1] not in _CANONICAL_LAST[rest]:
        raise Base64UrlError("has unused bits that are not zero")
    return a2b_base64(text.translate(_TO_STANDARD) + padding)
