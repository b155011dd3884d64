"""What a CheckRequest says, and what a CheckResponse carries."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core.bindings import LimitBinding
from sidecar.core.context import RequestContext
from sidecar.core.credentials import Removed
from sidecar.core.decision import REASONS, Challenge, Decision, DenyReason
from sidecar.core.issuer import IssuerPolicy, JwksFile
from sidecar.core.limits import Limit, LimitOutcome, OnFailure
from sidecar.core.principal import Principal
from sidecar.core.rules import ExactPath, RequestMatch, Rule
from sidecar.core.selectors import ClaimSelector, ConstantSelector, HeaderSelector, PathParameterSelector
from sidecar.envoy import answers
from sidecar.envoy.ext_authz import HEADERS_MAX, REQUEST_ID_CHARS_MAX, decode, encode, refusal, refusal_reason
from sidecar.envoy.pb import ext_authz_pb2
from sidecar.transport.service import Refusal

OVERWRITE = 2
ISSUER = IssuerPolicy(
    name="main",
    issuer="https://issuer.example",
    audiences=frozenset({"orders"}),
    algorithms=frozenset({"RS256"}),
    keys=JwksFile("keys.json"),
)
PER_USER = Limit(name="per-user", requests=100, window_us=60_000_000)
BURST = Limit(name="burst", requests=5, window_us=1_500_000)
HEADERS = {
    ":authority": "api.example.com",
    ":method": "GET",
    ":path": "/orders/17?x=1?y",
    ":scheme": "https",
    "authorization": "Bearer abc",
    "x-request-id": "d9f1b8a0-0b0b-4c8e-8f7e-2f6c1a2b3c4d",
    "cookie": "a=b",
}


def check_request(headers=None, raw_headers=(), **http):
    """A CheckRequest as Envoy sends it."""
    message = ext_authz_pb2.CheckRequest()
    attributes = message.attributes
    attributes.source.address.socket_address.address = "192.0.2.7"
    attributes.source.address.socket_address.port_value = 4321
    attributes.source.principal = "spiffe://cluster/ns/sa"
    attributes.context_extensions["policy"] = "strict"
    request = attributes.request.http
    values = {
        "id": "1234567",
        "method": "GET",
        "path": "/orders/17?x=1?y",
        "host": "api.example.com",
        "scheme": "https",
        "protocol": "HTTP/2",
        "size": -1,
        **http,
    }
    for name, value in values.items():
        setattr(request, name, value)
    for name, value in (HEADERS if headers is None and not raw_headers else headers or {}).items():
        request.headers[name] = value
    for name, value in raw_headers:
        request.header_map.headers.add(key=name, raw_value=value)
    return message


def decoded(**parts):
    context = decode(check_request(**parts).SerializeToString())
    assert isinstance(context, RequestContext)
    return context


def make_rule(**changes):
    rule = Rule(
        name="read-order",
        match=RequestMatch(path=ExactPath("/orders")),
        issuers={ISSUER.issuer: ISSUER},
        limits=tuple(
            LimitBinding(limit=limit, key=(), key_prefix=b"", on_failure=OnFailure.DENY) for limit in (PER_USER, BURST)
        ),
        upstream_headers=(
            ("x-user-id", ClaimSelector(("sub",))),
            ("x-user-mail", ClaimSelector(("mail",))),
            ("x-order", PathParameterSelector("id")),
        ),
        identity_headers=("x-user-id", "x_user_id", "x-user-mail", "x_user_mail", "x-order", "x_order", "x-other"),
        challenge='realm="orders", resource_metadata="https://api.example.com/.well-known/oauth-protected-resource"',
        challenge_scope="orders:read",
    )
    return replace(rule, **changes)


def make_principal(**changes):
    claims = {"sub": "alice", "mail": "alice@example.com"}
    principal = Principal("main", "alice", "web", frozenset({"b", "a"}), frozenset(), claims)
    return replace(principal, **changes)


def outcome(limit=PER_USER, *, allowed=True, remaining=99, retry_us=0, reset_us=59_000_001):
    return LimitOutcome(limit, allowed, limit.requests - remaining, remaining, retry_us, reset_us)


def answer(decision, request=None) -> ext_authz_pb2.CheckResponse:
    return ext_authz_pb2.CheckResponse.FromString(encode(decision, request))


def allowed(rule=None, principal=None, limits=(), request=None, parameters=None):
    decision = Decision(None, rule or make_rule(), principal or make_principal(), tuple(limits), 3)
    decision.parameters = parameters or {"id": "17"}
    response = answer(decision, request or decoded())
    assert response.WhichOneof("http_response") == "ok_response"
    assert response.status.code == 0
    assert response.HasField("status")
    return response


def denied(reason, *, rule=None, limits=(), request=None, principal=None, as_error=False):
    decision = Decision(reason, rule, principal, tuple(limits), 3, as_error=as_error)
    response = answer(decision, request)
    assert response.status.code == REASONS[reason].grpc_status != 0
    assert response.WhichOneof("http_response") == ("error_response" if as_error else "denied_response")
    return response.error_response if as_error else response.denied_response


def options(headers) -> dict[str, str]:
    """Header options as a mapping, after checking that each overwrites, by both fields."""
    for option in headers:
        assert option.HasField("append")
        assert not option.append.value
        assert option.append_action == OVERWRITE
    names = [option.header.key for option in headers]
    assert len(names) == len(set(names))
    return {option.header.key: option.header.value for option in headers}


class TestDecode:
    def test_everything_that_is_read(self):
        """Each attribute arrives where the core looks for it."""
        context = decoded()
        assert (context.method, context.host, context.path) == ("GET", "api.example.com", "/orders/17")
        assert context.source_address == "192.0.2.7"
        assert context.request_id == HEADERS["x-request-id"]
        assert dict(context.headers) == HEADERS
        assert context.repeated == frozenset()

    def test_raw_headers_say_the_same(self):
        """`header_map` in place of `headers` (encode_raw_headers, gRFC A92) gives the same headers."""
        raw = decoded(raw_headers=[(name, value.encode()) for name, value in HEADERS.items()])
        assert dict(raw.headers) == dict(decoded().headers)

    def test_raw_headers_keep_duplicates_apart(self):
        """A repeated name is joined, and noted: "," in general, "; " for cookies (RFC 9113 section 8.2.3)."""
        raw = [("Authorization", b"a"), ("authorization", b"b"), ("cookie", b"x=1"), ("cookie", b"y=2"), ("a", b"1")]
        context = decoded(raw_headers=raw)
        assert dict(context.headers) == {"authorization": "a,b", "cookie": "x=1; y=2", "a": "1"}
        assert context.repeated == {"authorization", "cookie"}

    def test_raw_bytes_that_are_not_utf8_equal_no_text(self):
        """They are kept, distinct, as lone surrogates: no policy can hold such text."""
        values = {
            decoded(raw_headers=[("x", raw)]).headers["x"] for raw in (b"a\xff", b"a\xfe", "a\ufffd".encode(), b"a!")
        }
        assert sorted(values) == ["a!", "a\udcfe", "a\udcff", "a\ufffd"]

    def test_names_are_lower_case_whoever_sent_them(self):
        """Two spellings of one name are one header, repeated."""
        context = decoded(headers={"Authorization": "a", "authorization": "b", "X-Y": "1", ":Path": "/"})
        assert set(context.headers) == {"authorization", "x-y", ":path"}
        assert set(context.headers["authorization"].split(",")) == {"a", "b"}
        assert context.repeated == {"authorization"}

    @pytest.mark.parametrize(
        ("sent", "read"),
        [({"X-User": "a"}, {"x-user": "a"}), ({"1": "a", "2": "b"}, {"1": "a", "2": "b"}), ({}, {})],
        ids=["upper case", "no letter", "none"],
    )
    def test_names_that_are_out_of_the_ordinary(self, sent, read):
        """Each alone is enough to leave the fast way."""
        assert dict(decoded(headers=sent, id="7").headers) == read

    def test_both_header_fields_are_refused(self):
        """Which of the two to believe would be a guess."""
        message = check_request(headers=HEADERS, raw_headers=[("authorization", b"Bearer abc")])
        assert decode(message.SerializeToString()) is DenyReason.REQUEST_MALFORMED

    @pytest.mark.parametrize(
        "message",
        [
            b"",
            b"\xff",
            check_request(method="").SerializeToString(),
            check_request(path="").SerializeToString(),
            check_request().SerializeToString()[:-3],
            check_request().SerializeToString().replace(b"api.example.com", b"api.example.c\xffm"),
            check_request().SerializeToString().replace(b"Bearer abc", b"Bearer \xff\xff\xff"),
        ],
        ids=["empty", "garbage", "no method", "no path", "truncated", "host not UTF-8", "header not UTF-8"],
    )
    def test_what_cannot_be_read_is_a_reason(self, message):
        """No exception, which a transport would turn into a gRPC error and Envoy into "allow"."""
        assert decode(message) is DenyReason.REQUEST_UNDECODABLE

    def test_headers_are_bounded(self):
        """The limit's number of headers passes, one more does not, in both fields."""
        names = [f"h{number}" for number in range(HEADERS_MAX + 1)]
        most = decoded(headers=dict.fromkeys(names[:HEADERS_MAX], "v"))
        assert len(most.headers) == HEADERS_MAX
        for parts in ({"headers": dict.fromkeys(names, "v")}, {"raw_headers": [(name, b"v") for name in names]}):
            assert decode(check_request(**parts).SerializeToString()) is DenyReason.REQUEST_TOO_LARGE
        assert len(decoded(raw_headers=[(name, b"v") for name in names[:HEADERS_MAX]]).headers) == HEADERS_MAX

    @pytest.mark.parametrize(
        ("sent", "stream_id", "request_id"),
        [
            ("abc-1", "77", "abc-1"),
            (None, "77", "77"),
            ("", "77", "77"),
            ('a"b', "77", "77"),
            ("a\nb", "77", "77"),
            ("a,b", "77", "77"),
            ("é", "7 7", ""),
            ("a" * REQUEST_ID_CHARS_MAX, "77", "a" * REQUEST_ID_CHARS_MAX),
            ("a" * (REQUEST_ID_CHARS_MAX + 1), "77", "77"),
        ],
    )
    def test_request_id_is_a_short_plain_word(self, sent, stream_id, request_id):
        """The client's where it is harmless, else the stream's, else none."""
        headers = {"a": "b"} if sent is None else {"x-request-id": sent}
        assert decoded(headers=headers, id=stream_id).request_id == request_id

    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_request_or_a_reason(self, message):
        """Decoding never raises."""
        assert isinstance(decode(message), RequestContext | DenyReason)

    def test_protobuf_without_its_c_part_refuses_the_same(self):
        """Its pure Python part reports text that is not UTF-8 in another way, which is caught as well."""
        bad = check_request().SerializeToString().replace(b"Bearer abc", b"Bearer \xff\xff\xff")
        code = f"from sidecar.envoy.ext_authz import decode; print(decode({bad!r}).value)"
        environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True, timeout=60
        )
        assert run.stdout == "request_undecodable\n"

    def test_damaged_requests_are_a_request_or_a_reason(self):
        """Nor does it for real requests with bytes changed, dropped or doubled; what it reads can be answered."""
        rng = random.Random(7)
        whole = check_request().SerializeToString()
        raw = check_request(raw_headers=[(name, value.encode()) for name, value in HEADERS.items()]).SerializeToString()
        outcomes = set()
        for _ in range(4000):
            message = bytearray(rng.choice((whole, raw)))
            for _ in range(rng.randrange(1, 5)):
                at = rng.randrange(len(message))
                match rng.randrange(4):
                    case 0:
                        message[at] = rng.randrange(256)
                    case 1:
                        del message[at : at + rng.randrange(1, 9)]
                    case 2:
                        message[at:at] = message[at : at + rng.randrange(1, 40)]
                    case 3:
                        message[at] ^= 1 << rng.randrange(8)
                if not message:
                    break
            context = decode(bytes(message))
            outcomes.add(type(context))
            if isinstance(context, RequestContext):
                answer(Decision(DenyReason.TOKEN_EXPIRED, make_rule(), None, (), 1), context)
                allowed(request=context)
        assert outcomes == {RequestContext, DenyReason}


