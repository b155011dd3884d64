"""The single values of a policy: each a text with a parser that says what is wrong with it and what is accepted.

A parser takes the text and returns what it means. `Form` makes a field of it: the document keeps the text as it was
written, and compiling calls the parser again.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic_core import core_schema

from sidecar.core.calendars import Period
from sidecar.core.paths import METHODS, PathFault, canonical, canonical_host
from sidecar.core.rules import PATH_SEGMENTS_MAX, WARNING_HEADER, is_parameter
from sidecar.policy import durations
from sidecar.policy.calendars import load_calendar
from sidecar.policy.faults import Wrong, did_you_mean, shown
from sidecar.transport.service import Address, TcpAddress, UnixAddress

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue

UNIX_PATH_BYTES_MAX = 107
"""`sockaddr_un.sun_path` on Linux, less its terminator."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
TOKEN_PATTERN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"  # noqa: S105 - a header's name, RFC 9110 section 5.6.2
UPSTREAM_HEADER_PATTERN = r"^[!#$%&'*+.^`|~0-9A-Za-z-]+$"
HOST_PATTERN = r"^(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?$|^\[[0-9A-Fa-f:.]+\]$"
PATH_PATTERN = r"^/[A-Za-z0-9\-._~!$&'()*+,=:@%/]*$"
TEMPLATE_PATTERN = r"^/[A-Za-z0-9\-._~!$&'()*+,=:@%/{}]*$"
ADDRESS_PATTERN = r"^unix:/.+$|^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"
SERVER_PATTERN = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"
URL_PATTERN = r"^https?://[^\s]+$"
REDIS_URL_PATTERN = r"^embedded$|^rediss?://[^\s@]+$|^unix:///[^\s]+$"
RATE_PATTERN = r"^[0-9]{1,10}/(second|minute|hour|day|week|[0-9]{1,9}[a-z][0-9a-z]*)$"
PLAN_PATTERN = r"^[ -~]{1,63}$"
PERCENT_PATTERN = r"^([1-9][0-9]?|100)%$"
TIME_ZONE_PATTERN = r"^[A-Za-z0-9_+/-]{1,64}$"
PRINTABLE_PATTERN = r"^[ -~]+$"
SCOPE_PATTERN = r"^[!#-\[\]-~]+$"

RATE_UNITS_US = {
    "second": 1_000_000,
    "minute": 60_000_000,
    "hour": 3_600_000_000,
    "day": 86_400_000_000,
    "week": 604_800_000_000,
}

HEADERS_NEVER_SET = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Framing and hop-by-hop fields (RFC 9110 section 7.6.1), the credential, and the host."""

HEADER_PREFIX_NEVER_SET = "x-envoy-"


@dataclass(frozen=True, slots=True)
class Form:
    """Marks a text field with its parser (which raises `Wrong`), and a pattern for editors."""

    parse: Callable[[str], object]
    pattern: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Text first, then the parser; the text is kept."""
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """What an editor checks."""
        return {**handler(schema), "pattern": self.pattern}

    def _checked(self, text: str) -> str:
        self.parse(text)
        return text


@dataclass(frozen=True, slots=True)
class Between:
    """Marks a duration with the least and the greatest that makes sense, and the step that it is counted in."""

    least: str
    most: str
    step: str = "1us"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """The duration's form first, then its range."""
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """A schema cannot compare durations: the range is told, not checked."""
        return {**handler(schema), "$comment": f"from {self.least} to {self.most}"}

    def _checked(self, text: str) -> str:
        if not durations.parse(self.least) <= durations.parse(text) <= durations.parse(self.most):
            raise Wrong(f"{text} is out of range", f"a duration from {self.least} to {self.most}")
        if durations.parse(text) % durations.parse(self.step):
            raise Wrong(f"{text} is too fine", f"a multiple of {self.step}")
        return text


def matching(pattern: str, what: str, accepted: str) -> Callable[[str], str]:
    """A parser of texts that match a pattern; what it says of others."""
    compiled = re.compile(pattern)

    def parse(text: str) -> str:
        if compiled.search(text) is None or text.endswith("\n"):
            raise Wrong(f"{shown(text)} is not {what}", accepted)
        return text

    return parse


