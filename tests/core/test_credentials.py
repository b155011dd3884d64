"""Places of credentials: each is read in one way, or refused, and is taken off a request without a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.claims import Rejected
from sidecar.core.context import RequestContext
from sidecar.core.credentials import (
    COOKIES_BYTES_MAX,
    COOKIES_MAX,
    QUERY_BYTES_MAX,
    QUERY_PARAMETERS_MAX,
    CookiePlace,
    HeaderPlace,
    Place,
    QueryPlace,
    Shape,
    without_cookies,
    without_parameters,
)
from sidecar.core.decision import DenyReason

if TYPE_CHECKING:
    from collections.abc import Callable

COOKIE, QUERY = CookiePlace("s"), QueryPlace("t")
MALFORMED, REPEATED = DenyReason.CREDENTIAL_MALFORMED, DenyReason.CREDENTIAL_REPEATED


def request(query: str = "", **headers: str) -> RequestContext:
    return RequestContext(
        "1", "GET", "h", "/", query=query, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )


def outcome(shown: str | Rejected | None) -> str | DenyReason | None:
    return shown.reason if isinstance(shown, Rejected) else shown


HEADERS = {
    "Bearer x": "x",
    "bearer x": "x",
    "BEARER x.y": "x.y",
    "Bearer": MALFORMED,
    "Bearer ": MALFORMED,
    "Bearer  x": MALFORMED,
    "Bearer\tx": None,
    "Basic x": None,
    "": None,
    " Bearer x": None,
    "Bearer x,Bearer y": REPEATED,
}


@pytest.mark.parametrize(("value", "shown"), HEADERS.items())
def test_what_follows_a_scheme(value: str, shown: object) -> None:
    """One space; another scheme is no credential of this kind."""
    assert outcome(HeaderPlace("authorization", ("bearer",)).shown(request(authorization=value))) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [("k", "k"), ("", MALFORMED), ("a b", MALFORMED), ("a\u00e9", MALFORMED), ("a,b", REPEATED), ("a\x00", MALFORMED)],
)
def test_a_header_as_a_whole(value: str, shown: object) -> None:
    """Visible ASCII without a comma; absent is no credential."""
    place = HeaderPlace("x-api-key")
    assert outcome(place.shown(request(x_api_key=value))) == shown
    assert place.shown(request(x_other=value)) is None


def test_a_header_known_to_have_come_twice() -> None:
    """However its values were joined."""
    twice = RequestContext("1", "GET", "h", "/", headers={"x-api-key": "a"}, repeated=frozenset({"x-api-key"}))
    assert outcome(HeaderPlace("x-api-key").shown(twice)) is REPEATED


COOKIES = {
    "s=a": "a",
    "x=1; s=a": "a",
    "x=1;s=a;y": "a",
    "x=1;  s=a ;y=2": "a",
    "s=a=b==": "a=b==",
    "S=a": None,
    "xs=a": None,
    "s-x=a": None,
    "x=s": None,
    "x=1": None,
    "s": MALFORMED,
    "s=": MALFORMED,
    "s = a": "a",
    's="a"': MALFORMED,
    "s=a b": MALFORMED,
    "s=a\\b": MALFORMED,
    "s=a\u00e9": MALFORMED,
    "s=a,b": MALFORMED,
    "x=1, s=a": MALFORMED,
    "x=1,s=a": MALFORMED,
    'x="1; s=a"': MALFORMED,
    'x="1 s=a"': MALFORMED,
    "s=a; s=b": REPEATED,
    "s=a; s=a": REPEATED,
    "s=a; s": MALFORMED,
    "s=a, s=b": MALFORMED,
    '"s"=a': MALFORMED,
}


@pytest.mark.parametrize(("header", "shown"), COOKIES.items())
def test_a_cookie(header: str, shown: object) -> None:
    """What servers could read in two ways is refused."""
    assert outcome(COOKIE.shown(request(cookie=header))) == shown


QUERIES = {
    "t=a": "a",
    "x&t=a&y=": "a",
    "%74=a": "a",
    "t=a%2Bb%2f": "a+b/",
    "t=a=b": "a=b",
    "T=a": None,
    "t[]=a": None,
    "x=t": None,
    "": None,
    "&&": None,
    "t": MALFORMED,
    "t=": MALFORMED,
    "t=a+b": MALFORMED,
    "t=a%20b": MALFORMED,
    "t=a%": MALFORMED,
    "t=a%4": MALFORMED,
    "t=%zz": MALFORMED,
    "t=%ff": MALFORMED,
    "t=%C3%A9": MALFORMED,
    "t=%00": MALFORMED,
    "x;t=a": MALFORMED,
    "t=a;t=b": MALFORMED,
    "t=a;x": MALFORMED,
    "t=a%3Bx": "a;x",
    "t=a&t=a": REPEATED,
    "t=a&%74=b": REPEATED,
}


@pytest.mark.parametrize(("query", "shown"), QUERIES.items())
def test_a_query_parameter(query: str, shown: object) -> None:
    """One spelling of the value after decoding, and no second reading."""
    assert outcome(QUERY.shown(request(query))) == shown


LIMITS: list[tuple[Place, Callable[[int], RequestContext], int]] = [
    (COOKIE, lambda size: request(cookie="s=" + "a" * (size - 2)), COOKIES_BYTES_MAX),
    (COOKIE, lambda many: request(cookie="s=a" + ";x=1" * (many - 1)), COOKIES_MAX),
    (QUERY, lambda size: request("t=" + "a" * (size - 2)), QUERY_BYTES_MAX),
    (QUERY, lambda many: request("t=a" + "&x=1" * (many - 1)), QUERY_PARAMETERS_MAX),
]


@pytest.mark.parametrize(("place", "sized", "most"), LIMITS)
def test_limits(place: Place, sized: Callable[[int], RequestContext], most: int) -> None:
    """As much as the limit is read; more is refused."""
    assert isinstance(place.shown(sized(most)), str)
    assert outcome(place.shown(sized(most + 1))) is MALFORMED


def test_shapes_share_a_place() -> None:
    """What has the form of a signed token is one kind's, everything else the other's."""
    for text in ("eyJhbGciOiJub25lIn0.e30.x", "e..", "opaque", "a.b.c", "eyJ.x", "eyJ.a.b.c.d", "E.a.b"):
        shown = [CookiePlace("s", shape).shown(request(cookie=f"s={text}")) for shape in (Shape.TOKEN, Shape.OPAQUE)]
        assert sorted(map(str, shown)) == sorted(["None", text])
        assert (shown[0] is not None) == (text[0] == "e" and text.count(".") == 2)


PIECES = st.lists(
    st.sampled_from(["s", "t", "%74", "%73", "x", "=", "a", ";", "&", ",", '"', " ", "+", "%", "\u00e9", "\t"])
)
NAMES = frozenset({"s", "t"})


@given(PIECES)
def test_what_is_read_is_what_a_lenient_server_reads(pieces: list[str]) -> None:
    """Whoever is read from a query is the only one whom any usual parser finds there."""
    query = "".join(pieces)
    shown = QUERY.shown(request(query))
    for read in (query, query.replace(";", "&")):
        found = [value for name, value in parse_qsl(read, keep_blank_values=True) if name == "t"]
        if isinstance(shown, str):
            assert found == [shown]
        if shown is None:
            assert found == []


@given(PIECES)
def test_what_is_taken_off_is_gone_and_the_rest_is_as_it_was(pieces: list[str]) -> None:
    """In any reading; a text without any of the names is untouched, and taking off again changes nothing."""
    text = "".join(pieces)
    query = without_parameters(text, NAMES)
    assert all(QueryPlace(name).shown(request(query)) is None for name in NAMES)
    assert without_parameters(query, NAMES) == query
    cookies = without_cookies(text, NAMES)
    assert not any(isinstance(CookiePlace(name).shown(request(cookie=cookies)), str) for name in NAMES)
    assert without_cookies(cookies, NAMES) == cookies
    others = "".join(piece for piece in pieces if piece not in {"s", "t", "%74", "%73"})
    assert without_parameters(others, NAMES) == others
    assert without_cookies(others, NAMES) == others.strip(" \t")


@pytest.mark.parametrize("cookies", ["s;s=good", "s,s=good", "s; s=good", "s=good;s", 's"=;s=good', "s=good,s"])
def test_a_cookie_beside_its_bare_name_is_refused(cookies: str) -> None:
    """Some servers take the name alone for a cookie with an empty value, and believe the first of the two."""
    found = COOKIE.shown(request(cookie=cookies))
    assert isinstance(found, Rejected)
    assert found.reason is DenyReason.CREDENTIAL_MALFORMED


@pytest.mark.parametrize(
    "other",
    ["a.b=x", "a%2Eb=x", "a b=x", "a+b=x", "+a_b=x", "a_b[]=x", "a_b%5B%5D=x", "a_b[0]=x", "a_b[=x", "a_b%00=x"],
)
def test_a_parameter_beside_one_that_servers_take_for_it_is_refused(other: str) -> None:
    """PHP makes `_` of dots and spaces, and it and others make one parameter of `a` and `a[]`: which is believed?"""
    place = QueryPlace("a_b")
    for query in (f"a_b=good&{other}", f"{other}&a_b=good"):
        found = place.shown(request(query))
        assert isinstance(found, Rejected)
        assert found.reason is DenyReason.CREDENTIAL_MALFORMED
    assert place.shown(request("a_b=good&a_bc=x&a-b=x&ab=x&xa_b=x&c[a_b]=x")) == "good"


@pytest.mark.parametrize("other", ["a.b=x", "a_b[]=x", "a_b[0]=x", "a_b[=x", "%61_b=x", "a%5Fb=x", "a%2Eb=x"])
def test_a_cookie_beside_one_that_servers_take_for_it_is_refused(other: str) -> None:
    """As with parameters; older PHP decodes the names of cookies, too (CVE-2020-7070)."""
    place = CookiePlace("a_b")
    for cookies in (f"a_b=good; {other}", f"{other}; a_b=good"):
        found = place.shown(request(cookie=cookies))
        assert isinstance(found, Rejected)
        assert found.reason is DenyReason.CREDENTIAL_MALFORMED
    assert place.shown(request(cookie="a_b=good; a_bc=x; a-b=x; ab=x; c[a_b]=x")) == "good"


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1))
def test_any_visible_text_can_be_sent_in_a_query(text: str) -> None:
    """Encoded as URIs are, it comes out as it was."""
    assert QUERY.shown(request(f"a=1&t={quote(text, safe='')}&b")) == text