class TestAllowed:
    def test_upstream_headers_and_removals(self):
        """What has a value is set; every other identity header, the twins and the credential are removed."""
        response = allowed().ok_response
        assert options(response.headers) == {
            "x-user-id": "alice",
            "x-user-mail": "alice@example.com",
            "x-order": "17",
        }
        assert sorted(response.headers_to_remove) == sorted(
            ["x_user_id", "x_user_mail", "x_order", "x-other", "authorization", "x-envoy-auth-failure-mode-allowed"]
        )

    def test_a_header_without_a_value_is_removed(self):
        """A claim that is missing must not leave what the client sent under that name."""
        principal = make_principal(claims={"sub": "alice"})
        response = allowed(principal=principal, parameters={"other": "1"}).ok_response
        assert options(response.headers) == {"x-user-id": "alice"}
        assert {"x-user-mail", "x-order"} <= set(response.headers_to_remove)

    def test_credential_is_forwarded_only_where_the_rule_says_so(self):
        """By default nobody behind us sees the token."""
        assert "authorization" in allowed().ok_response.headers_to_remove
        forwarding = make_rule(removed=Removed(headers=()))
        assert "authorization" not in allowed(forwarding).ok_response.headers_to_remove

    def test_a_header_that_is_set_is_never_removed(self):
        """Envoy removes last: also a name that looks like another's twin, or is the credential's, stays."""
        rule = make_rule(
            upstream_headers=(
                ("x_user_id", ClaimSelector(("sub",))),
                ("x-user-id", ClaimSelector(("sub",))),
                ("authorization", ConstantSelector("Basic abc")),
            )
        )
        response = allowed(rule).ok_response
        assert options(response.headers) == {"x_user_id": "alice", "x-user-id": "alice", "authorization": "Basic abc"}
        assert not set(options(response.headers)) & set(response.headers_to_remove)

    def test_twins_are_removed_also_where_the_rule_forgot_them(self):
        """A rule's own headers are never left forgeable by their other spelling."""
        response = allowed(make_rule(identity_headers=())).ok_response
        assert {"x_user_id", "x_user_mail", "x_order"} <= set(response.headers_to_remove)

    def test_anonymous_rules_remove_identity_headers_too(self):
        """Where nobody was proved, nobody is named."""
        rule = make_rule(anonymous=True, issuers={})
        response = answer(Decision(None, rule, None, (), 3), decoded())
        assert not response.ok_response.headers
        assert {"x-user-id", "x_user_id", "x-user-mail", "x-order"} <= set(response.ok_response.headers_to_remove)
        assert "subject" not in response.dynamic_metadata

    def test_rate_limit_fields(self):
        """`RateLimit-Policy` and `RateLimit` for every charged limit; times are rounded up to seconds."""
        limits = [outcome(), outcome(BURST, remaining=0, reset_us=1)]
        response = allowed(limits=limits).ok_response
        assert options(response.response_headers_to_add) == {
            "ratelimit-policy": '"per-user";q=100;w=60, "burst";q=5;w=2',
            "ratelimit": '"per-user";r=99;t=60, "burst";r=0;t=1',
        }
        assert not allowed().ok_response.response_headers_to_add

    def test_limits_other_than_the_rules_are_answered_as_they_are(self):
        """When only some of a rule's limits are charged, only those are told of."""
        other = Limit(name='odd "name" \\ \u00e9', requests=1, window_us=1000)
        response = allowed(limits=[outcome(other, remaining=1)])
        added = options(response.ok_response.response_headers_to_add)
        assert added["ratelimit-policy"] == '"odd \\"name\\" \\\\ ?";q=1;w=1'
        assert response.dynamic_metadata["limits"][0]["name"] == other.name

    def test_as_many_limits_as_the_rule_has_need_not_be_the_rules(self):
        """Each outcome is told under its own limit's name, in the order in which it came."""
        limits = [outcome(BURST, remaining=4), outcome()]
        added = options(allowed(limits=limits).ok_response.response_headers_to_add)
        assert added["ratelimit-policy"] == '"burst";q=5;w=2, "per-user";q=100;w=60'
        assert added["ratelimit"].startswith('"burst";r=4;')

    def test_dynamic_metadata(self):
        """Who, by which rule of which policy, and what is left: strings where Envoy makes descriptors of them."""
        limits = [outcome(), outcome(BURST, remaining=4, reset_us=1)]
        assert to_dict(allowed(limits=limits).dynamic_metadata) == {
            "subject": "alice",
            "issuer": "main",
            "client": "web",
            "method": "token",
            "scope": "a b",
            "rule": "read-order",
            "generation": 3.0,
            "limits": [
                {"name": "per-user", "remaining": 99.0, "reset_seconds": 60.0, "allowed": True},
                {"name": "burst", "remaining": 4.0, "reset_seconds": 1.0, "allowed": True},
            ],
        }

    @pytest.mark.parametrize(
        "decision",
        [
            Decision(None, None, None, (), 3),
            Decision(None, None, make_principal(), (), 3),
            Decision(None, make_rule(), None, (), 3),
        ],
        ids=["nothing", "no rule", "nobody proved"],
    )
    def test_an_incomplete_allow_is_a_denial(self, decision):
        """A fault of ours denies."""
        for response in (answer(decision, decoded()), answer(Decision(None, make_rule(), make_principal(), (), 3))):
            assert response.denied_response.status.code == 500
            assert response.status.code == 13


