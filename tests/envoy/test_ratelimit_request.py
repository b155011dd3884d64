"""Reading a RateLimitRequest by hand, against protobuf; and what is remembered of the descriptors in it."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core.descriptors import DescriptorRule, Domain, RateLimitRule, Unit
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest, RateLimitResponse
from sidecar.envoy.ratelimit_request import (
    DESCRIPTORS_MAX,
    REMEMBERED_BYTES_MAX,
    REMEMBERED_MAX,
    REQUESTS_REMEMBERED_MAX,
    InvalidRequest,
    Memory,
    Understood,
    read,
    split,
)
from sidecar.envoy.wire import delimited, varint
from sidecar.transport.service import Status
from tests.support.rate_limiting import Service, descriptor

LIMITED = "  - {key: user, rate_limit: {unit: hour, requests_per_unit: 3}}\n"

ENTRY = st.builds(
    lambda key, value: delimited(0x0A, delimited(0x0A, key.encode()) + delimited(0x12, value.encode())),
    st.text(max_size=4),
    st.text(max_size=200),
)
DESCRIPTOR = st.lists(ENTRY, max_size=3).map(b"".join)
FIELD = (
    st.builds(lambda text: delimited(0x0A, text.encode()), st.text(max_size=3))
    | DESCRIPTOR.map(lambda raw: delimited(0x12, raw))
    | st.integers(0, 2**35).map(lambda hits: b"\x18" + varint(hits))
    | st.just(delimited(0x22, b"unknown"))
    | st.just(b"\x0a\x81\x00d")  # a length that is longer than it must be
)
NEARLY = st.lists(FIELD | st.binary(max_size=3), max_size=6).map(b"".join)


def as_protobuf_reads(message):
    try:
        request = RateLimitRequest.FromString(message)
    except DecodeError:
        return None
    return request.domain.encode(), [each.SerializeToString() for each in request.descriptors], request.hits_addend


@given(NEARLY | st.binary(max_size=30))
@example(b"\x0a\x01d\x12\x80")
@example(b"\x0a\x01d\x0a\x01e")
@example(b"\x0a\x00\x0a\x01e")
@example(b"\x18\x01\x18\x02")
def test_what_is_split_by_hand_is_what_protobuf_reads(message):
    """Whatever bytes arrive: either they are left to protobuf, or both find the same."""
    found = split(message)
    if found is None:
        return
    expected = as_protobuf_reads(message)
    name, descriptors, hits = found
    if expected is None:  # a part is malformed, which shows where it is used
        with pytest.raises((UnicodeDecodeError, DecodeError)):
            [RateLimitRequest.FromString(delimited(0x0A, name)), *map(parsed, descriptors)]
        return
    assert (name, [parsed(raw).SerializeToString() for raw in descriptors], hits) == expected


def parsed(raw):
    return RateLimitRequest.FromString(delimited(0x12, raw)).descriptors[0]


@given(NEARLY)
def test_both_ways_lead_to_one_answer(tmp_path_factory, message):
    """A request is answered the same, whether it is read by hand, from memory, or by protobuf alone."""
    by_hand = Service(tmp_path_factory.mktemp("d"), LIMITED)
    by_protobuf = Service(tmp_path_factory.mktemp("d"), LIMITED)
    unknown = delimited(0x7A, b"not ours")
    message = delimited(0x0A, b"d") + message
    for _ in range(2):
        assert by_hand.send(message) == by_protobuf.send(message + unknown)


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        (b"\x0a\x01d\x12\x00", (b"d", [b""], 0)),
        (b"\x12\x00\x18\x7f\x12\x01x\x0a\x01d", (b"d", [b"", b"x"], 127)),
        (b"\x0a\x01d" + b"\x18" + varint(16383), (b"d", [], 16383)),
        (b"\x0a\x01d" + b"\x18" + varint(16384), None),
        (b"\x0a\x01d" + b"\x12" + varint(16383) + bytes(16383), (b"d", [bytes(16383)], 0)),
        (b"\x0a\x01d" + b"\x12" + varint(16384) + bytes(16384), None),
        (b"\x0a\x01d\x12\x02x", None),
        (b"\x0a", None),
        (b"\x0a\x01d\x0a\x01d", None),
        (b"\x0a\x01d\x22\x00", None),
    ],
)
def test_what_is_plain(message, plain):
    """The three fields in any order with short lengths; all else is protobuf's."""
    assert split(message) == plain


def test_what_protobuf_reads_is_checked():
    """A domain, and 1 to the stated number of descriptors."""
    most = b"\x0a\x01d" + b"\x12\x00" * DESCRIPTORS_MAX
    assert read(most) == (b"d", [b""] * DESCRIPTORS_MAX, 0)
    for message in (most + b"\x12\x00", b"\x0a\x01d", b"\x12\x00", b"\x0a"):
        with pytest.raises(InvalidRequest) as caught:
            read(message)
        assert caught.value.status is Status.INVALID_ARGUMENT


def test_a_malformed_descriptor_is_an_invalid_request(tmp_path):
    """Also where the rest of the request is split by hand, nothing of it is charged."""
    service = Service(tmp_path, LIMITED)
    good = request("user=u").SerializeToString()
    invalid = (Status.INVALID_ARGUMENT, "the message is not a RateLimitRequest")
    assert service.send(good + b"\x12\x01\x0a") == invalid
    assert service.send(good + delimited(0x12, delimited(0x0A, b"\x0a\x01\xff"))) == invalid
    assert service.store.calls == []


