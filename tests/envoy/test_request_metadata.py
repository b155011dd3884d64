"""Values of Envoy's dynamic metadata, as selectors see them."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.core.context import RequestContext
from sidecar.core.decision import NO_PARAMETERS
from sidecar.core.selectors import MetadataSelector
from sidecar.envoy import ext_authz
from sidecar.envoy.pb.ext_authz_pb2 import CheckRequest
from tests.support.deciding import check_request

METADATA: dict[str, Any] = {
    "text": "acme",
    "whole": 7,
    "half": 7.5,
    "large": 2.0**60,
    "true": True,
    "null": None,
    "list": ["a", "b"],
    "mixed": ["a", 1],
    "inner": {"text": "deep"},
    "": "empty",
}


def decoded(metadata: dict[str, Any] | None) -> RequestContext:
    request = CheckRequest.FromString(check_request())
    if metadata is not None:
        request.attributes.metadata_context.filter_metadata["envoy.x"].update(metadata)
    context = ext_authz.decode(request.SerializeToString())
    assert isinstance(context, RequestContext)
    return context


TEXTS = {
    ("text",): "acme",
    ("whole",): "7",
    ("half",): "7.5",
    ("true",): "true",
    ("null",): None,
    ("list",): "a,b",
    ("mixed",): None,
    ("inner",): None,
    ("inner", "text"): "deep",
    ("inner", "other"): None,
    ("text", "deeper"): None,
    ("other",): None,
    ("other", "text"): None,
    ("",): "empty",
}


@pytest.mark.parametrize(("path", "text"), TEXTS.items())
def test_a_value_has_the_text_that_a_claim_would_have(path: tuple[str, ...], text: str | None) -> None:
    """Whole numbers have no fraction, though metadata knows doubles only; what has no plain text has none."""
    selector = MetadataSelector("envoy.x", path)
    assert selector.select(decoded(METADATA), None, NO_PARAMETERS) == text


def test_a_number_that_doubles_do_not_tell_apart_is_not_whole() -> None:
    """Above 2**53 a double stands for several numbers."""
    assert (
        MetadataSelector("envoy.x", ("large",)).select(decoded(METADATA), None, NO_PARAMETERS)
        == "1.152921504606847e+18"
    )


@pytest.mark.parametrize("metadata", [None, {}])
def test_without_metadata_there_is_no_value(metadata: dict[str, Any] | None) -> None:
    """Neither without any, nor in another namespace."""
    context = decoded(metadata)
    assert MetadataSelector("envoy.x", ("text",)).select(context, None, NO_PARAMETERS) is None
    assert MetadataSelector("envoy.y", ("text",)).select(decoded(METADATA), None, NO_PARAMETERS) is None
