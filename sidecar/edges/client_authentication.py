"""How this client proves itself to an introspection endpoint: the secret, key or certificate, as its files are now.

Files are looked at before a question, at most once in `LOOK_S`, and read again when they have changed. One that has
become unusable changes nothing: what was read last stays in use, and `last_error` says why.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote_plus

from sidecar.core.introspection import ClientSecretBasic, PrivateKeyJwt, TlsClientAuth
from sidecar.core.secret import Secret
from sidecar.edges.file_watch import signatures
from sidecar.edges.http_client import FetchError

if TYPE_CHECKING:
    from sidecar.core.client_assertion import Signer
    from sidecar.core.introspection import IntrospectionPolicy

LOOK_S = 1.0
FILE_BYTES_MAX = 64 * 1024

_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class Proof(NamedTuple):
    """What goes with one question; never shown."""

    headers: dict[str, str]
    form: list[tuple[str, str]]
    tls: ssl.SSLContext | None

    def __repr__(self) -> str:
        return "Proof(***)"


@dataclass(frozen=True, slots=True)
class _Material:
    """What the files held."""

    secret: Secret | None = None
    signer: Signer | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)


class ClientAuthenticator:
    """Proves this client to one endpoint.

    Attributes:
        last_error: Why the files could not be read when they were last looked at, "" where they could.
    """

    def __init__(self, policy: IntrospectionPolicy, *, look_s: float = LOOK_S) -> None:
        self.last_error = ""
        self._policy = policy
        self._look_s = look_s
        self._looked_at: float | None = None
        self._signature: object = None
        self._material: _Material | None = None
        self._looking = asyncio.Lock()

    async def proof(self) -> Proof:
        """The proof for one question.

        Raises:
            FetchError: The files have never been usable.
        """
        now = asyncio.get_running_loop().time()
        if self._looked_at is None or now - self._looked_at >= self._look_s:
            async with self._looking:
                if self._looked_at is None or now - self._looked_at >= self._look_s:
                    await asyncio.to_thread(self._look)
                    self._looked_at = asyncio.get_running_loop().time()
        material = self._material
        if material is None:
            raise FetchError(self.last_error)
        return self._prove(material)

    def _prove(self, material: _Material) -> Proof:
        client = self._policy.client
        if isinstance(client, ClientSecretBasic) and material.secret is not None:
            pair = f"{quote_plus(client.client_id)}:{quote_plus(material.secret.reveal())}"
            return Proof({"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}, [], material.tls)
        if isinstance(client, PrivateKeyJwt) and material.signer is not None:
            now_s = time.time_ns() // 1_000_000_000
            jti = secrets.token_urlsafe(16)
            assertion = material.signer.assertion(client.client_id, client.audience, client.key_id, jti, now_s)
            form = [("client_assertion_type", _ASSERTION_TYPE), ("client_assertion", assertion)]
            return Proof({}, form, material.tls)
        return Proof({}, [("client_id", client.client_id)], material.tls)

    def _look(self) -> None:
        """Read the files anew if they have changed; on a thread, since a file system can hang."""
        now = signatures(self._paths())
        if self._material is not None and now == self._signature:
            return
        try:
            self._material = self._load()
        except FetchError as error:
            self.last_error = str(error)
        else:
            self._signature = now
            self.last_error = ""

    def _paths(self) -> list[str]:
        client, ca_file = self._policy.client, self._policy.ca_file
        paths = [] if ca_file is None else [ca_file]
        match client:
            case ClientSecretBasic(_, secret_file):
                return [*paths, secret_file]
            case PrivateKeyJwt(key_file=key_file):
                return [*paths, key_file]
            case TlsClientAuth(_, certificate_file, key_file):
                return [*paths, certificate_file, key_file]

    def _load(self) -> _Material:
        client = self._policy.client
        tls = self._context()
        match client:
            case ClientSecretBasic(_, secret_file):
                return _Material(secret=_secret(secret_file), tls=tls)
            case PrivateKeyJwt(key_file=key_file):
                return _Material(signer=_signer(key_file), tls=tls)
            case TlsClientAuth():
                return _Material(tls=tls)

    def _context(self) -> ssl.SSLContext | None:
        policy = self._policy
        if not policy.url.startswith("https://"):
            return None
        try:
            context = ssl.create_default_context(cafile=policy.ca_file)
        except OSError as error:
            raise FetchError(f"the CA file cannot be used: {_why(error)}") from None
        if isinstance(policy.client, TlsClientAuth):
            try:
                context.load_cert_chain(policy.client.certificate_file, policy.client.key_file, password=lambda: "")
            except OSError as error:
                raise FetchError(f"the client certificate and its key cannot be used: {_why(error)}") from None
        return context


def _secret(path: str) -> Secret:
    try:
        text = _read(path, "secret").decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable():
        raise FetchError("the secret file holds no text on one line")
    return Secret(text)


def _signer(path: str) -> Signer:
    # parsing private keys: only for those who sign
    from sidecar.core.client_assertion import Signer  # noqa: PLC0415
    from sidecar.core.private_keys import KeyFileError  # noqa: PLC0415

    try:
        return Signer(_read(path, "key"))
    except KeyFileError as error:
        raise FetchError(f"the key file {error}") from None


def _read(path: str, what: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise FetchError(f"the {what} file cannot be read: {_why(error)}") from None
    if len(raw) > FILE_BYTES_MAX:
        raise FetchError(f"the {what} file has more than {FILE_BYTES_MAX} bytes")
    return raw


def _why(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
