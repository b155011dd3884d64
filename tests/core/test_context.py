"""What stays of a request while its limits are charged."""

from sidecar.core.context import RequestContext
from sidecar.core.rules import PrefixPath, RequestMatch, Rule
from sidecar.core.selectors import ConstantSelector, HeaderSelector


def test_only_the_headers_that_an_answer_needs_are_kept() -> None:
    """Those that the upstream is told, and what tells a gRPC caller; one that was not sent stays absent."""
    rule = Rule(
        name="all",
        match=RequestMatch(path=PrefixPath("/")),
        anonymous=True,
        upstream_headers=(
            ("x-trace", HeaderSelector("traceparent")),
            ("x-tenant", HeaderSelector("tenant")),
            ("x-fixed", ConstantSelector("1")),
        ),
    )
    sent = {"authorization": "Bearer x", "traceparent": "00-1", "content-type": "application/grpc", "x-fixed": "2"}
    request = RequestContext("1", "GET", "h", "/", sent)
    request.keep_headers(rule.answer_headers)
    assert request.headers == {"traceparent": "00-1", "content-type": "application/grpc"}
    assert request.headers.get("tenant") is None
    assert "authorization" in sent
