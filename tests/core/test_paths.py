"""Paths and hosts have one spelling each, and what has two is refused."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core import paths
from sidecar.core.paths import (
    HOST_BYTES_MAX,
    PATH_BYTES_MAX,
    PathFault,
    canonical,
    canonical_host,
)

F = PathFault

REFUSED = {
    # known bypasses
    "CVE-2021-29492 encoded slash": ("/public%2Fadmin", F.ENCODED_STRUCTURE),
    "CVE-2021-29492 encoded slash, lower case": ("/public%2fadmin", F.ENCODED_STRUCTURE),
    "CVE-2021-29492 encoded backslash": ("/public%5Cadmin", F.ENCODED_STRUCTURE),
    "CVE-2021-29492 encoded backslash, lower case": ("/public%5cadmin", F.ENCODED_STRUCTURE),
    "CVE-2021-31920 two slashes": ("//admin", F.EMPTY_SEGMENT),
    "CVE-2026-26205 read as a host": ("//evil.example/admin", F.EMPTY_SEGMENT),
    "GHSA-xcx5-93pw-jw2w dot segments": ("/public/../admin", F.DOT_SEGMENT),
    "CVE-2026-33494 dot segments at the end": ("/public/..", F.DOT_SEGMENT),
    "CVE-2026-33186 no leading slash": ("admin", F.NOT_ABSOLUTE),
    "CVE-2019-9901 not normalised": ("/./admin", F.DOT_SEGMENT),
    "raw backslash": ("/public\\admin", F.BACKSLASH),
    # dots
    "trailing dot": ("/admin/.", F.DOT_SEGMENT),
    "only dots": ("/..", F.DOT_SEGMENT),
    "encoded dots": ("/%2e%2e/admin", F.ENCODED_STRUCTURE),
    "one dot encoded": ("/.%2E/admin", F.ENCODED_STRUCTURE),
    "overlong dot": ("/%C0%AE%C0%AE/admin", F.ENCODED_NOT_UTF8),
    "dots before a parameter": ("/..;/admin", F.PARAMETER),
    # decoded twice
    "encoded percent": ("/%252e%252e/admin", F.ENCODED_STRUCTURE),
    "encoded percent alone": ("/100%25", F.ENCODED_STRUCTURE),
    "encoded question mark": ("/admin%3Fx", F.ENCODED_STRUCTURE),
    "encoded number sign": ("/admin%23x", F.ENCODED_STRUCTURE),
    "encoded semicolon": ("/admin%3Bx", F.ENCODED_STRUCTURE),
    # separators
    "two slashes inside": ("/a//b", F.EMPTY_SEGMENT),
    "two slashes at the end": ("/a//", F.EMPTY_SEGMENT),
    "overlong slash": ("/a%c0%afb", F.ENCODED_NOT_UTF8),
    "parameter": ("/admin;jsessionid=1", F.PARAMETER),
    "fragment": ("/admin#x", F.FRAGMENT),
    # bytes
    "NUL": ("/a\x00b", F.CHARACTER),
    "encoded NUL": ("/admin%00.png", F.ENCODED_STRUCTURE),
    "line feed": ("/a\nb", F.CHARACTER),
    "line feed at the end": ("/a\n", F.CHARACTER),
    "encoded carriage return": ("/a%0D%0Ab", F.ENCODED_STRUCTURE),
    "encoded tab": ("/a%09b", F.ENCODED_STRUCTURE),
    "encoded DEL": ("/a%7Fb", F.ENCODED_STRUCTURE),
    "encoded C1 control": ("/a%C2%85b", F.ENCODED_STRUCTURE),
    "space": ("/a b", F.CHARACTER),
    "not ASCII": ("/caf\u00e9", F.CHARACTER),
    "lone surrogate": ("/\udcff", F.CHARACTER),
    "full-width slash": ("/a\uff0fb", F.CHARACTER),
    "quote": ('/a"b', F.CHARACTER),
    # encodings
    "truncated encoding": ("/a%2", F.ENCODING_MALFORMED),
    "bare percent": ("/100%", F.ENCODING_MALFORMED),
    "not hexadecimal": ("/%zz", F.ENCODING_MALFORMED),
    "IIS %u": ("/%u002e", F.ENCODING_MALFORMED),
    "not ASCII digits": ("/%\u0661\u0661", F.ENCODING_MALFORMED),
    "encoded letter": ("/%61dmin", F.ENCODED_UNRESERVED),
    "encoded hyphen": ("/a%2Db", F.ENCODED_UNRESERVED),
    "encoded tilde": ("/%7Euser", F.ENCODED_UNRESERVED),
    "Latin-1": ("/caf%E9", F.ENCODED_NOT_UTF8),
    "encoded surrogate": ("/%ED%A0%80", F.ENCODED_NOT_UTF8),
    # forms
    "empty": ("", F.NOT_ABSOLUTE),
    "absolute form": ("http://api.example.com/admin", F.NOT_ABSOLUTE),
    "asterisk form": ("*", F.NOT_ABSOLUTE),
    "authority form": ("api.example.com:443", F.NOT_ABSOLUTE),
}

ACCEPTED = {
    "/": "/",
    "/orders/17": "/orders/17",
    "/orders/": "/orders/",
    "/.well-known/openid-configuration": "/.well-known/openid-configuration",
    "/a/...": "/a/...",
    "/a/..b": "/a/..b",
    "/file.tar.gz": "/file.tar.gz",
    "/a:b@c,d=e+f$g&h!i'j(k)l*m~n_o-p": "/a:b@c,d=e+f$g&h!i'j(k)l*m~n_o-p",
    "/a%20b": "/a%20b",
    "/caf%c3%a9": "/caf%C3%A9",
    "/caf%C3%A9": "/caf%C3%A9",
    "/users/a%40b.example": "/users/a@b.example",
    "/a%2cb%3a": "/a,b:",
    "/%7b%7C%7D": "/%7B%7C%7D",
}


@pytest.mark.parametrize(("path", "fault"), REFUSED.values(), ids=REFUSED)
def test_ambiguous_paths_are_refused(path, fault):
    """Each known way to write a path that two parsers read differently is refused, by its name."""
    assert canonical(path) is fault


@pytest.mark.parametrize(("path", "spelling"), ACCEPTED.items())
def test_ordinary_paths_are_accepted(path, spelling):
    """What clients really send passes, in one spelling."""
    assert canonical(path) == spelling


def test_every_fault_is_shown_by_an_example():
    """The table above knows every way in which a path can be refused."""
    assert {fault for _, fault in REFUSED.values()} | {F.TOO_LONG} == set(F)


def test_longest_path():
    """A path of the limit passes, one byte more does not."""
    assert canonical("/" + "a" * (PATH_BYTES_MAX - 1)) == "/" + "a" * (PATH_BYTES_MAX - 1)
    assert canonical("/" + "a" * PATH_BYTES_MAX) is F.TOO_LONG


PIECES = [
    *"/.;\\#?% ab~@:é\x00\n",
    "//",
    "/../",
    "..",
    "%2F",
    "%2e",
    "%41",
    "%40",
    "%c3%a9",
    "%C3%A9",
    "%25",
    "%zz",
    "%E",
]
PATHS = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map(lambda pieces: "/" + "".join(pieces)),
    st.lists(st.sampled_from(["/", "a", "b", "%40", "@", "%c3%a9", "%C3%A9", "%20"]), max_size=12).map(
        lambda pieces: "/" + "".join(pieces)
    ),
)

UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def normalised(path: str) -> str:
    """RFC 3986 section 6.2.2, by the letter: hexadecimal case, unreserved characters, dot segments."""

    def respell(escape: re.Match[str]) -> str:
        code = int(escape[1], 16)
        return chr(code) if code in UNRESERVED else escape[0].upper()

    return remove_dot_segments(re.sub(r"%([0-9A-Fa-f]{2})", respell, path))


def remove_dot_segments(path: str) -> str:
    """RFC 3986 section 5.2.4."""
    output = ""
    while path:
        if path.startswith(("../", "./")):
            path = path.partition("/")[2]
        elif path.startswith("/./") or path == "/.":
            path = "/" + path[3:]
        elif path.startswith("/../") or path == "/..":
            path = "/" + path[4:]
            output = output.rpartition("/")[0]
        elif path in {".", ".."}:
            path = ""
        else:
            end = path.find("/", 1)
            end = len(path) if end == -1 else end
            output, path = output + path[:end], path[end:]
    return output


@given(PATHS)
@example("/a%40b/%c3%a9")
def test_accepted_paths_are_what_a_normaliser_gives(path):
    """RFC 3986 normalisation changes nothing but the case of digits; besides, only `sub-delims : @` are decoded."""
    spelling = canonical(path)
    if isinstance(spelling, str):
        assert normalised(path) == re.sub(r"%[0-9A-Fa-f]{2}", lambda escape: escape[0].upper(), path)
        assert (
            re.sub("%(21|24|26|27|28|29|2A|2B|2C|3D|3A|40)", lambda e: chr(int(e[1], 16)), normalised(path)) == spelling
        )


@given(PATHS)
def test_canonical_is_idempotent(path):
    """The one spelling is its own spelling."""
    spelling = canonical(path)
    if isinstance(spelling, str):
        assert canonical(spelling) == spelling


@given(PATHS, PATHS)
@example("/a%40b", "/a@b")
@example("/%c3%a9", "/%C3%A9")
def test_same_bytes_have_the_same_spelling(one, other):
    """Two accepted paths are spelled alike exactly when an upstream decodes them alike."""
    spellings = canonical(one), canonical(other)
    if isinstance(spellings[0], str) and isinstance(spellings[1], str):
        assert (spellings[0] == spellings[1]) == (unquote_to_bytes(one) == unquote_to_bytes(other))


@given(PATHS)
def test_decoding_an_accepted_path_reveals_no_structure(path):
    """After one decoding there are as many segments as before, none of dots, and nothing that a second would decode."""
    if isinstance(canonical(path), str):
        decoded = unquote_to_bytes(path)
        assert decoded.count(b"/") == path.count("/")
        assert not {b"", b".", b".."} & set(decoded.split(b"/")[1:-1])
        assert not set(decoded) & set(b"\\;?#%\x00\r\n\x7f")
        decoded.decode("utf-8")


@given(st.text(alphabet=st.characters(), max_size=40))
def test_paths_never_raise(text):
    """Any text at all is either a path or a fault."""
    assert isinstance(canonical(text), str | PathFault)


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("api.example.com", "api.example.com"),
        ("API.Example.COM", "api.example.com"),
        ("api.example.com:8443", "api.example.com"),
        ("api.example.com.", "api.example.com"),
        ("api.example.com.:80", "api.example.com"),
        ("xn--caf-dma.example", "xn--caf-dma.example"),
        ("my_service", "my_service"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]", "[::1]"),
        ("[2001:DB8:0::1]:443", "[2001:db8::1]"),
        ("a:65535", "a"),
    ],
)
def test_hosts_have_one_spelling(authority, host):
    """Lower case, without port and trailing dot; IPv6 in its shortest form."""
    assert canonical_host(authority) == host


@pytest.mark.parametrize(
    "authority",
    [
        "",
        ".",
        "..",
        ":80",
        "user@api.example.com",
        "api.example.com@evil.example",
        "api..example.com",
        ".example.com",
        "api.example.com..",
        "api.example.com:",
        "api.example.com:0x50",
        "api.example.com:65536",
        "api.example.com:80:80",
        "api.example.com:\u0661",
        "api.example.com/",
        "api.example.com\n",
        "api example.com",
        "api%2eexample.com",
        "caf\u00e9.example",
        "api.example.com,evil.example",
        "api.example.com\u3002evil.example",
        "::1",
        "[::1",
        "[::1]x",
        "[::1%25eth0]",
        "[v1.x]",
        "[1.2.3.4]",
        "[:::1]",
    ],
)
def test_odd_hosts_are_refused(authority):
    """User information, odd bytes, empty labels, bad ports and bad addresses."""
    assert canonical_host(authority) is None


def test_longest_host():
    """A name of the limit passes, one character more does not, whatever its port."""
    longest = ("a" * 63 + ".") * 3 + "a" * (HOST_BYTES_MAX - 192)
    assert canonical_host(longest) == longest
    assert canonical_host(longest + ".:65535") == longest
    assert canonical_host(longest + "a") is None
    assert canonical_host(longest + "a:65535") is None
    assert canonical_host("a." * 10_000) is None


@given(st.one_of(st.text(max_size=20), st.from_regex(r"[A-Za-z0-9.\-\[\]:@%_]{0,20}", fullmatch=True)))
def test_hosts_never_raise_and_are_idempotent(authority):
    """Any text is a host or none, and the one spelling is its own spelling."""
    host = canonical_host(authority)
    if host is not None:
        assert canonical_host(host) == host


def test_remembered_hosts_are_bounded() -> None:
    """N spellings are kept, and N+1 as well only by forgetting one; what is too long is never looked up."""
    paths._canonical_host.cache_clear()
    for number in range(paths.HOSTS_KEPT_MAX + 1):
        assert canonical_host(f"h{number}.example") == f"h{number}.example"
    assert paths._canonical_host.cache_info().currsize == paths.HOSTS_KEPT_MAX
    before = paths._canonical_host.cache_info().misses
    assert canonical_host("h" * 1000) is None
    assert paths._canonical_host.cache_info().misses == before