parse_name = matching(
    NAME_PATTERN, "a name", "up to 64 letters, digits, '.', '_' and '-', of which the first is a letter or digit"
)
parse_printable = matching(PRINTABLE_PATTERN, "usable here", "printable ASCII text")
parse_scope = matching(
    SCOPE_PATTERN, "a scope", "printable ASCII text without spaces, quotes and backslashes (RFC 6749)"
)
parse_nonempty = matching(r"[^\s]", "usable here", "text that is not empty")


def parse_header(text: str) -> str:
    """A header's name, in lower case (RFC 9110 section 5.1)."""
    if not re.fullmatch(TOKEN_PATTERN[1:-1], text):
        raise Wrong(f"{shown(text)} is not a header name", "a header name such as x-api-version")
    return text.lower()


def parse_upstream_header(text: str) -> str:
    """The name of a header that the upstream may be sent, in lower case."""
    name = parse_header(text)
    if name in HEADERS_NEVER_SET or name.startswith(HEADER_PREFIX_NEVER_SET):
        raise Wrong(
            f"the header {name!r} must not be set",
            "a header of your own, such as x-user-id; not framing, hop-by-hop, authorization, host or x-envoy-*",
        )
    if name == WARNING_HEADER:
        raise Wrong(f"the header {name!r} warns of limits (warn_at)", "a header of your own, such as x-user-id")
    if "_" in name:
        raise Wrong(
            f"the header {name!r} has an underscore",
            f"{name.replace('_', '-')!r}: many servers cannot tell '_' from '-', so a client could forge it",
        )
    return name


def parse_method(text: str) -> str:
    """A method, case-sensitive (RFC 9110 section 9.1)."""
    if not re.fullmatch(TOKEN_PATTERN[1:-1], text):
        raise Wrong(f"{shown(text)} is not a method", "a method such as GET")
    if text not in METHODS and text.upper() in METHODS:
        raise Wrong(f"the method {text!r} is not in capitals", f"{text.upper()}: methods are case-sensitive")
    return text


def parse_host(text: str) -> str:
    """A host pattern in its canonical spelling: a name, an address, or `*.suffix`."""
    accepted = "a host such as api.example.com, or *.example.com; without a port; leave it out for any host"
    name = text.removeprefix("*.")
    if re.search(r":[0-9]*$", name):
        raise Wrong(f"{shown(text)} has a port", accepted)
    host = canonical_host(name)
    if host is None:
        raise Wrong(f"{shown(text)} is not a host", accepted)
    return text[: len(text) - len(name)] + host


def parse_path(text: str) -> str:
    """A path to match as a whole, in its canonical spelling: what requests are refused for could never match."""
    accepted = "a path such as /orders, without query and anything that can be read in two ways"
    path = canonical(text)
    if isinstance(path, PathFault):
        raise Wrong(f"{shown(text)} matches no request: {path.value}", accepted)
    return path


def parse_prefix(text: str) -> str:
    """A path that stands for itself and all below it."""
    path = parse_path(text)
    if path != "/" and path.endswith("/"):
        raise Wrong(f"{shown(text)} ends in a slash", f"{text[:-1]!r}: it covers {text!r} and everything below")
    return _not_too_deep(path)


def parse_template(text: str) -> str:
    """A path whose segments may be `{parameters}`: whole segments, each name once."""
    accepted = "a template such as /orders/{id}, where a parameter is a whole segment"
    names: list[str] = []
    segments: list[str] = []
    for segment in text.split("/"):
        if is_parameter(segment):
            names.append(segment[1:-1])
            segments.append("_")
        elif "{" in segment or "}" in segment:
            raise Wrong(f"{shown(segment)} is neither a literal segment nor a parameter", accepted)
        else:
            segments.append(segment)
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
            raise Wrong(f"{shown(name)} is not a parameter's name", "letters, digits and '_', not first a digit")
        if names.count(name) > 1:
            raise Wrong(f"the parameter {name!r} is repeated", "each parameter's name once")
    literals = _not_too_deep(parse_path("/".join(segments))).split("/")
    return "/".join(
        written if is_parameter(written) else literal
        for written, literal in zip(text.split("/"), literals, strict=True)
    )


