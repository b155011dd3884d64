"""Compares our definitions with those of xds-protos and grpcio-health-checking; prints what it found as JSON.

Run as a script. The complete API lives in the default pool, ours in a pool of its own, built from the descriptors that
the generated modules embed.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from envoy.service.auth.v3 import external_auth_pb2  # noqa: F401 - imported for what it registers
from envoy.service.discovery.v3 import ads_pb2  # noqa: F401
from envoy.service.ratelimit.v3 import rls_pb2  # noqa: F401
from google.protobuf import (
    any_pb2,
    descriptor,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    message_factory,
    struct_pb2,
    wrappers_pb2,
)
from google.rpc import status_pb2  # noqa: F401
from grpc_health.v1 import health_pb2  # noqa: F401

GENERATED = Path(__file__).parents[2] / "sidecar/envoy/pb"
WELL_KNOWN = (any_pb2, duration_pb2, struct_pb2, wrappers_pb2)
ROUND_TRIPS_EACH = 60

NOT_IN_XDS_PROTOS = "ratelimit.config.ratelimit.v3."
"""envoyproxy/ratelimit's own package; tests/envoy/test_proto.py has its field numbers."""

Field = descriptor.FieldDescriptor


def own_pool() -> tuple[descriptor_pool.DescriptorPool, list[str]]:
    """Our definitions, from the bytes inside the generated modules."""
    files = {}
    for path in GENERATED.glob("*_pb2.py"):
        literal = re.search(r"AddSerializedFile\((b'.*')\)", path.read_text()).group(1)
        file = descriptor_pb2.FileDescriptorProto.FromString(eval(literal))
        files[file.name] = file
    pool = descriptor_pool.DescriptorPool()
    for module in WELL_KNOWN:
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    added: set[str] = set()

    def add(name: str) -> None:
        if name in files and name not in added:
            added.add(name)
            for dependency in files[name].dependency:
                add(dependency)
            pool.AddSerializedFile(files[name].SerializeToString())

    for name in files:
        add(name)
    return pool, sorted(files)


def messages_of(container) -> list[descriptor.Descriptor]:
    found = []
    for message in container:
        found += [message, *messages_of(message.nested_types)]
    return found


def describe(field: Field) -> dict[str, object]:
    kind = field.message_type or field.enum_type
    return {
        "number": field.number,
        "type": field.type,
        "of": kind.full_name if kind is not None else None,
        "repeated": field.is_repeated,
        "json_name": field.json_name,
        "oneof": field.containing_oneof.name if field.containing_oneof else None,
        "presence": field.has_presence,
    }


def enum_differences(ours, theirs) -> list[str]:
    names = {value.name: value.number for value in theirs.values}
    return [f"{ours.full_name}.{value.name}" for value in ours.values if names.get(value.name) != value.number]


