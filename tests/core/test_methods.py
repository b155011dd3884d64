"""Methods: one spelling each, or none."""

from __future__ import annotations

import pytest

from sidecar.core.paths import METHOD_BYTES_MAX, METHODS, is_plain_method


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_standard_method_has_one_spelling(method: str) -> None:
    """Capitals are plain; whatever becomes them in capitals is not."""
    assert is_plain_method(method)
    for other in (method.lower(), method.title(), method[:-1] + method[-1].lower(), method.replace("S", "\u017f")):
        assert is_plain_method(other) is (other == method)


def test_methods_of_ones_own_are_tokens_of_a_bounded_length() -> None:
    """Any token is a method (RFC 9110 section 9.1), up to the limit."""
    for method in ("PURGE", "M-SEARCH", "foo", "x" * METHOD_BYTES_MAX):
        assert is_plain_method(method)
    for method in ("", "GET ", " GET", "GET\n", "GE\x00T", "G,T", "\u0393\u0395\u03a4", "x" * (METHOD_BYTES_MAX + 1)):
        assert not is_plain_method(method)
