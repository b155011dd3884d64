"""The `issuers` section, compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.core.issuer import IssuerPolicy, JwksFile, JwksUrl, OidcDiscovery
from sidecar.core.issuer import KeySource as CompiledKeySource
from sidecar.core.limits import US_PER_S
from sidecar.policy import durations
from sidecar.policy.faults import Wrong
from sidecar.policy.fields import is_loopback, parse_http_url
from sidecar.policy.tls_files import check_authorities

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.policy.document import Issuer
    from sidecar.policy.files import Files
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
    if issuer.require_audience and not issuer.audiences:
        accepted = "at least one audience, or require_audience: false"
        validated.fault((*where, "audiences"), "no audience is accepted", accepted)
    if not issuer.require_audience and issuer.audiences:
        accepted = "audiences, or require_audience: false"
        validated.fault((*where, "require_audience"), "audiences are listed but not required", accepted)
    ca_file = files.optional((*where, "ca_file"), issuer.ca_file)
    check_authorities(validated, (*where, "ca_file"), ca_file)
    return IssuerPolicy(
        name=name,
        issuer=issuer.issuer,
        audiences=frozenset(issuer.audiences),
        algorithms=frozenset(issuer.algorithms),
        keys=_key_source(validated, files, where, issuer),
        token_types=frozenset(text.lower().removeprefix("application/") for text in issuer.token_types),
        require_audience=issuer.require_audience,
        require_expiry=issuer.require_expiry,
        leeway_s=_whole_seconds(issuer.leeway),
        max_lifetime_s=None if issuer.max_lifetime is None else _whole_seconds(issuer.max_lifetime),
        scope_claim=claim_path(issuer.scope_claim),
        roles_claim=claim_path(issuer.roles_claim),
        token_bytes_max=issuer.token_bytes_max,
        insecure_http=issuer.insecure_http,
        ca_file=ca_file,
        allow_missing_kid=issuer.allow_missing_kid,
        refresh_s=_whole_seconds(issuer.refresh),
        fetch_timeout_s=durations.parse(issuer.fetch_timeout) / US_PER_S,
        keys_stale_s_max=_whole_seconds(issuer.keys_stale_max),
        required=issuer.required,
    )


def claim_path(written: str | list[str]) -> tuple[str, ...]:
    """The names on the way to a claim: text is split at its dots, a list is taken as it is."""
    return tuple(written.split(".")) if isinstance(written, str) else tuple(written)


def _whole_seconds(duration: str) -> int:
    return durations.parse(duration) // US_PER_S


def _key_source(validated: Validated, files: Files, where: PathParts, issuer: Issuer) -> CompiledKeySource:
    kind, value = issuer.keys.chosen
    at = (*where, "keys", kind)
    if kind == "jwks_file":
        return JwksFile(files.readable(at, value))
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
