"""Envoy's dynamic metadata, as a Check carries it: values that the filters before ext_authz have set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.envoy.pb import core_pb2

if TYPE_CHECKING:
    from google.protobuf.struct_pb2 import Value

    from sidecar.core.principal import Json


class RequestMetadata:
    """Looks values up; nothing is read of what no policy names.

    Holds a copy: what waits for Redis does not keep the rest of the message.
    """

    __slots__ = ("_metadata",)

    def __init__(self, metadata: core_pb2.Metadata) -> None:
        self._metadata = core_pb2.Metadata()
        self._metadata.CopyFrom(metadata)

    def __call__(self, namespace: str, path: tuple[str, ...]) -> Json:
        """The value at a path of names below a namespace; None where there is none, or where it is an object."""
        namespaces = self._metadata.filter_metadata
        if namespace not in namespaces:
            return None
        struct = namespaces[namespace]
        *parents, name = path
        for parent in parents:
            if parent not in struct.fields:
                return None
            value = struct.fields[parent]
            if value.WhichOneof("kind") != "struct_value":
                return None
            struct = value.struct_value
        return _plain(struct.fields[name]) if name in struct.fields else None


def _plain(value: Value) -> Json:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            return value.number_value
        case "bool_value":
            return value.bool_value
        case "list_value":
            return [each.string_value if each.HasField("string_value") else None for each in value.list_value.values]
        case _:
            return None