def request(*paths):
    asked = RateLimitRequest(domain="d")
    for path in paths:
        asked.descriptors.add(entries=descriptor(path)["entries"])
    return asked


def test_who_is_seen_again_is_charged_again(tmp_path):
    """What is remembered of a descriptor is where to count, never what was counted or how many hits came with it."""
    service = Service(tmp_path, LIMITED)
    assert [service.ask("user=u", hits=hits).statuses[0].limit_remaining for hits in (0, 1, 0)] == [2, 1, 0]
    assert service.codes("user=u") == "xx"
    assert service.codes("user=v", hits=3) == "oo"
    assert service.codes("user=v") == "xx"
    own = {"path": "user=w", "hitsAddend": "2"}
    assert [service.ask(own, hits=7).statuses[0].limit_remaining for _ in range(2)] == [1, 0]
    assert (
        service.store.calls[-1][0][0].subject
        == RateLimitRequest.FromString(delimited(0x12, service.store.calls[-1][0][0].subject))
        .descriptors[0]
        .SerializeToString()
    )


def test_another_configuration_remembers_nothing(tmp_path):
    """After a reload a descriptor is matched anew."""
    service = Service(tmp_path, LIMITED)
    for _ in range(3):
        assert service.ask("user=u").statuses[0].current_limit.requests_per_unit == 3
    assert service.service.memory.requests
    service.config = Service(tmp_path, LIMITED.replace("3", "9")).config
    for _ in range(3):
        assert service.ask("user=u").statuses[0].current_limit.requests_per_unit == 9


def a_domain(name="d"):
    limit = RateLimitRule(unit=Unit.HOUR, requests_per_unit=3)
    return Domain(name, [DescriptorRule(key="user", rate_limit=limit)])


def raw_of(path):
    return request(path).descriptors[0].SerializeToString()


def test_the_memory_is_bounded_over_all_domains():
    """The stated number is remembered; one more, and what came first is forgotten."""
    memory, config, first, second = Memory(b"p:"), object(), a_domain(), a_domain("e")
    for number in range(REMEMBERED_MAX):
        memory.ask(config, first if number % 2 else second, raw_of(f"user={number}"))
    assert len(first.asked) + len(second.asked) == REMEMBERED_MAX
    assert raw_of("user=0") in second.asked
    memory.ask(config, first, raw_of("user=more"))
    assert len(first.asked) + len(second.asked) == REMEMBERED_MAX
    assert raw_of("user=0") not in second.asked
    assert raw_of("user=1") in first.asked


def test_long_descriptors_are_not_remembered():
    """The longest that is remembered is; one byte more is charged all the same, and forgotten."""
    memory, domain = Memory(b"p:"), a_domain()
    head = len(raw_of("user=" + "x" * 900)) - 900
    for size, kept in ((REMEMBERED_BYTES_MAX, 1), (REMEMBERED_BYTES_MAX + 1, 1)):
        raw = raw_of("user=" + "x" * (size - head))
        assert len(raw) == size
        assert memory.ask("config", domain, raw).charge is not None
        assert len(domain.asked) == kept


def test_a_request_is_remembered_when_it_comes_again(tmp_path):
    """Not the first time, so that requests that come once find no way in; it is charged each time all the same."""
    service = Service(tmp_path, LIMITED)
    memory = service.service.memory
    seen = [(service.ask("user=u").overall_code, len(memory.requests)) for _ in range(4)]
    assert seen == [(1, 0), (1, 1), (1, 1), (2, 1)]
    assert len(service.store.calls) == 4


def test_remembered_requests_are_bounded():
    """The stated number is remembered; one more, and the first is forgotten. One that is too long is not."""
    memory, understood = Memory(b"p:"), Understood("d", 0, (), ())
    for number in range(REQUESTS_REMEMBERED_MAX + 1):
        assert len(memory.requests) == number
        memory.keep("config", b"%d" % number, understood)
    assert b"0" not in memory.requests
    assert len(memory.requests) == REQUESTS_REMEMBERED_MAX
    memory.keep("config", b"x" * REMEMBERED_BYTES_MAX, understood)
    memory.keep("config", b"x" * (REMEMBERED_BYTES_MAX + 1), understood)
    assert [len(message) for message in list(memory.requests)[-2:]] == [4, REMEMBERED_BYTES_MAX]
    memory.keep("another", b"x", understood)
    assert list(memory.requests) == [b"x"]


def test_an_old_configuration_is_let_go():
    """With the first new descriptor of another configuration, nothing of the old one is held any more."""
    memory, old, new = Memory(b"p:"), a_domain(), a_domain()
    memory.ask("old", old, raw_of("user=u"))
    memory.ask("new", new, raw_of("user=u"))
    assert [remembered for remembered, _ in memory._order] == [new.asked]


def test_requests_with_unread_fields_are_answered(tmp_path):
    """Fields that are not ours, in the request and in a descriptor, change nothing."""
    service = Service(tmp_path, LIMITED)
    unread = delimited(0x7A, b"x")
    message = delimited(0x0A, b"d") + delimited(0x12, raw_of("user=u") + unread) + unread
    assert [service.send(message).overall_code for _ in range(4)] == [RateLimitResponse.OK] * 3 + [2]
