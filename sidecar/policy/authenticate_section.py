"""A rule's `authenticate` as it is written: which credentials, where each is looked for, and what must hold of them."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import ConfigDict, Field, model_validator

from sidecar.core.authn import CREDENTIALS_MAX
from sidecar.policy.faults import Wrong, shown
from sidecar.policy.fields import (
    HEADERS_NEVER_SET,
    TOKEN_PATTERN,
    Between,
    Duration,
    Form,
    Name,
    Printable,
    Text,
    parse_header,
)
from sidecar.policy.model import Choice, Model

CREDENTIAL_HEADER_PATTERN: Final = r"^[!#$%&'*+.^`|~0-9A-Za-z-]+$"
PARAMETER_PATTERN: Final = r"^[A-Za-z0-9._~-]{1,64}$"
ACR_PATTERN: Final = r"^[!#-\[\]-~]+$"

_NO_CREDENTIAL: Final = (HEADERS_NEVER_SET - {"authorization", "proxy-authorization"}) | {"cookie", "dpop"}


def parse_credential_header(text: str) -> str:
    """The header that holds a credential, in lower case."""
    name = parse_header(text)
    accepted = "authorization, or a header such as x-api-key"
    if "_" in name:
        raise Wrong(
            f"the header {name!r} has an underscore", f"{name.replace('_', '-')!r}: servers confuse '_' and '-'"
        )
    if name in _NO_CREDENTIAL:
        raise Wrong(f"the header {name!r} holds no credential by itself", accepted)
    return name


def parse_token_text(text: str) -> str:
    """A scheme's or a cookie's name: a token (RFC 9110 section 5.6.2)."""
    parse_header(text)
    return text


def parse_parameter(text: str) -> str:
    """A query parameter's name, which needs no encoding."""
    if not all(char.isascii() and (char.isalnum() or char in "._~-") for char in text) or not 0 < len(text) <= 64:
        raise Wrong(f"{shown(text)} is not a parameter's name", "up to 64 letters, digits, '.', '_', '~' and '-'")
    return text


def parse_acr(text: str) -> str:
    """An authentication context class: values of a challenge are separated by spaces (RFC 9470 section 3)."""
    if not text or not text.isascii() or not text.isprintable() or not {" ", '"', "\\"}.isdisjoint(text):
        raise Wrong(f"{shown(text)} is not an acr value", "printable ASCII text without spaces, quotes and backslashes")
    return text


CredentialHeader: TypeAlias = Annotated[str, Form(parse_credential_header, CREDENTIAL_HEADER_PATTERN)]
TokenText: TypeAlias = Annotated[str, Form(parse_token_text, TOKEN_PATTERN)]
ParameterName: TypeAlias = Annotated[str, Form(parse_parameter, PARAMETER_PATTERN)]
Acr: TypeAlias = Annotated[str, Form(parse_acr, ACR_PATTERN)]