def to_dict(struct):
    """A Struct as plain values."""
    return {name: to_plain(value) for name, value in struct.fields.items()}


def to_plain(value):
    match value.WhichOneof("kind"):
        case "struct_value":
            return to_dict(value.struct_value)
        case "list_value":
            return [to_plain(item) for item in value.list_value.values]
        case kind:
            return getattr(value, kind)


class TestSoleLimit:
    @given(
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**49),
        st.integers(0, 2**49),
        st.text(st.characters(categories=["L", "P", "Zs"]), min_size=1, max_size=120),
        st.sampled_from([0, 1, 40, 4_000]),
    )
    def test_the_short_way_says_what_the_long_one_says(self, remaining, retry_us, reset_us, name, more):
        """An allowed answer under one plain limit is the same bytes as one that is put together part by part."""
        limit = replace(PER_USER, name=name)
        binding = LimitBinding(limit=limit, key=(), key_prefix=b"", on_failure=OnFailure.DENY)
        headers = (("x-user-id", ClaimSelector(("sub",))), ("x-more", ClaimSelector(("more",))))
        rule = make_rule(limits=(binding,), upstream_headers=headers, identity_headers=("x-user-id",) if more else ())
        principal = make_principal(claims={"sub": "alice", "more": "m" * more})
        decision = Decision(None, rule, principal, (LimitOutcome(limit, True, 1, remaining, retry_us, reset_us),), 3)
        the_long_way = decoded(headers={"x_unrelated": "1"})
        assert encode(decision, decoded()) == encode(decision, the_long_way)


