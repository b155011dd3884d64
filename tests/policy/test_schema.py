"""The schema and the reference that is written from it: complete, and up to date."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
from pydantic import BaseModel

from sidecar.policy.document import Document
from sidecar.policy.messages import keys_of, model_in
from sidecar.policy.schema import json_schema, policy_reference

DOCS = Path(__file__).parents[2] / "docs" / "policy.md"


SCHEMA = json_schema()


def models(model: type[BaseModel], found: dict[str, type[BaseModel]]) -> dict[str, type[BaseModel]]:
    if model.__name__ not in found:
        found[model.__name__] = model
        for field in model.model_fields.values():
            inner = model_in(field.annotation)
            if inner is not None:
                models(inner, found)
    return found


FIELDS = [
    pytest.param(model, name, id=f"{model.__name__}.{name}")
    for model in models(Document, {}).values()
    for name in keys_of(model)
]


@pytest.mark.parametrize(("model", "name"), FIELDS)
def test_every_key_is_described_with_an_example_that_the_schema_accepts(model, name):
    """Description and examples are for the reader; the examples are right."""
    field = keys_of(model)[name]
    assert field.description
    assert field.description.endswith(".")
    assert field.examples
    owner = SCHEMA if model is Document else SCHEMA["$defs"][model.__name__]
    validator = jsonschema.Draft202012Validator({**owner["properties"][name], "$defs": SCHEMA["$defs"]})
    for example in field.examples:
        validator.validate(example)


def test_the_reference_is_up_to_date():
    """`python -m sidecar.policy.schema > docs/policy.md` would change nothing."""
    assert DOCS.read_text() == policy_reference()


def test_the_reference_is_complete():
    """Every key of every mapping has its row."""
    text = DOCS.read_text()
    for model in models(Document, {}).values():
        for name, field in keys_of(model).items():
            row = next(
                line for line in text.splitlines() if line.startswith(f"| `{name}` |") and field.description in line
            )
            assert row.replace("\\|", "").count("|") == 6


def test_links_of_the_reference_lead_to_its_headings():
    """Each type's link has a heading that GitHub gives the same anchor."""
    text = DOCS.read_text()
    headings = {line.removeprefix("## ").lower() for line in text.splitlines() if line.startswith("## ")}
    anchors = {"".join(c for c in heading.replace(" ", "-") if c.isalnum() or c in "-_") for heading in headings}
    links = {part.partition(")")[0] for part in text.split("](#")[1:]}
    assert links
    assert links <= anchors


def test_the_schema_is_valid_and_closed():
    """Draft 2020-12; every mapping refuses keys that it does not know."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"].endswith("2020-12/schema")
    assert all(mapping["additionalProperties"] is False for mapping in (SCHEMA, *SCHEMA["$defs"].values()))