def fill(message, rng: random.Random, depth: int = 0) -> None:
    """Random values in random fields; unset fields are as interesting as set ones."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.3 or depth > 4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value_field = field.message_type.fields_by_name["value"]
            container = getattr(message, field.name)
            for number in range(rng.randrange(3)):
                if value_field.message_type is not None:
                    fill(container[f"k{number}"], rng, depth + 1)
                else:
                    container[f"k{number}"] = scalar(value_field, rng)
        elif field.is_repeated:
            container = getattr(message, field.name)
            for _ in range(rng.randrange(4)):
                if field.message_type is not None:
                    fill(container.add(), rng, depth + 1)
                else:
                    container.append(scalar(field, rng))
        elif field.message_type is not None:
            child = getattr(message, field.name)
            child.SetInParent()
            fill(child, rng, depth + 1)
        else:
            setattr(message, field.name, scalar(field, rng))


def scalar(field: Field, rng: random.Random) -> object:
    match field.type:
        case Field.TYPE_STRING:
            return rng.choice(["", "a", "é\u0000z", "x" * 300])
        case Field.TYPE_BYTES:
            return rng.choice([b"", b"\xff\x00", b"y" * 200])
        case Field.TYPE_BOOL:
            return rng.random() < 0.5
        case Field.TYPE_ENUM:
            return rng.choice(field.enum_type.values).number
        case Field.TYPE_DOUBLE:
            return rng.choice([0.0, -1.5, 1e300])
        case Field.TYPE_INT32 | Field.TYPE_INT64:
            return rng.choice([0, -1, 2**31 - 1])
        case Field.TYPE_UINT32 | Field.TYPE_UINT64:
            return rng.choice([0, 1, 2**32 - 1])
    raise AssertionError(f"no values for {field.full_name} of type {field.type}")


def round_trip_failure(ours, theirs, rng: random.Random) -> str | None:
    """Ours -> theirs -> ours, and back: same bytes when serialized deterministically by the side that began."""
    message = ours()
    fill(message, rng)
    sent = message.SerializeToString(deterministic=True)
    other = theirs.FromString(sent)
    returned = ours.FromString(other.SerializeToString())
    if returned.SerializeToString(deterministic=True) != sent:
        return f"{ours.DESCRIPTOR.full_name}: changed on the way"
    theirs_filled = theirs()
    fill(theirs_filled, rng)
    sent = theirs_filled.SerializeToString(deterministic=True)
    back = theirs.FromString(ours.FromString(sent).SerializeToString())
    if back.SerializeToString(deterministic=True) != sent:
        return f"{ours.DESCRIPTOR.full_name}: lost on the way back"
    return None


def main() -> None:
    complete = descriptor_pool.Default()
    pool, names = own_pool()
    files = [pool.FindFileByName(name) for name in names]
    messages = [
        message
        for file in files
        for message in messages_of(file.message_types_by_name.values())
        if not message.GetOptions().map_entry and not message.full_name.startswith(NOT_IN_XDS_PROTOS)
    ]
    enums = [
        enum
        for file in files
        for enum in file.enum_types_by_name.values()
        if not enum.full_name.startswith(NOT_IN_XDS_PROTOS)
    ]
    enums += [enum for message in messages for enum in message.enum_types]
    report: dict[str, list[str]] = {"differences": [], "newer": [], "round_trip_failures": []}
    for message in messages:
        compare_fields(message, complete.FindMessageTypeByName(message.full_name), report)
    for enum in enums:
        report["differences"] += enum_differences(enum, complete.FindEnumTypeByName(enum.full_name))
    services = [service for file in files for service in file.services_by_name.values()]
    found = sorted(method for service in services for method in agreeing_methods(service, complete))
    counts = {"messages": len(messages), "round_trips": len(messages) * ROUND_TRIPS_EACH}
    print(json.dumps({**report, **counts, "services": found}))  # noqa: T201 - its answer


def compare_fields(ours, theirs, report: dict[str, list[str]]) -> None:
    for field in ours.fields:
        other = theirs.fields_by_name.get(field.name)
        if other is None:
            taken = field.number in theirs.fields_by_number
            report["differences" if taken else "newer"].append(field.full_name)
        elif describe(field) != describe(other):
            report["differences"].append(f"{field.full_name}: {describe(field)} is not {describe(other)}")
    rng = random.Random(20)
    for _ in range(ROUND_TRIPS_EACH):
        failure = round_trip_failure(
            message_factory.GetMessageClass(ours), message_factory.GetMessageClass(theirs), rng
        )
        if failure is not None:
            report["round_trip_failures"].append(failure)


def agreeing_methods(service, complete) -> list[str]:
    """The methods that have the same types and streams on both sides."""
    theirs = complete.FindServiceByName(service.full_name)
    agreeing = []
    for method in service.methods:
        other = theirs.methods_by_name[method.name]
        pair = [
            (m.input_type.full_name, m.output_type.full_name, m.client_streaming, m.server_streaming)
            for m in (method, other)
        ]
        if pair[0] == pair[1]:
            agreeing.append(f"{service.full_name}/{method.name}")
    return agreeing


if __name__ == "__main__":
    main()
