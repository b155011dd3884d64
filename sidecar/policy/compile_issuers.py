"""The `issuers` section, compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.core.issuer import (
    PROFILES,
    SYMMETRIC,
    FetchSettings,
    IssuerPolicy,
    JwksFile,
    JwksUrl,
    OidcDiscovery,
)
from sidecar.core.issuer import KeySource as CompiledKeySource
from sidecar.core.limits import US_PER_S
from sidecar.policy import durations
from sidecar.policy.faults import Wrong
from sidecar.policy.fields import is_loopback, parse_http_url
from sidecar.policy.tls_files import check_authorities, check_key_pair

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.policy.files import Files
    from sidecar.policy.issuer_sections import Fetch, Issuer
    from sidecar.policy.validate import Validated
    from sidecar.policy.yaml import PathParts


def compile_issuers(validated: Validated, files: Files) -> Mapping[str, IssuerPolicy]:
    """Issuers by the policy's names for them; what is wrong is added to the faults."""
    compiled: dict[str, IssuerPolicy] = {}
    named: dict[str, str] = {}
    for name, issuer in validated.document.issuers.items():
        where = ("issuers", name)
        first = named.setdefault(issuer.issuer, name)
        if first != name:
            line = validated.source.line_of(("issuers", first, "issuer"))
            message = f"the issuer is the same as that of {first!r} (line {line})"
            validated.fault((*where, "issuer"), message, "each `iss` once")
        compiled[name] = _compile(validated, files, where, name, issuer)
    return compiled


def _compile(validated: Validated, files: Files, where: PathParts, name: str, issuer: Issuer) -> IssuerPolicy:
    profile = PROFILES[issuer.profile]
    types = frozenset(text.lower().removeprefix("application/") for text in issuer.token_types or ())
    _check_audiences(validated, where, issuer)
    _check_profile(validated, where, issuer, types)
    if issuer.tenant is not None and issuer.tenant_claim is not None:
        validated.fault((*where, "tenant"), "tenant and tenant_claim are given together", "one of them")
    keys = _key_source(validated, files, where, issuer)
    _check_algorithms(validated, where, issuer, keys)
    return IssuerPolicy(
        name=name,
        issuer=issuer.issuer,
        audiences=frozenset(issuer.audiences),
        algorithms=frozenset(issuer.algorithms),
        keys=keys,
        profile=profile,
        token_types=types or profile.token_types,
        require_audience=issuer.require_audience,
        loose_audience=issuer.loose_audience,
        require_expiry=issuer.require_expiry,
        leeway_s=_whole_seconds(issuer.leeway),
        max_lifetime_s=None if issuer.max_lifetime is None else _whole_seconds(issuer.max_lifetime),
        max_age_s=None if issuer.max_age is None else _whole_seconds(issuer.max_age),
        required_claims=tuple(map(claim_path, issuer.required_claims)),
        forbidden_claims=tuple(map(claim_path, issuer.forbidden_claims)),
        scope_claim=claim_path(issuer.scope_claim),
        roles_claim=claim_path(issuer.roles_claim),
        tier_claim=() if issuer.tier_claim is None else claim_path(issuer.tier_claim),
        tenant_claim=() if issuer.tenant_claim is None else claim_path(issuer.tenant_claim),
        tenant=issuer.tenant or "",
        token_bytes_max=issuer.token_bytes_max,
        allow_missing_kid=issuer.allow_missing_kid,
        refresh_s=_whole_seconds(issuer.refresh),
        fetch=_fetch_settings(validated, files, where, issuer),
        keys_max=issuer.fetch.keys_max,
        keys_stale_s_max=_whole_seconds(issuer.keys_stale_max),
        keys_persist=_persisted(validated, files, (*where, "keys_persist"), issuer.keys_persist, keys),
        required=issuer.required,
    )


def _check_audiences(validated: Validated, where: PathParts, issuer: Issuer) -> None:
    if issuer.require_audience and not issuer.audiences:
        accepted = "at least one audience, or require_audience: false"
        validated.fault((*where, "audiences"), "no audience is accepted", accepted)
    if not issuer.require_audience and issuer.audiences:
        accepted = "audiences, or require_audience: false"
        validated.fault((*where, "require_audience"), "audiences are listed but not required", accepted)


def _check_profile(validated: Validated, where: PathParts, issuer: Issuer, types: frozenset[str]) -> None:
    """What a profile does not leave to choose."""
    profile = PROFILES[issuer.profile]
    if issuer.loose_audience and not profile.may_loosen_audience:
        message = f"the profile {profile.name} compares audiences exactly"
        validated.fault((*where, "loose_audience"), message, "false, or profile: compat")
    if not profile.requires_access_token_claims:
        return
    if types and types != profile.token_types:
        message = f"the profile {profile.name} accepts access tokens alone"
        validated.fault((*where, "token_types"), message, "[at+jwt], or another profile")
    for key, required in (("require_audience", issuer.require_audience), ("require_expiry", issuer.require_expiry)):
        if not required:
            message = f"the profile {profile.name} requires the claim"
            validated.fault((*where, key), message, "true, or another profile")


