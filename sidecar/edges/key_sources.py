"""Where an issuer's JWKS document comes from: a URL, OpenID Connect Discovery, or a file."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.issuer import JwksFile, JwksUrl, OidcDiscovery
from sidecar.core.keys import parse_jwks
from sidecar.core.strict_json import JsonError, read_object
from sidecar.edges.http_client import NOTHING_KNOWN, FetchError, target_of

if TYPE_CHECKING:
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.keys import KeySet
    from sidecar.edges.http_client import Get, Validators

FILE_POLL_S = 5.0
"""Looking whether a file has changed costs next to nothing."""


class Document(NamedTuple):
    """A JWKS document as it came; `version` tells a later reading whether it has changed."""

    body: bytes
    max_age_s: float
    version: object


class Unchanged(NamedTuple):
    """The document is the one of the version that was asked about."""

    max_age_s: float


async def read_source(issuer: IssuerPolicy, version: object, get: Get) -> Document | Unchanged:
    """The issuer's JWKS document as it is now.

    Raises:
        FetchError: It cannot be had.
    """
    match issuer.keys:
        case JwksFile(path):
            return await asyncio.to_thread(_read_file, path, version, issuer.fetch.body_bytes_max)
        case JwksUrl(url):
            return await _read_url(issuer, url, version, get, discovered=False)
        case OidcDiscovery() as discovery:
            configuration = await get(discovery.url, issuer.fetch)
            url = _jwks_uri(configuration.body or b"", discovery.issuer)
            return await _read_url(issuer, url, version, get, discovered=_elsewhere(url, discovery.url, issuer))


def _elsewhere(url: str, named: str, issuer: IssuerPolicy) -> bool:
    """Whether a URL leads to another origin than the one that the policy names (RFC 6454 section 4)."""
    insecure = issuer.fetch.insecure_http
    there, here = target_of(url, insecure_http=insecure), target_of(named, insecure_http=insecure)
    return (there.secure, there.host, there.port) != (here.secure, here.host, here.port)


class _Version(NamedTuple):
    """What was fetched, and from where: the same validators at another URL say nothing.

    `max_age_s` holds for an answer that nothing has changed, unless that says otherwise (RFC 9111 section 4.3.4).
    """

    url: str
    validators: Validators
    max_age_s: int | None


async def _read_url(
    issuer: IssuerPolicy, url: str, version: object, get: Get, *, discovered: bool
) -> Document | Unchanged:
    held = version if isinstance(version, _Version) and version.url == url else None
    known = NOTHING_KNOWN if held is None else held.validators
    fetched = await get(url, issuer.fetch, known=known, discovered=discovered)
    max_age_s = fetched.max_age_s
    if max_age_s is None and fetched.body is None and held is not None:
        max_age_s = held.max_age_s
    pause_s = float(issuer.refresh_s if max_age_s is None else max_age_s)
    if fetched.body is None:
        return Unchanged(pause_s)
    return Document(fetched.body, pause_s, _Version(url, fetched.validators, max_age_s))


def parse_keys(body: bytes, issuer: IssuerPolicy) -> KeySet:
    """The keys of a document, by the issuer's limits.

    Raises:
        KeySetError: See `parse_jwks`.
    """
    symmetric = isinstance(issuer.keys, JwksFile) and issuer.keys.symmetric
    return parse_jwks(body, keys_max=issuer.keys_max, bytes_max=issuer.fetch.body_bytes_max, symmetric=symmetric)


def _jwks_uri(body: bytes, issuer: str) -> str:
    """OpenID Connect Discovery section 4.3: a document about another issuer says nothing about this one."""
    try:
        configuration = read_object(body)
    except JsonError as error:
        raise FetchError(f"the discovery document {error}") from None
    if configuration.get("issuer") != issuer:
        raise FetchError("the discovery document is about another issuer: its `issuer` must equal the policy's exactly")
    uri = configuration.get("jwks_uri")
    if not isinstance(uri, str):
        raise FetchError("the discovery document has no jwks_uri")
    return uri


def _read_file(path: str, version: object, bytes_max: int) -> Document | Unchanged:
    """A ConfigMap's files are replaced by swapping a link, which shows in the inode."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FetchError("the key file is not a regular file")
            now = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if now == version:
                return Unchanged(FILE_POLL_S)
            return Document(file.read(bytes_max + 1), FILE_POLL_S, now)
    except OSError as error:
        raise FetchError(f"the key file cannot be read: {error.strerror or type(error).__name__}") from None
