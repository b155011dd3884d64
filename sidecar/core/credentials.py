"""What the caller showed: a credential in the one place where the policy looks for it, or a reason why not.

A place is a header (with a scheme, or whole), a cookie, or a query parameter. Each is read strictly: what servers could
read in two ways is refused rather than guessed, since the upstream might read it in the other (RFC 6750 section 2: no
more than one method in a request). What is read is never repeated in a detail.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import unquote_plus

from sidecar.core.claims import Rejected
from sidecar.core.decision import DenyReason

if TYPE_CHECKING:
    from sidecar.core.context import RequestContext

COOKIES_BYTES_MAX: Final = 16 * 1024
"""A longer Cookie header is refused where a credential is looked for in it."""
COOKIES_MAX: Final = 200
"""More cookies than any browser keeps for a site (RFC 6265 section 6.1 asks for 50)."""
QUERY_BYTES_MAX: Final = 16 * 1024
QUERY_PARAMETERS_MAX: Final = 500
PATTERNS_KEPT_MAX: Final = 256
"""Sets of names that are taken off requests: a policy has few, one for each way in which its rules forward."""

_MALFORMED = DenyReason.CREDENTIAL_MALFORMED
_REPEATED = DenyReason.CREDENTIAL_REPEATED

_is_visible = re.compile(r"[!-~]+").fullmatch
_is_cookie_value = re.compile(r"[!#-+\--:<-\[\]-~]+").fullmatch  # cookie-octet, RFC 6265 section 4.1.1
_ends_name = re.compile(r"[\[\x00]")
_is_encoded = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*", re.DOTALL).fullmatch


def bearer_token(request: RequestContext) -> str | DenyReason:
    """The token of `Authorization: Bearer <token>`; the scheme in any case, one space (RFC 6750 section 2.1).

    Another scheme counts as no credential. Two headers, also when merged with "," on their way, are refused: nobody
    can say which of them the upstream will believe.
    """
    value = request.headers.get("authorization")
    if value is None:
        return DenyReason.CREDENTIAL_MISSING
    if "authorization" in request.repeated or "," in value:
        return DenyReason.CREDENTIAL_REPEATED
    if value[:7] != "Bearer " and value[:7].lower() != "bearer ":
        return DenyReason.CREDENTIAL_MALFORMED if value.lower() == "bearer" else DenyReason.CREDENTIAL_MISSING
    token = value[7:]
    if not token or token[0] == " ":
        return DenyReason.CREDENTIAL_MALFORMED
    return token


class Shape(enum.Enum):
    """Which texts are meant, where two kinds of credential share a place."""

    ANY = "any"
    TOKEN = "token"  # noqa: S105 - a shape
    OPAQUE = "opaque"

    def fits(self, text: str) -> bool:
        """Whether the text is of this shape: three segments of which the first may be a JSON object, or not."""
        return self is Shape.ANY or (self is Shape.TOKEN) is (text[:1] == "e" and text.count(".") == 2)


@dataclass(frozen=True, slots=True)
class HeaderPlace:
    """A header: the whole value, or what follows a scheme and one space.

    Attributes:
        name: In lower case.
        schemes: In lower case; another scheme is no credential of this kind. Empty: the value is the credential.
    """

    name: str
    schemes: tuple[str, ...] = ()
    shape: Shape = Shape.ANY

    def shown(self, request: RequestContext) -> str | Rejected | None:
        """The credential; None where there is none of this kind; a refusal where it is not clear."""
        value = request.headers.get(self.name)
        if value is None:
            return None
        if self.name in request.repeated or "," in value:
            return Rejected(_REPEATED, f"the header {self.name} came more than once, or has a comma")
        if self.schemes:
            scheme, space, value = value.partition(" ")
            if scheme.lower() not in self.schemes:
                return None
            if not space:
                return Rejected(_MALFORMED, f"the header {self.name} holds a scheme alone")
        if not self.schemes and _is_visible(value) is None:
            return Rejected(_MALFORMED, f"the header {self.name} is empty, or holds more than visible ASCII")
        if not value or value[0] == " ":
            return Rejected(_MALFORMED, f"the header {self.name} has no single space between scheme and credential")
        return value if self.shape is Shape.ANY or self.shape.fits(value) else None


@dataclass(frozen=True, slots=True)
class CookiePlace:
    """A cookie, by its name; names are case-sensitive."""

    name: str
    shape: Shape = Shape.ANY
    _mentions: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # however a server splits the header: at ";", at "," (RFC 2965), or inside of quotes
        mentions = re.compile(r'(?:^|[;,\s"])' + re.escape(self.name) + r'"?\s*(?=[=;,]|$)')
        object.__setattr__(self, "_mentions", mentions)

    def shown(self, request: RequestContext) -> str | Rejected | None:
        """See `HeaderPlace.shown`."""
        header = request.headers.get("cookie")
        if header is None or self.name not in header:
            return None
        if len(header) > COOKIES_BYTES_MAX or header.count(";") >= COOKIES_MAX:
            accepted = f"at most {COOKIES_BYTES_MAX} bytes and {COOKIES_MAX} cookies"
            return Rejected(_MALFORMED, f"the Cookie header is too large: {accepted}")
        cookies = list(map(_cookie, header.split(";")))
        values = [value for name, is_pair, value in cookies if is_pair and name == self.name]
        if len(values) > 1:
            return Rejected(_REPEATED, f"the cookie {self.name} came more than once")
        if len(values) != len(self._mentions.findall(header)):
            return Rejected(_MALFORMED, f"the cookie {self.name} can be read in more than one way")
        if not values:
            return None
        wanted = _as_servers_name_it(self.name)
        if sum(_as_servers_name_it(unquote_plus(name) if "%" in name else name) == wanted for name, *_ in cookies) > 1:
            return Rejected(_MALFORMED, f"servers may take another cookie for {self.name}")
        if _is_cookie_value(values[0]) is None:
            return Rejected(_MALFORMED, f"the cookie {self.name} is empty, quoted, or no cookie's value")
        return values[0] if self.shape.fits(values[0]) else None


def _cookie(text: str) -> tuple[str, bool, str]:
    """The name, whether there is a `=`, and the value (RFC 6265 section 5.2)."""
    name, equals, value = text.partition("=")
    return name.strip(" \t"), bool(equals), value.strip(" \t")


@dataclass(frozen=True, slots=True)
class QueryPlace:
    """A query parameter, by its decoded name; names are case-sensitive.

    Its value is percent-decoded. A bare `+` is refused there, since it is a space to forms and a plus to URIs, and so
    is a bare `;`, at which old servers end a value.
    """

    name: str
    shape: Shape = Shape.ANY

    def shown(self, request: RequestContext) -> str | Rejected | None:
        """See `HeaderPlace.shown`."""
        query = request.query
        if not query:
            return None
        if len(query) > QUERY_BYTES_MAX or query.count("&") >= QUERY_PARAMETERS_MAX:
            accepted = f"at most {QUERY_BYTES_MAX} bytes and {QUERY_PARAMETERS_MAX} parameters"
            return Rejected(_MALFORMED, f"the query is too large: {accepted}")
        parameters = list(map(_parameter, query.split("&")))
        values = [value for name, value in parameters if name == self.name]
        if len(values) > 1:
            return Rejected(_REPEATED, f"the query parameter {self.name} came more than once")
        by_semicolon = [name for name, _ in map(_parameter, re.split("[&;]", query)) if name == self.name]
        if len(by_semicolon) != len(values):
            return Rejected(_MALFORMED, f"the query parameter {self.name} can be read in more than one way")
        if not values:
            return None
        wanted = _as_servers_name_it(self.name)
        if sum(_as_servers_name_it(name) == wanted for name, _ in parameters) > 1:
            return Rejected(_MALFORMED, f"servers may take another query parameter for {self.name}")
        value = unquote_plus(values[0], errors="replace")
        if not {"+", ";"}.isdisjoint(values[0]) or _is_encoded(values[0]) is None or _is_visible(value) is None:
            return Rejected(_MALFORMED, f"the query parameter {self.name} is empty, or not encoded visible ASCII")
        return value if self.shape.fits(value) else None


def _parameter(text: str) -> tuple[str, str]:
    """The decoded name, and the value as sent."""
    name, _, value = text.partition("=")
    return unquote_plus(name, errors="replace") if "%" in name or "+" in name else name, value


def _as_servers_name_it(name: str) -> str:
    """A decoded name as PHP has it (dots and spaces are `_`), without what makes it an array's or an object's."""
    return _ends_name.split(name.lstrip(" "), 1)[0].replace(".", "_").replace(" ", "_")


Place: TypeAlias = HeaderPlace | CookiePlace | QueryPlace
"""Where one kind of credential is looked for."""


@dataclass(frozen=True, slots=True)
class Removed:
    """The credentials that are taken off a request before it goes to the upstream.

    Attributes:
        headers: In lower case; as a whole.
        cookies, parameters: By name; the others stay.
    """

    headers: tuple[str, ...] = ("authorization",)
    cookies: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()


BEARER_REMOVED: Final = Removed()


def without_cookies(header: str, names: frozenset[str]) -> str:
    """A Cookie header without the cookies of these names, "" if none is left; the others stay as they were sent.

    Also after a comma, by which old servers separate cookies, and Envoy the values of several Cookie headers.
    """
    return _without(header, ";", *_cookie_patterns(names)).strip(" \t")


def without_parameters(query: str, names: frozenset[str]) -> str:
    """A query without the parameters of these names, however they are encoded; the others stay as they were sent.

    Also after a semicolon, by which old servers separate parameters.
    """
    return _without(query, "&", *_parameter_patterns(names))


def _without(text: str, separator: str, items: re.Pattern[str], parts: re.Pattern[str]) -> str:
    """Nothing is split: 60 KiB of separators, which a client may send, would take 30 ms instead of 2."""
    kept = parts.sub("", items.sub("", text))
    return kept[1:] if kept[:1] == separator != text[:1] else kept


@lru_cache(maxsize=PATTERNS_KEPT_MAX)
def _cookie_patterns(names: frozenset[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Items of these names with all that is in them, and parts of items after a comma."""
    named = rf"[ \t]*(?:{'|'.join(map(re.escape, sorted(names)))})[ \t]*"
    return re.compile(rf"(?:^|;){named}(?:[=,][^;]*)?(?=;|$)"), re.compile(rf",{named}(?:=[^;,]*)?(?=[;,]|$)")


@lru_cache(maxsize=PATTERNS_KEPT_MAX)
def _parameter_patterns(names: frozenset[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The same for parameters, each character of whose names may be percent-encoded."""
    spelled = ["".join(f"(?:{re.escape(char)}|(?i:%{ord(char):02X}))" for char in name) for name in sorted(names)]
    named = f"(?:{'|'.join(spelled)})"
    return re.compile(rf"(?:^|&){named}(?:[=;][^&]*)?(?=&|$)"), re.compile(rf";{named}(?:=[^&;]*)?(?=[&;]|$)")
