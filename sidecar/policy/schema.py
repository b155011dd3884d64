"""The policy's JSON Schema (draft 2020-12), for editors, and the policy reference in Markdown, written from it.

The schema accepts every policy that loads. It cannot say everything: names that refer to something, rules in conflict
and files are checked by `sidecar check` alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from pydantic.json_schema import GenerateJsonSchema

from sidecar.policy import durations, fields
from sidecar.policy.document import Document

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import core_schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_KINDS = {
    durations.PATTERN: "duration",
    fields.NAME_PATTERN: "name",
    fields.RATE_PATTERN: "rate",
    fields.URL_PATTERN: "URL",
    fields.REDIS_URL_PATTERN: "Redis URL",
    fields.ADDRESS_PATTERN: "address",
    fields.SERVER_PATTERN: "`host:port`",
    fields.HOST_PATTERN: "host",
    fields.PATH_PATTERN: "path",
    fields.TEMPLATE_PATTERN: "path template",
    fields.TOKEN_PATTERN: "name",
    fields.UPSTREAM_HEADER_PATTERN: "name",
}

_INTRODUCTION = """\
# Policy reference

Every key of the policy file. This page is generated from the schema (`python -m sidecar.policy.schema`).

The file is one YAML document in UTF-8. Of the plain words only `true` and `false` are booleans; numbers are written as
in JSON. Unknown and repeated keys are errors, and so is a key without a value. Anchors and aliases work; tags and merge
keys do not. Relative file names are relative to the policy file.

A **duration** is written `150ms`, `30s`, `5m`, `1h30m` or `1d`; its units are d, h, m, s, ms and us. A **name** has up
to 64 letters, digits, `.`, `_` and `-`. `sidecar check FILE` reports every fault with its line; `sidecar schema`
prints the JSON Schema, with which editors complete and check the file.

**Which rule applies.** The most specific one that matches; its place in the file decides nothing. Compared are, in this
order: the host (exact, then `*.suffix` with the longer suffix first, then any), the path (exact, then templates and
prefixes segment by segment: a literal segment beats a `{parameter}`, which beats a prefix's end), the methods (listed
before any), and the header conditions (more before fewer). Two rules that would tie are an error. A less specific rule
still applies where a more specific one does not match the method or the headers. Where none matches, the request is
denied.
"""


def json_schema() -> dict[str, Any]:
    """The schema of a policy as YAML writes it."""
    schema = Document.model_json_schema(schema_generator=_Generator, mode="validation")
    return {"$schema": DIALECT, "title": "Sidecar policy", **schema}


class _Generator(GenerateJsonSchema):
    """Without what helps no editor: titles made of names, and null (a key without a value is an error)."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        inner = super().default_schema(schema)
        if inner.get("default") in (None, []) or isinstance(inner.get("default"), dict):
            inner.pop("default", None)
        return inner

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        mapping = super().dict_schema(schema)
        return {**mapping, "additionalProperties": False} if "patternProperties" in mapping else mapping

    def field_title_should_be_set(self, _schema: Any) -> bool:
        return False


def policy_reference() -> str:
    """The policy reference: a section for each mapping of the document, a row for each of its keys."""
    schema = json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    places: dict[str, list[str]] = {}
    for name, place in _places(schema, definitions, ""):
        places.setdefault(name, []).append(place)
    reference = _Reference(definitions, places)
    sections = [reference.section("The document", [], schema)]
    sections += [reference.section(f"`{at[0]}`", at[1:], definitions[name]) for name, at in places.items()]
    return "\n".join([_INTRODUCTION, *sections])


def _places(schema: dict[str, Any], definitions: dict[str, Any], at: str) -> Iterator[tuple[str, str]]:
    """Every definition with every place where it may stand, in the document's order; recursion is cut."""
    for key, value in schema["properties"].items():
        for name, steps in _references(value):
            place = f"{at}.{key}{steps}" if at else f"{key}{steps}"
            yield name, place
            if definitions[name] is not schema:
                yield from _places(definitions[name], definitions, place)


def _references(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The definitions that a key's value may be, each with the steps that lead to it (`[]`, `.<name>`)."""
    if "$ref" in value:
        yield value["$ref"].rpartition("/")[2], ""
    for choice in value.get("oneOf", ()):
        yield from _references(choice)
    if "items" in value:
        yield from ((name, f"[]{steps}") for name, steps in _references(value["items"]))
    for inner in value.get("patternProperties", {}).values():
        yield from ((name, f".<name>{steps}") for name, steps in _references(inner))


@dataclass(frozen=True, slots=True)
class _Reference:
    """Writes sections; knows the schema's definitions, and the places in the document where each may stand."""

    definitions: dict[str, Any]
    places: dict[str, list[str]]

    def section(self, title: str, also: list[str], schema: dict[str, Any]) -> str:
        """One mapping: what it is, and a row for each key."""
        lines = [f"## {title}", "", schema["description"]]
        if schema.get("maxProperties") == 1:
            lines += ["", "Exactly one of the keys is given."]
        if also:
            lines += ["", f"Also at {', '.join(f'`{place}`' for place in also)}."]
        lines += ["", "| key | type | default | meaning | example |", "|---|---|---|---|---|"]
        for key, value in schema["properties"].items():
            default = "required" if key in schema.get("required", ()) else _default(value)
            meaning = value.get("description") or self._target(value)["description"]
            cells = [f"`{key}`", self._type(value), default, meaning, _yaml(value["examples"][0])]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        return "\n".join([*lines, ""])

    def _target(self, value: dict[str, Any]) -> dict[str, Any]:
        target: dict[str, Any] = self.definitions[_referred(value)]
        return target

    def _type(self, value: dict[str, Any]) -> str:
        """The type in words."""
        if "$ref" in value:
            place = self.places[_referred(value)][0]
            return f"[`{place}`](#{_anchor(place)})"
        if "oneOf" in value:
            return " or ".join(self._type(choice) for choice in value["oneOf"])
        if "const" in value or "enum" in value:
            return ", ".join(_yaml(choice) for choice in value.get("enum", [value.get("const")]))
        match value.get("type"):
            case "array":
                return f"list of {self._type(value['items'])}"
            case "object":
                (inner,) = value["patternProperties"].values()
                return f"mapping of names to {self._type(inner)}"
            case "integer" | "number" as kind:
                return f"{'whole number' if kind == 'integer' else 'number'}{_bounds(value)}"
            case "boolean":
                return "true or false"
            case _:
                kind = _KINDS.get(value.get("pattern", ""), "text")
                return f"{kind}, {value['$comment']}" if "$comment" in value else kind


def _referred(value: dict[str, Any]) -> str:
    return str(value["$ref"]).rpartition("/")[2]


def _default(value: dict[str, Any]) -> str:
    return _yaml(value["default"]) if "default" in value else ""


def _bounds(value: dict[str, Any]) -> str:
    words = {"minimum": "from", "exclusiveMinimum": "over", "maximum": "to"}
    found = [f"{word} {value[keyword]}" for keyword, word in words.items() if keyword in value]
    return f", {' '.join(found)}" if found else ""


def _anchor(heading: str) -> str:
    """The link to a heading as GitHub makes it: lower case, punctuation dropped."""
    return "".join(letter for letter in heading.lower() if letter.isalnum() or letter in "-_")


def _yaml(value: Any) -> str:
    """A value in YAML's flow style on one line, as code."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("...\n").strip()
    return f"`{text}`"


if __name__ == "__main__":
    sys.stdout.write(policy_reference())
