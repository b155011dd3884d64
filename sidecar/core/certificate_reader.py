"""What a client certificate says (RFC 5280); imported where a policy first needs it: it brings much along."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from typing import NamedTuple, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509 import verification

CERTIFICATES_KEPT_MAX = 512
"""Certificates that stay read, 3 KiB each as usual: 40 us less for a client that comes again."""

ROOTS_KEPT_MAX = 16

_T = TypeVar("_T", bound=x509.ExtensionType)

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


_UNREADABLE = (
    ValueError,
    TypeError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
    CryptographyDeprecationWarning,  # where warnings are errors
)


class CertificateError(ValueError):
    """The bytes are no certificate that can be read. The message quotes nothing of it."""


class Certificate(NamedTuple):
    """What identifies a client, all as the certificate has it; nothing is judged.

    Attributes:
        uris, dns_names: The subject's alternative names of these kinds, in order.
        common_names: Of the subject.
        not_before_us, not_after_us: Microseconds since the epoch, both included.
        is_authority: Its key signs certificates.
    """

    uris: tuple[str, ...]
    dns_names: tuple[str, ...]
    common_names: tuple[str, ...]
    not_before_us: int
    not_after_us: int
    is_authority: bool


@lru_cache(maxsize=CERTIFICATES_KEPT_MAX)
def read_certificate(der: bytes) -> Certificate:
    """The certificate whose DER this is.

    Raises:
        CertificateError: It is none, or has a part that cannot be read.
    """
    try:
        read = _read(x509.load_der_x509_certificate(der))
    except _UNREADABLE:
        read = None
    if read is None:
        raise CertificateError("it is not a certificate that can be read")
    return read


def _read(certificate: x509.Certificate) -> Certificate | None:
    if certificate.serial_number <= 0:  # RFC 5280 section 4.1.2.2
        return None
    extensions = certificate.extensions
    names = _extension(extensions, x509.SubjectAlternativeName)
    constraints = _extension(extensions, x509.BasicConstraints)
    usage = _extension(extensions, x509.KeyUsage)
    common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return Certificate(
        tuple(names.get_values_for_type(x509.UniformResourceIdentifier)) if names is not None else (),
        tuple(names.get_values_for_type(x509.DNSName)) if names is not None else (),
        tuple(str(attribute.value) for attribute in common),
        (certificate.not_valid_before_utc - _EPOCH) // _MICROSECOND,
        (certificate.not_valid_after_utc - _EPOCH) // _MICROSECOND,
        (constraints is not None and constraints.ca) or (usage is not None and usage.key_cert_sign),
    )


def _extension(extensions: x509.Extensions, kind: type[_T]) -> _T | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def is_issued_by(der: bytes, roots_pem: bytes, now_us: int) -> bool:
    """Whether one of the roots vouches for a client's certificate at this time (RFC 5280 section 6).

    Certificates between the two must be among the roots: a gateway passes on the client's own alone.
    """
    store = _store(roots_pem)
    moment = _EPOCH + dt.timedelta(microseconds=now_us)
    verifier = verification.PolicyBuilder().store(store).time(moment).build_client_verifier()
    try:
        verifier.verify(x509.load_der_x509_certificate(der), [])
    except (verification.VerificationError, *_UNREADABLE):
        return False
    return True


@lru_cache(maxsize=ROOTS_KEPT_MAX)
def _store(roots_pem: bytes) -> verification.Store:
    return verification.Store(x509.load_pem_x509_certificates(roots_pem))


def check_roots(roots_pem: bytes) -> None:
    """Refuse roots that `is_issued_by` could not use.

    Raises:
        CertificateError: There are none, or one cannot be read.
    """
    try:
        _store(roots_pem)
    except ValueError:
        raise CertificateError("it holds no certificates that can be read") from None
