"""The `ratelimit` section of a policy, and what it compiles to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from sidecar.core.descriptor_stats import NEAR_LIMIT_RATIO
from sidecar.core.descriptors import Counting, HeaderNames, RateLimitConfig, RateLimitOptions
from sidecar.core.limits import REQUESTS_MAX, Algorithm, OnFailure
from sidecar.policy import durations
from sidecar.policy.faults import PolicyError, Wrong
from sidecar.policy.fields import Between, Duration, HeaderName, Text
from sidecar.policy.model import BY_KIND, FLAG, MAPPING, TEXT, FailureChoice, Model
from sidecar.policy.ratelimit_files import load_directory, load_sources
from sidecar.policy.settings import XDS_MESSAGE_BYTES_MAX, XdsSettings, XdsTlsFiles
from sidecar.policy.tls_files import check_authorities, check_key_pair

if TYPE_CHECKING:
    from sidecar.policy.files import Files
    from sidecar.policy.validate import Validated
    from sidecar.policy.yaml import PathParts, Source

ALGORITHMS_MAX = 256

AlgorithmName = Literal["fixed_window", "sliding_window", "gcra", "sliding_log", "concurrency"]


class RateLimitAlgorithm(Model):
    """How limits of a domain or of a descriptor are counted, where it is not the reference's way."""

    algorithm: AlgorithmName = Field(description="See docs/limits.md.", examples=["gcra"])
    count_denied: bool | None = Field(
        None,
        description="Count refused requests, too. By default only `fixed_window` does, as the reference; without it a "
        "request takes from all of its limits or from none.",
        examples=[False],
    )
    burst: int | None = Field(
        None,
        ge=1,
        le=REQUESTS_MAX,
        description="`gcra` only: how many may be taken at once; as many as the limit without it.",
        examples=[20],
    )
    hold: Annotated[Duration, Between("1ms", "366d")] | None = Field(
        None,
        description="`concurrency` only: when a request that was never ended (a descriptor with `is_negative_hits`) "
        "stops to count; after the limit's unit without it.",
        examples=["30s"],
    )
    lease: int | None = Field(
        None,
        ge=1,
        le=REQUESTS_MAX,
        description="Hits that a process may take ahead for a hot key and grant by itself; see docs/limits.md.",
        examples=[50],
    )


class RateLimitHeaders(Model):
    """Names of response headers."""

    limit: HeaderName = Field("RateLimit-Limit", description="The limit.", examples=["x-ratelimit-limit"])
    remaining: HeaderName = Field(
        "RateLimit-Remaining", description="What remains of it.", examples=["x-ratelimit-remaining"]
    )
    reset: HeaderName = Field(
        "RateLimit-Reset", description="Seconds until it starts afresh.", examples=["x-ratelimit-reset"]
    )


class XdsTls(Model):
    """TLS to the xDS server."""

    ca: Text | None = Field(
        None, description="PEM file with the authorities to trust; gRPC's own without it.", examples=["tls/xds-ca.pem"]
    )
    certificate: Text | None = Field(
        None, description="PEM file with a client certificate; needs `key`.", examples=["tls/xds.crt"]
    )
    key: Text | None = Field(None, description="PEM file with the client certificate's key.", examples=["tls/xds.key"])
    server_name: Text | None = Field(
        None, description="The name that the server's certificate must have; the host without it.", examples=["xds"]
    )


class RateLimitXds(Model):
    """An xDS server (ADS, state of the world) that sends `ratelimit.config.ratelimit.v3.RateLimitConfig`."""

    server: Text = Field(description="`host:port`.", examples=["xds.internal:18000"])
    node_id: Text = Field("default", description="What the server keeps configurations by.", examples=["shop"])
    node_metadata: dict[Text, str] = Field(
        {}, max_length=64, description="Sent along with the node's id.", examples=[{"region": "eu"}]
    )
    tls: XdsTls | None = Field(None, description="TLS; cleartext without it.", examples=[{"ca": "tls/xds-ca.pem"}])
    header_files: dict[HeaderName, Text] = Field(
        {},
        max_length=64,
        description="Headers sent along, such as for authorization: by name, a file with the value.",
        examples=[{"authorization": "secrets/xds-authorization"}],
    )
    message_bytes_max: int = Field(
        XDS_MESSAGE_BYTES_MAX,
        ge=1024,
        le=1024 * 1024 * 1024,
        description="Longest response that is read.",
        examples=[1048576],
    )
    retry: Annotated[Duration, Between("1ms", "1h")] = Field(
        "1s", description="The first pause after a server that could not be asked; later ones double.", examples=["3s"]
    )
    backoff: Annotated[Duration, Between("1ms", "1h")] = Field(
        "1s", description="The first pause after a stream that broke; later ones double.", examples=["10s"]
    )
    backoff_max: Annotated[Duration, Between("1ms", "1d")] = Field(
        "60s", description="The longest pause.", examples=["60s"]
    )