def _check_algorithms(validated: Validated, where: PathParts, issuer: Issuer, keys: CompiledKeySource) -> None:
    """A key that everyone may know never serves an algorithm whose key is a secret, nor the other way round."""
    symmetric = isinstance(keys, JwksFile) and keys.symmetric
    for n, algorithm in enumerate(issuer.algorithms):
        if algorithm in SYMMETRIC and not symmetric:
            message = f"{algorithm} needs secret keys, which are never taken from a public set"
            validated.fault((*where, "algorithms", n), message, "keys: {symmetric_file: FILE}, or another algorithm")
        elif algorithm not in SYMMETRIC and symmetric:
            message = f"{algorithm} needs public keys, and the file holds secrets"
            validated.fault((*where, "algorithms", n), message, f"of {', '.join(sorted(SYMMETRIC))}")


def _fetch_settings(validated: Validated, files: Files, where: PathParts, issuer: Issuer) -> FetchSettings:
    fetch = issuer.fetch
    at = (*where, "fetch")
    ca_file = files.optional((*where, "ca_file"), issuer.ca_file)
    check_authorities(validated, (*where, "ca_file"), ca_file)
    certificate = files.optional((*at, "client_certificate"), fetch.client_certificate)
    key = files.optional((*at, "client_key"), fetch.client_key)
    if (certificate is None) != (key is None):
        given, missing = ("client_certificate", "client_key") if key is None else ("client_key", "client_certificate")
        validated.fault((*at, given), f"{missing} is missing", "both, or neither")
    check_key_pair(validated, at, certificate, key, prefix="client_")
    return FetchSettings(
        insecure_http=issuer.insecure_http,
        ca_file=ca_file,
        client_certificate=certificate,
        client_key=key,
        proxy=_proxy(validated, where, issuer),
        headers=_headers(validated, files, (*at, "headers"), fetch),
        bearer_token_file=files.optional((*at, "bearer_token_file"), fetch.bearer_token_file),
        timeout_s=durations.seconds(issuer.fetch_timeout),
        connect_timeout_s=durations.seconds(fetch.connect_timeout),
        read_timeout_s=durations.seconds(fetch.read_timeout),
        body_bytes_max=fetch.body_bytes_max,
        private_addresses=fetch.private_addresses,
    )


def _proxy(validated: Validated, where: PathParts, issuer: Issuer) -> str | None:
    text = issuer.fetch.proxy
    if text is None:
        return None
    url = parse_http_url(text)
    if url.scheme != "http" or url.path not in {"", "/"} or url.query:
        validated.fault(
            (*where, "fetch", "proxy"), "it is not a proxy's URL", "http://host:port, and nothing behind it"
        )
    if issuer.insecure_http:
        accepted = "insecure_http: false, or no proxy"
        validated.fault((*where, "fetch", "proxy"), "http:// is not fetched through a proxy", accepted)
    return text


def _headers(validated: Validated, files: Files, where: PathParts, fetch: Fetch) -> tuple[tuple[str, str], ...]:
    headers: dict[str, str] = {}
    for name, file in fetch.headers.items():
        key = name.lower()
        if key in HEADERS_OF_REQUESTS or (key == "authorization" and fetch.bearer_token_file is not None):
            validated.fault(
                (*where, name), f"the header {key!r} is set already", "a header that the client does not set"
            )
        if key in headers:
            validated.fault((*where, name), f"the header {key!r} is set twice", "each header once, in any case")
        headers[key] = files.readable((*where, name), file)
    return tuple(headers.items())


def _persisted(
    validated: Validated, files: Files, where: PathParts, name: str | None, keys: CompiledKeySource
) -> str | None:
    if name is None:
        return None
    path = files.path(name)
    if isinstance(keys, JwksFile):
        validated.fault(where, "keys that are in a file already need not be kept in another", "keys from a URL")
    elif not path.parent.is_dir():
        validated.fault(where, f"the directory {path.parent} does not exist", "a file in a directory that exists")
    return str(path)


HEADERS_OF_REQUESTS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "if-modified-since",
        "if-none-match",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
"""What the client sets itself, and what frames messages."""


def claim_path(written: str | list[str]) -> tuple[str, ...]:
    """The names on the way to a claim: text is split at its dots, a list is taken as it is."""
    return tuple(written.split(".")) if isinstance(written, str) else tuple(written)


def _whole_seconds(duration: str) -> int:
    return durations.parse(duration) // US_PER_S


def _key_source(validated: Validated, files: Files, where: PathParts, issuer: Issuer) -> CompiledKeySource:
    kind, value = issuer.keys.chosen
    at = (*where, "keys", kind)
    if kind in {"jwks_file", "symmetric_file"}:
        return JwksFile(files.readable(at, value), symmetric=kind == "symmetric_file")
    if kind == "jwks_url":
        _check_url(validated, at, value, insecure_http=issuer.insecure_http)
        return JwksUrl(value)
    at = (*where, "issuer")
    try:
        parse_http_url(issuer.issuer)
    except Wrong as wrong:
        message = f"discovery needs the issuer's URL: {wrong.message}"
        validated.fault(at, message, f"{wrong.accepted}; or keys: {{jwks_url: URL}}")
    else:
        _check_url(validated, at, issuer.issuer, insecure_http=issuer.insecure_http)
    return OidcDiscovery(issuer.issuer)


def _check_url(validated: Validated, where: PathParts, text: str, *, insecure_http: bool) -> None:
    url = parse_http_url(text)
    if url.scheme == "https":
        return
    if not is_loopback(url.hostname or ""):
        validated.fault(where, "keys would be fetched over http:// from another machine", "https://")
    elif not insecure_http:
        validated.fault(where, "keys would be fetched over http://", "https://, or insecure_http: true for loopback")
