"""Where values are taken from."""

from __future__ import annotations

import pytest

from sidecar.core.context import RequestContext
from sidecar.core.principal import Json, Principal
from sidecar.core.selectors import (
    AddressSelector,
    ClaimSelector,
    ConstantSelector,
    HeaderSelector,
    PathParameterSelector,
    Selector,
)

CLAIMS: dict[str, Json] = {
    "sub": "alice",
    "n": 7,
    "yes": True,
    "list": ["a", "b"],
    "mixed": ["a", 1],
    "comma": ["a,b", "c"],
    "nested": {"roles": ["x"], "null": None},
}
PRINCIPAL = Principal("main", "alice", "", frozenset(), frozenset(), CLAIMS)


def select(selector: Selector, principal: Principal | None = PRINCIPAL, address: str = "", **headers) -> str | None:
    request = RequestContext(request_id="r", method="GET", host="h", path="/", headers=headers, source_address=address)
    return selector.select(request, principal, {"id": "42"})


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sub", "alice"),
        ("n", "7"),
        ("yes", "true"),
        ("list", "a,b"),
        ("mixed", None),
        ("comma", None),
        ("nested", None),
        ("nested.roles", "x"),
        ("nested.null", None),
        ("sub.x", None),
        ("absent", None),
    ],
)
def test_claim_text(path: str, text: str | None) -> None:
    """A claim has a text only where that text is unambiguous."""
    assert select(ClaimSelector(tuple(path.split(".")))) == text


def test_no_principal_no_claim() -> None:
    """Anonymous requests have no claims."""
    assert select(ClaimSelector(("sub",)), principal=None) is None


def test_plain_selectors() -> None:
    """Header, path parameter and constant."""
    assert select(HeaderSelector("tenant"), tenant="t") == "t"
    assert select(HeaderSelector("tenant")) is None
    assert select(PathParameterSelector("id")) == "42"
    assert select(PathParameterSelector("other")) is None
    assert select(ConstantSelector("all")) == "all"


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", None),
        ("not:an:address", None),
    ],
)
def test_client_address(address: str, key: str | None) -> None:
    """One client has one key: IPv4-mapped addresses are IPv4, IPv6 counts by its /64."""
    assert select(AddressSelector(), address=address) == key