class RateLimitSection(Model):
    """The rate limit service for Envoy's ratelimit filter. Its limits come from `directory` or from `xds`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["directory"]}, {"required": ["xds"]}]})

    directory: Text | None = Field(
        None,
        description="Directory of configuration files as envoyproxy/ratelimit reads them, one domain each.",
        examples=["./ratelimit"],
    )
    xds: RateLimitXds | None = Field(
        None,
        description="An xDS server, instead of a directory. What it sent last is in use while it is away. Changes need "
        "a restart.",
        examples=[{"server": "xds.internal:18000"}],
    )
    files: Literal["yaml", "visible", "all"] = Field(
        "yaml",
        description="Which files of `directory` are read: `yaml` (*.yaml and *.yml right in it), `visible` (every file "
        "at any depth, unless a name begins with a dot), or `all` (those, too).",
        examples=["visible"],
    )
    required: bool = Field(
        True,
        description="Refuse to start without a file. Otherwise a directory that is missing or empty means that nothing "
        "is configured yet, and calls end in FAILED_PRECONDITION.",
        examples=[False],
    )
    on_redis_failure: FailureChoice = Field(
        "error", description="What is answered while Redis cannot.", examples=["error"]
    )
    shadow_mode: bool = Field(
        False,
        description="Answer OK as a whole whatever the statuses say; they and the statistics are as ever.",
        examples=[True],
    )
    quota_mode: bool = Field(False, description="Treat every limit as one with `quota_mode: true`.", examples=[True])
    near_limit_ratio: float = Field(
        NEAR_LIMIT_RATIO,
        ge=0,
        le=1,
        description="From this share of a limit on, its hits count as `near_limit`.",
        examples=[0.9],
    )
    response_headers: Annotated[Annotated[bool, FLAG] | Annotated[RateLimitHeaders, MAPPING], BY_KIND] = Field(
        False,
        description="Answer with headers for the client: limit, what remains, seconds until it starts afresh, of the "
        "tightest limit of a request. `true`, or their names.",
        examples=[True, {"limit": "x-ratelimit-limit"}],
    )
    shadow_header: HeaderName | None = Field(
        None,
        description="Name of a response header that lists the limits in shadow mode that would have refused; none "
        "without it.",
        examples=["x-ratelimit-shadow"],
    )
    response_dynamic_metadata: bool = Field(
        False,
        description="Answer with dynamic metadata: what was asked, the `metadata` of the descriptors that passed, and "
        "the limits in shadow mode that would have refused.",
        examples=[True],
    )
    merge_domains: bool = Field(
        False, description="Let several files have the same domain; their descriptors are joined.", examples=[True]
    )
    deny_cache: bool = Field(
        False,
        description="Remember in this process which counters are exhausted, and until when: such requests are refused "
        "without asking Redis, which does not count them either. See docs/limits.md.",
        examples=[True],
    )
    count_denied: bool = Field(
        True,
        description="Count refused requests, too, as the reference does. Without it a request takes from all of its "
        "limits or from none. `algorithms` may say otherwise.",
        examples=[False],
    )
    algorithms: dict[
        Text,
        Annotated[Annotated[AlgorithmName, TEXT] | Annotated[RateLimitAlgorithm, MAPPING], BY_KIND],
    ] = Field(
        {},
        max_length=ALGORITHMS_MAX,
        description="How limits are counted that are not to be counted as the reference does, by domain or by "
        "`domain/path` of a descriptor; for all limits there and below.",
        examples=[{"shop": "sliding_window", "shop/path_/orders*.user": "gcra"}],
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.directory is None) == (self.xds is None):
            both = self.xds is not None
            message = "directory and xds are given together" if both else "it does not say where limits come from"
            raise Wrong(message, "exactly one of directory, xds")
        return self


def compile_ratelimit(
    validated: Validated, files: Files, resources: tuple[Source, ...] | None = None
) -> RateLimitConfig:
    """The rate limit service's domains; what is wrong is added to the faults.

    Args:
        validated: The policy.
        files: Finds the directory.
        resources: What the xDS server sent; None: nothing yet.
    """
    section = validated.document.ratelimit
    if section is None:
        return RateLimitConfig({})
    if section.directory is None:
        return _from_resources(validated, ratelimit_options(section), resources)
    path = files.path(section.directory)
    if not path.is_dir() and (section.required or path.exists()):
        validated.fault(("ratelimit", "directory"), f"{path} is not a directory", "a directory of YAML files")
        return RateLimitConfig({})
    try:
        return load_directory(path, ratelimit_options(section), files=section.files, required=section.required)
    except PolicyError as error:
        validated.faults += error.faults
        return RateLimitConfig({})


def _from_resources(
    validated: Validated, options: RateLimitOptions, resources: tuple[Source, ...] | None
) -> RateLimitConfig:
    if resources is None:
        return RateLimitConfig({})
    try:
        config = load_sources(resources, options, "xds")
    except PolicyError as error:
        validated.faults += error.faults
        return RateLimitConfig({})
    config.is_empty_on_purpose = not config.domains
    return config


def compile_xds(validated: Validated, files: Files) -> XdsSettings | None:
    """The xDS server; what is wrong is added to the faults."""
    section = validated.document.ratelimit
    if section is None or section.xds is None:
        return None
    xds, where = section.xds, ("ratelimit", "xds")
    headers = ((name, files.secret((*where, "header_files", name), file)) for name, file in xds.header_files.items())
    return XdsSettings(
        server=xds.server,
        node_id=xds.node_id,
        node_metadata=tuple(xds.node_metadata.items()),
        tls=_xds_tls(validated, files, (*where, "tls"), xds.tls) if xds.tls is not None else None,
        headers=tuple((name, secret) for name, secret in headers if secret is not None),
        message_bytes_max=xds.message_bytes_max,
        retry_s=durations.seconds(xds.retry),
        backoff_s=durations.seconds(xds.backoff),
        backoff_s_max=durations.seconds(xds.backoff_max),
    )


def _xds_tls(validated: Validated, files: Files, where: PathParts, tls: XdsTls) -> XdsTlsFiles:
    if (tls.certificate is None) != (tls.key is None):
        validated.fault(where, "certificate and key are not given together", "both, or neither")
    found = XdsTlsFiles(
        ca=files.optional((*where, "ca"), tls.ca),
        certificate=files.optional((*where, "certificate"), tls.certificate),
        key=files.optional((*where, "key"), tls.key),
        server_name=tls.server_name or "",
    )
    check_authorities(validated, (*where, "ca"), found.ca)
    check_key_pair(validated, where, found.certificate, found.key)
    return found


def ratelimit_options(section: RateLimitSection) -> RateLimitOptions:
    """What the section says beside the files."""
    return RateLimitOptions(
        on_failure=OnFailure(section.on_redis_failure),
        shadow_mode=section.shadow_mode,
        quota_mode=section.quota_mode,
        near_limit_ratio=section.near_limit_ratio,
        response_headers=_headers(section.response_headers),
        shadow_header=section.shadow_header,
        response_dynamic_metadata=section.response_dynamic_metadata,
        merge_domains=section.merge_domains,
        counting=Counting(count_denied=None if section.count_denied else False),
        deny_cache=section.deny_cache,
        algorithms={name: _counting(written) for name, written in section.algorithms.items()},
    )


def _headers(written: bool | RateLimitHeaders) -> HeaderNames | None:
    if isinstance(written, bool):
        return HeaderNames() if written else None
    return HeaderNames(written.limit, written.remaining, written.reset)


def _counting(written: str | RateLimitAlgorithm) -> Counting:
    if isinstance(written, str):
        return Counting(algorithm=Algorithm(written))
    return Counting(
        algorithm=Algorithm(written.algorithm),
        count_denied=written.count_denied,
        burst=written.burst or 0,
        hold_us=durations.parse(written.hold) if written.hold is not None else 0,
        lease=written.lease or 0,
    )