def _not_too_deep(path: str) -> str:
    if path.count("/") > PATH_SEGMENTS_MAX:
        raise Wrong("the path has too many segments: no request reaches it", f"at most {PATH_SEGMENTS_MAX} segments")
    return path


def parse_address(text: str) -> Address:
    """An address to listen on."""
    accepted = "host:port such as 127.0.0.1:9090 or [::1]:9090, or unix:/path/to/socket"
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or len(path.encode()) > UNIX_PATH_BYTES_MAX:
            raise Wrong(
                f"{shown(text)} is not a socket's path", f"an absolute path of at most {UNIX_PATH_BYTES_MAX} bytes"
            )
        return UnixAddress(path)
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ip(host):
            raise Wrong(f"{shown(text)} is not an address", accepted)
    elif not re.fullmatch(r"[A-Za-z0-9._-]+", host):
        raise Wrong(f"{shown(text)} is not an address", accepted)
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise Wrong(f"{shown(text)} has no usable port", accepted)
    return TcpAddress(host, int(port))


def parse_server(text: str) -> TcpAddress:
    """A server to connect to."""
    accepted = "host:port such as redis.internal:6379 or [::1]:6379"
    try:
        address = parse_address(text)
    except Wrong as wrong:
        raise Wrong(wrong.message, accepted) from None
    if not isinstance(address, TcpAddress) or not address.port:
        raise Wrong(f"{shown(text)} is not a server's address", accepted)
    return address


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def parse_http_url(text: str) -> SplitResult:
    """An absolute http(s) URL without credentials or fragment."""
    accepted = "an https:// URL without user, password and fragment"
    try:
        url = urlsplit(text)
        port_is_usable = url.port is None or url.port > 0
    except ValueError:
        raise Wrong("the URL cannot be read", accepted) from None
    if not text.startswith(("http://", "https://")) or not url.hostname or not port_is_usable:
        raise Wrong("it is not an http(s) URL with a host", accepted)
    if "@" in url.netloc or url.fragment or not re.fullmatch(r"[!-~]+", text):
        raise Wrong("the URL has a user, a fragment, or characters that URLs do not have", accepted)
    return url


def is_loopback(host: str) -> bool:
    """Whether a URL's host is this machine, without asking DNS."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """Where Redis is: `address` None means embedded."""

    address: Address | None
    database: int = 0
    tls: bool = False


def parse_redis_url(text: str) -> RedisUrl:
    """A Redis URL. Messages do not repeat it: people put passwords there."""
    accepted = "redis://host:6379/0, rediss://host:6379/0, unix:///path?db=0, or: embedded"
    if text == "embedded":
        return RedisUrl(None)
    try:
        url = urlsplit(text)
        port = url.port if url.port is not None else 6379
    except ValueError:
        raise Wrong("the URL cannot be read", accepted) from None
    if "@" in url.netloc:
        raise Wrong("the URL holds a user or a password", "redis.username, and redis.password_file for the password")
    if url.fragment or not re.fullmatch(r"[!-~]+", text):
        raise Wrong("the URL has a fragment, or characters that URLs do not have", accepted)
    if url.scheme == "unix":
        path = unquote(url.path)
        database = re.fullmatch(r"(?:db=([0-9]{1,5}))?", url.query)
        usable = text.startswith("unix:///") and path.isprintable() and len(path.encode()) <= UNIX_PATH_BYTES_MAX
        if not usable or database is None:
            raise Wrong("it is not a Unix socket's URL", accepted)
        return RedisUrl(UnixAddress(path), int(database[1] or 0))
    database = re.fullmatch(r"(?:/([0-9]{1,5})?)?", url.path)
    well_formed = text.startswith(("redis://", "rediss://")) and port and not url.query
    if not well_formed or not url.hostname or database is None:
        raise Wrong("it is not a Redis URL", accepted)
    return RedisUrl(TcpAddress(url.hostname, port), int(database[1] or 0), url.scheme == "rediss")


def parse_plan(text: str) -> str:
    """A plan, as a claim or header names it."""
    if not re.fullmatch(PLAN_PATTERN[1:-1], text):
        raise Wrong(f"{shown(text)} is not a plan's name", "1 to 63 characters of printable ASCII text")
    return text


def parse_percent(text: str) -> int:
    """`1%` to `100%`: the number."""
    if not re.fullmatch(PERCENT_PATTERN[1:-1], text):
        raise Wrong(f"{shown(text)} is not a threshold", "a percentage from 1% to 100%, or a number")
    return int(text[:-1])


def parse_time_zone(text: str) -> str:
    """A time zone's IANA name."""
    try:
        load_calendar(Period.DAY, text)
    except ValueError:
        from zoneinfo import available_timezones  # noqa: PLC0415 - it is slow, and most policies name no zone

        hint = did_you_mean(text, available_timezones(), "time zones")
        raise Wrong(f"{shown(text)} is not a time zone", f"an IANA name such as Europe/Berlin; {hint}") from None
    return text