class CredentialPlace(Model):
    """The one place where a credential is looked for."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [place]} for place in ("header", "cookie", "query")]}
    )

    header: CredentialHeader | None = Field(
        None, description="A header; with `scheme`, what follows the scheme, else the whole.", examples=["x-api-key"]
    )
    scheme: TokenText | None = Field(
        None,
        description="The scheme before the credential, in whatever case. Without it: in `authorization`, `Bearer` for "
        "tokens and `ApiKey` for API keys; in other headers, none.",
        examples=["ApiKey"],
    )
    cookie: TokenText | None = Field(
        None,
        description="A cookie. Browsers send it with requests that other sites make: see that they cannot harm.",
        examples=["session"],
    )
    query: ParameterName | None = Field(
        None,
        description="A query parameter. URLs end up in logs and histories: for what cannot send a header.",
        examples=["access_token"],
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if len(self.model_fields_set & {"header", "cookie", "query"}) != 1:
            raise Wrong("it is not said where, or said twice", "exactly one of header, cookie, query")
        if self.scheme is not None and self.header is None:
            raise Wrong("a scheme stands in a header", "header, or leave scheme out")
        return self


class TokenCredential(Model):
    """A signed token."""

    issuers: list[Name] = Field(
        min_length=1, description="Names of the issuers whose tokens are accepted.", examples=[["main"]]
    )
    place: CredentialPlace | None = Field(
        None,
        alias="in",
        description="Where it is; `Authorization: Bearer` without it.",
        examples=[{"cookie": "session"}],
    )


class ApiKeyCredential(Model):
    """An API key."""

    keyrings: list[Name] = Field(
        min_length=1, description="Names of the keyrings (`api_keys`) whose keys are accepted.", examples=[["partners"]]
    )
    place: CredentialPlace | None = Field(
        None, alias="in", description="Where it is; `X-Api-Key` without it.", examples=[{"header": "x-api-key"}]
    )


class OpaqueTokenCredential(Model):
    """A token about which an endpoint is asked (RFC 7662)."""

    introspection: Name = Field(
        description="Name of the endpoint (`introspection`) that is asked about it.", examples=["legacy"]
    )
    place: CredentialPlace | None = Field(
        None,
        alias="in",
        description="Where it is; `Authorization: Bearer` without it. A `token` may be there as well: whatever has the "
        "form of a signed token is taken for one.",
        examples=[{"header": "authorization", "scheme": "Bearer"}],
    )


class CertificateCredential(Model):
    """A client certificate."""

    trust: Name = Field(
        description="Name of the section (`certificates`) that says where it is and whom it identifies.",
        examples=["mesh"],
    )


class Credential(Choice):
    """One kind of credential."""

    token: TokenCredential | None = Field(None, description="A signed token.", examples=[{"issuers": ["main"]}])
    api_key: ApiKeyCredential | None = Field(None, description="An API key.", examples=[{"keyrings": ["partners"]}])
    opaque_token: OpaqueTokenCredential | None = Field(
        None, description="A token about which an endpoint is asked.", examples=[{"introspection": "legacy"}]
    )
    certificate: CertificateCredential | None = Field(
        None,
        description="A client certificate. In `any_of` it counts only where no other of the credentials is shown: what "
        "a connection shows is not chosen for each request.",
        examples=[{"trust": "mesh"}],
    )


class StepUpSection(Model):
    """How the caller must have been authenticated; otherwise it is told what to do (RFC 9470)."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    acr: list[Acr] | None = Field(
        None, min_length=1, max_length=16, description="One of these must be `acr`; the best first.", examples=[["mfa"]]
    )
    max_age: Annotated[Duration, Between("1s", "366d", "1s")] | None = Field(
        None, description="The most that may have passed since `auth_time`.", examples=["5m"]
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.acr is None and self.max_age is None:
            raise Wrong("it is empty", "acr, max_age or both")
        return self


class TenantSection(Choice):
    """Which tenant a request is about: the caller must act for the same one."""

    host_label: int | None = Field(
        None, ge=0, le=63, description="This label of the host, 0 being the first.", examples=[0]
    )
    path_parameter: Text | None = Field(
        None, description="This parameter of the rule's path template.", examples=["tenant"]
    )
    constant: Printable | None = Field(None, description="Always this one.", examples=["acme"])


_KINDS: Final = ("issuers", "any_of", "all_of")


class Authenticate(Model):
    """Who may be proved, and by what."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [kind]} for kind in _KINDS]})

    issuers: list[Name] | None = Field(
        None,
        min_length=1,
        description="Names of the issuers whose bearer tokens are accepted.",
        examples=[["main"]],
    )
    any_of: list[Credential] | None = Field(
        None,
        min_length=1,
        max_length=CREDENTIALS_MAX,
        description="Exactly one of these is shown; more than one is a 400.",
        examples=[[{"token": {"issuers": ["main"], "in": {"cookie": "session"}}}]],
    )
    all_of: list[Credential] | None = Field(
        None,
        min_length=1,
        max_length=CREDENTIALS_MAX,
        description="Each of these is shown and proved. The first says who the caller is; the facts of the others are "
        "in the claim `other_credentials`.",
        examples=[[{"token": {"issuers": ["main"]}}, {"token": {"issuers": ["app"], "in": {"header": "x-app-token"}}}]],
    )
    step_up: StepUpSection | None = Field(
        None, description="How, and how recently, the caller was authenticated.", examples=[{"max_age": "5m"}]
    )
    tenant: TenantSection | None = Field(
        None, description="Which tenant the caller must act for; any without it.", examples=[{"host_label": 0}]
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in _KINDS if kind in self.model_fields_set]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given together" if given else "it is not said by what"
            raise Wrong(found, f"exactly one of {', '.join(_KINDS)}")
        return self


CredentialUse: TypeAlias = Literal["remove", "forward", "replace"]