class TestDenied:
    @pytest.mark.parametrize("reason", DenyReason)
    def test_each_reason_is_problem_details(self, reason):
        """Status, type, title and detail of the reason's row; never cached; RFC 9457 media type; below 1 KiB."""
        row = REASONS[reason]
        response = denied(reason, rule=make_rule(), request=decoded())
        headers = options(response.headers)
        assert response.status.code == row.http_status
        assert headers["content-type"] == "application/problem+json"
        assert headers["cache-control"] == "no-store"
        assert len(response.body) < 1024
        problem = json.loads(response.body)
        quota = "https://iana.org/assignments/http-problem-types#quota-exceeded"
        assert problem.pop("violated-policies", None) == ([] if reason is DenyReason.LIMIT_EXCEEDED else None)
        assert problem == {
            "type": quota if reason is DenyReason.LIMIT_EXCEEDED else f"urn:sidecar:problem:{reason.value}",
            "title": row.title,
            "status": row.http_status,
            "detail": row.detail,
            "request_id": HEADERS["x-request-id"],
        }

    @pytest.mark.parametrize("reason", DenyReason)
    def test_each_reason_reaches_grpc_callers(self, reason):
        """Plain text and the reason's own gRPC status, which Envoy prefers to its reading of the HTTP status."""
        for media_type in ("application/grpc", "application/grpc+proto", "Application/GRPC"):
            response = denied(reason, rule=make_rule(), request=decoded(headers={"content-type": media_type}))
            headers = options(response.headers)
            assert "content-type" not in headers
            assert headers["grpc-status"] == str(REASONS[reason].grpc_status)
            assert response.body == REASONS[reason].detail
            assert ("www-authenticate" in headers) == (REASONS[reason].challenge is not Challenge.NONE)

    @pytest.mark.parametrize("reason", DenyReason)
    def test_each_reason_can_be_an_error(self, reason):
        """`error_response` is always 503, and otherwise the same."""
        response = denied(reason, rule=make_rule(), request=decoded(), as_error=True)
        assert response.status.code == 503
        assert json.loads(response.body)["status"] == 503

    def test_head_has_no_body(self):
        """RFC 9110 section 9.3.2."""
        assert denied(DenyReason.NO_RULE, request=decoded(method="HEAD")).body == ""

    @pytest.mark.parametrize(
        ("reason", "challenge"),
        [
            (DenyReason.CREDENTIAL_MISSING, ""),
            (
                DenyReason.CREDENTIAL_REPEATED,
                ', error="invalid_request", error_description="More than one credential was sent."',
            ),
            (DenyReason.TOKEN_EXPIRED, ', error="invalid_token", error_description="The token has expired."'),
            (
                DenyReason.SCOPE_INSUFFICIENT,
                (
                    ', error="insufficient_scope", error_description="The token lacks a required scope."'
                    ', scope="orders:read"'
                ),
            ),
        ],
    )
    def test_challenges(self, reason, challenge):
        """RFC 6750 section 3 and RFC 9728 section 5.1: no error without a credential, scope for too little scope."""
        for _ in range(2):  # the second is answered from what the first left
            headers = options(denied(reason, rule=make_rule(), request=decoded()).headers)
            assert headers["www-authenticate"] == f"Bearer {make_rule().challenge}{challenge}"

    @pytest.mark.parametrize("reason", [reason for reason in DenyReason if REASONS[reason].challenge is Challenge.NONE])
    def test_no_challenge_where_no_credential_would_help(self, reason):
        """Nor is one sent before a rule is known that would name a realm."""
        assert "www-authenticate" not in options(denied(reason, rule=make_rule(), request=decoded()).headers)

    def test_challenge_without_a_rule_still_has_a_realm(self):
        """RFC 6750 section 3 asks for at least one parameter."""
        headers = options(denied(DenyReason.CREDENTIAL_MISSING, request=decoded()).headers)
        assert headers["www-authenticate"] == 'Bearer realm="sidecar"'

    @pytest.mark.parametrize(
        ("waits_us", "seconds"),
        [
            ([1], "1"),
            ([0], "1"),
            ([1_000_000], "1"),
            ([1_000_001], "2"),
            ([1_000_000, 59_000_001], "60"),
            ([-1], None),
            ([5_000_000, -1], None),
        ],
    )
    def test_retry_after(self, waits_us, seconds):
        """The longest wait of the limits that denied, rounded up, at least 1; none when no wait would help."""
        limits = [outcome(allowed=False, remaining=0, retry_us=wait, reset_us=max(wait, 0)) for wait in waits_us]
        limits.append(outcome(BURST, reset_us=10**12))
        headers = options(denied(DenyReason.LIMIT_EXCEEDED, rule=make_rule(), limits=limits, request=decoded()).headers)
        assert headers.get("retry-after") == seconds

    def test_reset_is_never_before_retry_after(self):
        """`RateLimit`'s `t` must not promise more than `Retry-After` does."""
        limits = [outcome(allowed=False, remaining=0, retry_us=90_000_000, reset_us=10_000_000)]
        headers = options(denied(DenyReason.LIMIT_EXCEEDED, rule=make_rule(), limits=limits, request=decoded()).headers)
        assert headers["ratelimit"] == '"per-user";r=0;t=90'
        assert headers["retry-after"] == "90"

    def test_limits_name_what_was_violated(self):
        """Only the limits that denied, as long as they fit."""
        limits = [outcome(), outcome(BURST, allowed=False, remaining=0, retry_us=1)]
        response = denied(DenyReason.LIMIT_EXCEEDED, rule=make_rule(), limits=limits, request=decoded())
        assert json.loads(response.body)["violated-policies"] == ["burst"]
        long = Limit(name="n" * 2000, requests=1, window_us=1000)
        response = denied(
            DenyReason.LIMIT_EXCEEDED, limits=[outcome(long, allowed=False, remaining=0)], request=decoded()
        )
        assert "violated-policies" not in json.loads(response.body)
        assert len(response.body) < 1024

    def test_metadata_says_why(self):
        """The access log shows the reason, and whoever was proved by then."""
        limits = (outcome(allowed=False, remaining=0, retry_us=1), outcome(BURST))
        decision = Decision(DenyReason.LIMIT_EXCEEDED, make_rule(), make_principal(), limits, 3)
        metadata = to_dict(answer(decision, decoded()).dynamic_metadata)
        assert [limit.pop("allowed") for limit in metadata.pop("limits")] == [False, True]
        assert metadata == {
            "reason": "limit_exceeded",
            "rule": "read-order",
            "generation": 3.0,
            "subject": "alice",
            "issuer": "main",
            "client": "web",
            "method": "token",
            "scope": "a b",
        }
        bare = answer(Decision(DenyReason.REQUEST_UNDECODABLE, None, None, (), 3))
        assert to_dict(bare.dynamic_metadata) == {"reason": "request_undecodable"}

    def test_operators_detail_stays_inside(self):
        """What the decision says to operators is nowhere in the answer."""
        decision = Decision(DenyReason.SCOPE_INSUFFICIENT, make_rule(), make_principal(), (), 3, detail="s3cret-detail")
        assert b"s3cret-detail" not in encode(decision, decoded())

    @pytest.mark.parametrize("refused", Refusal)
    def test_each_refusal_of_the_transport_is_a_denial(self, refused):
        """None of them reaches Envoy as a gRPC error."""
        response = ext_authz_pb2.CheckResponse.FromString(refusal(refused))
        row = REASONS[refusal_reason(refused)]
        assert response.status.code == row.grpc_status != 0
        assert response.denied_response.status.code == row.http_status
        assert json.loads(response.denied_response.body)["detail"] == row.detail


