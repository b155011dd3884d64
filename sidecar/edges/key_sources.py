"""Where an issuer's JWKS document comes from: a URL, OpenID Connect Discovery, or a file."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.issuer import JWKS_BYTES_MAX, JwksFile, JwksUrl, OidcDiscovery
from sidecar.core.strict_json import JsonError, read_object
from sidecar.edges.http_client import FetchError

if TYPE_CHECKING:
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.edges.http_client import Fetched, Get

FILE_POLL_S = 5.0
"""Looking whether a file has changed costs next to nothing."""


class Document(NamedTuple):
    """A JWKS document as it came; `version` tells a later reading whether it has changed, None where nothing can."""

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

    async def fetch(url: str) -> Fetched:
        return await get(
            url, timeout_s=issuer.fetch_timeout_s, insecure_http=issuer.insecure_http, ca_file=issuer.ca_file
        )

    match issuer.keys:
        case JwksFile(path):
            return await asyncio.to_thread(_read_file, path, version)
        case JwksUrl(url):
            fetched = await fetch(url)
            return _document(fetched, issuer)
        case OidcDiscovery() as discovery:
            configuration = await fetch(discovery.url)
            fetched = await fetch(_jwks_uri(configuration.body, discovery.issuer))
            return _document(fetched, issuer)


def _document(fetched: Fetched, issuer: IssuerPolicy) -> Document:
    max_age_s = issuer.refresh_s if fetched.max_age_s is None else fetched.max_age_s
    return Document(fetched.body, float(max_age_s), None)


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


def _read_file(path: str, version: object) -> Document | Unchanged:
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
            return Document(file.read(JWKS_BYTES_MAX + 1), FILE_POLL_S, now)
    except OSError as error:
        raise FetchError(f"the key file cannot be read: {error.strerror or type(error).__name__}") from None
