"""Which tenant a request is about, by its host."""

from __future__ import annotations

import pytest

from sidecar.core.authn import HostLabel
from sidecar.core.context import RequestContext


@pytest.mark.parametrize(
    ("host", "number", "tenant"),
    [
        ("acme.api.example.com", 0, "acme"),
        ("ACME.api.example.com:8443", 0, "acme"),
        ("acme.api.example.com", 1, "api"),
        ("acme", 1, None),
        ("10.0.0.1", 0, None),
        ("10.0.0.1:8080", 1, None),
        ("[2001:db8::1]", 0, None),
        ("", 0, None),
    ],
)
def test_a_label_of_a_name_is_a_tenant_and_part_of_an_address_is_none(
    host: str, number: int, tenant: str | None
) -> None:
    """Addresses have no labels, so they name nobody."""
    request = RequestContext(request_id="", method="GET", host=host, path="/")
    assert HostLabel(number).tenant(request, {}) == tenant