TEXTS = st.one_of(
    st.text(max_size=20),
    st.text(alphabet=st.characters(categories=["Cs", "Cc", "Lu", "Po"]), max_size=10),
    st.sampled_from(["", " a", "a ", "a\r\nx: y", "%41", "é", "x" * 5000, "\ud800", "a\x00", "a" * 200]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**64), 2**64), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


class TestEncodeNeverRaises:
    @given(
        claims=st.dictionaries(st.sampled_from(["sub", "mail", "x"]), JSON),
        names=st.tuples(TEXTS, TEXTS, TEXTS),
        scopes=st.frozensets(TEXTS, max_size=4),
        header=st.binary(max_size=30),
        parameter=TEXTS,
    )
    @example(
        claims={"sub": "\ud800"},
        names=("\ud800", "\ud800", ""),
        scopes=frozenset({"\ud800"}),
        header=b"\xff",
        parameter="",
    )
    def test_allowed(self, claims, names, scopes, header, parameter):
        """Whatever a token, a header or a path says, the answer parses, and sets only visible ASCII."""
        principal = Principal(names[0], names[1], names[2], scopes, frozenset(), claims)
        rule = make_rule(upstream_headers=(*make_rule().upstream_headers, ("x-copy", HeaderSelector("x-in"))))
        request = decoded(raw_headers=[("x-in", header)])
        response = allowed(rule, principal, [outcome()], request, {"id": parameter})
        values = options(response.ok_response.headers)
        for value in values.values():
            assert value
            assert value.isascii()
            assert value.isprintable()
            assert value == value.strip()
        removed = list(response.ok_response.headers_to_remove)
        assert not set(values) & set(removed)
        assert {name for name, _ in rule.upstream_headers} <= set(values) | set(removed)
        metadata = to_dict(response.dynamic_metadata)
        assert metadata["rule"] == rule.name
        assert metadata.get("subject", names[1]) == names[1]

    @given(
        reason=st.sampled_from(DenyReason),
        as_error=st.booleans(),
        name=TEXTS,
        numbers=st.tuples(*[st.integers(-1, 2**60)] * 3),
        request_id=TEXTS,
        headers=st.dictionaries(TEXTS, TEXTS, max_size=2),
    )
    def test_denied(self, reason, as_error, name, numbers, request_id, headers):
        """Nor can a limit's name, an outcome, or a request not read by `decode` break a denial."""
        limit = Limit(name=name, requests=1, window_us=1000)
        limits = (LimitOutcome(limit, False, 1, *numbers),)
        request = RequestContext(request_id=request_id, method="GET", host="", path="/", headers=headers)
        decision = Decision(reason, make_rule(name=name), make_principal(), limits, 3, as_error=as_error)
        response = answer(decision, request)
        assert response.status.code != 0
        body = (response.error_response if as_error else response.denied_response).body
        assert len(body) <= answers.PROBLEM_BYTES_MAX
        assert json.loads(body)["status"] >= 400


class TestKeptParts:
    def test_callers_are_bounded(self):
        """The limit's number of callers is kept, one more displaces the oldest."""
        answers._of_principal.cache_clear()
        rule, request = make_rule(), decoded()
        for number in range(answers.PRINCIPALS_MAX + 1):
            encode(Decision(None, rule, make_principal(subject=str(number)), (), 3), request)
            assert answers._of_principal.cache_info().currsize == min(number + 1, answers.PRINCIPALS_MAX)

    def test_rules_are_those_of_one_generation(self):
        """A new policy's first answer lets go of the old one's rules."""
        kept = answers.Answers()
        for generation in (1, 2):
            for _ in range(3):
                kept.encode(Decision(DenyReason.NO_RULE, make_rule(), None, (), generation), None, "")
            assert len(kept._rules) == 3

    def test_callers_do_not_mix(self):
        """The same rule answers each principal with that principal's values."""
        rule = make_rule()
        for subject in ("alice", "bob", "alice", "bob"):
            principal = make_principal(subject=subject, claims={"sub": subject})
            response = allowed(rule, principal)
            assert options(response.ok_response.headers)["x-user-id"] == subject
            assert response.dynamic_metadata["subject"] == subject