def parse_rate(text: str) -> tuple[int, int]:
    """`N/unit` or `N/duration`: requests, and the window in microseconds."""
    accepted = "such as 100/minute (second, minute, hour, day, week) or 100/90s"
    requests, _, window = text.partition("/")
    if not re.fullmatch(r"[0-9]{1,10}", requests) or not window:
        raise Wrong(f"{shown(text)} is not a rate", accepted)
    try:
        window_us = RATE_UNITS_US.get(window) or durations.parse(window)
    except Wrong:
        raise Wrong(f"{shown(text)} is not a rate: {shown(window)} is not a unit", accepted) from None
    return int(requests), window_us


Name: TypeAlias = Annotated[str, Form(parse_name, NAME_PATTERN)]
Duration: TypeAlias = Annotated[str, Form(durations.parse, durations.PATTERN)]
HeaderName: TypeAlias = Annotated[str, Form(parse_header, TOKEN_PATTERN)]
UpstreamHeaderName: TypeAlias = Annotated[str, Form(parse_upstream_header, UPSTREAM_HEADER_PATTERN)]
Method: TypeAlias = Annotated[str, Form(parse_method, TOKEN_PATTERN)]
Host: TypeAlias = Annotated[str, Form(parse_host, HOST_PATTERN)]
PathText: TypeAlias = Annotated[str, Form(parse_path, PATH_PATTERN)]
PrefixText: TypeAlias = Annotated[str, Form(parse_prefix, PATH_PATTERN)]
TemplateText: TypeAlias = Annotated[str, Form(parse_template, TEMPLATE_PATTERN)]
ServerAddress: TypeAlias = Annotated[str, Form(parse_server, SERVER_PATTERN)]
ListenAddress: TypeAlias = Annotated[str, Form(parse_address, ADDRESS_PATTERN)]
HttpUrl: TypeAlias = Annotated[str, Form(parse_http_url, URL_PATTERN)]
RedisUrlText: TypeAlias = Annotated[str, Form(parse_redis_url, REDIS_URL_PATTERN)]
RateText: TypeAlias = Annotated[str, Form(parse_rate, RATE_PATTERN)]
PlanName: TypeAlias = Annotated[str, Form(parse_plan, PLAN_PATTERN)]
PercentText: TypeAlias = Annotated[str, Form(parse_percent, PERCENT_PATTERN)]
TimeZone: TypeAlias = Annotated[str, Form(parse_time_zone, TIME_ZONE_PATTERN)]
Printable: TypeAlias = Annotated[str, Form(parse_printable, PRINTABLE_PATTERN)]
Scope: TypeAlias = Annotated[str, Form(parse_scope, SCOPE_PATTERN)]
Text: TypeAlias = Annotated[str, Form(parse_nonempty, r"[^\s]")]
