"""Pydantic's errors as faults: the path as it is written, the line, a sentence for people, and what is accepted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel

from sidecar.policy.document import Document
from sidecar.policy.faults import Fault, Wrong, did_you_mean, shown
from sidecar.policy.model import TAG_MARK, Choice

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from sidecar.policy.yaml import PathParts, Source

_SECRET_PATHS = frozenset({"redis"})
"""Below these, messages repeat no value."""

_EXPECTED = {
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a number",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


def faults_of(errors: list[ErrorDetails], source: Source) -> Iterator[Fault]:
    """One fault for each error, in no order."""
    for error in errors:
        path = written_path(error)
        yield source.fault(path, *_sentence(error, path))


def written_path(error: ErrorDetails) -> PathParts:
    """Where an error is in the document: without the tags of forms, and the mark that pydantic adds for a key."""
    path = [part for part in error["loc"] if isinstance(part, int) or not part.startswith(TAG_MARK)]
    if path and path[-1] == "[key]" and error["type"] != "extra_forbidden":
        path.pop()
    return tuple(path)


def _sentence(error: ErrorDetails, path: PathParts) -> tuple[str, str]:
    """What is wrong, and what is accepted."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    shows = not path or path[0] not in _SECRET_PATHS
    if isinstance(wrong := context.get("error"), Wrong):
        return wrong.message, wrong.accepted
    match kind:
        case "extra_forbidden":
            return f"unknown key {shown(path[-1])}", _known_keys(path)
        case "missing":
            return "the key is missing", _description(path)
        case "literal_error":
            return (f"{_named(value)} is not a choice" if shows else "not a choice"), _choices(context, path)
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return f"{_named(value)} is out of range", _range(path, context)
        case "too_short":
            return "it is empty", "at least one item"
        case "too_long":
            return "it has too many items", f"at most {context.get('max_length')} items"
        case "union_tag_not_found" | "union_tag_invalid":
            quotes = "; text in quotes" if isinstance(value, (int, float)) else ""
            return f"{_kind_of(value)} is not accepted here", f"{_description(path)}{quotes}"
    return _wrong_type(kind, value, path, shows=shows)


def _wrong_type(kind: str, value: Any, path: PathParts, *, shows: bool) -> tuple[str, str]:
    expected = _EXPECTED.get(kind)
    if expected is None:
        return "the value is not accepted", _description(path)
    found = (
        f"{_kind_of(value)} ({_named(value)})" if shows and isinstance(value, (str, int, float)) else _kind_of(value)
    )
    return f"{found} instead of {expected}", _accepted_type(kind, value, path)


def _accepted_type(kind: str, value: Any, path: PathParts) -> str:
    model, name = _model_and_key(path)
    field = keys_of(model).get(name)
    if kind == "model_type" and (inner := model_in(field.annotation if field else None)) is not None:
        return inner.accepted() if issubclass(inner, Choice) else f"a mapping; keys: {', '.join(keys_of(inner))}"
    example = next((e for e in (field.examples or () if field else ()) if isinstance(e, str)), None)
    such_as = f" such as {example}" if kind == "string_type" and example is not None else ""
    quotes = ", in quotes" if kind == "string_type" and isinstance(value, (int, float)) and not such_as else ""
    return f"{_EXPECTED[kind]}{such_as}{quotes}"


def _named(value: Any) -> str:
    """A value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else shown(value)


def _kind_of(value: Any) -> str:
    match value:
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return "no value"


def _choices(context: dict[str, Any], path: PathParts) -> str:
    """Pydantic's `'a', 'b' or 'c'` (or `True`) as YAML writes it: `a, b, c`; what else may stand there, described."""
    model, name = _model_and_key(path)
    fields = keys_of(model)
    if name in fields and model_in(fields[name].annotation) is not None:
        return _description(path)
    words = str(context.get("expected", "")).replace(" or ", ", ").split(", ")
    choices = ", ".join(word.lower() if word in {"True", "False"} else word.strip("'") for word in words)
    return f"one of {choices}" if len(words) > 1 else f"{choices}, or leave the key out"


def _range(path: PathParts, context: dict[str, Any]) -> str:
    bounds: dict[str, Any] = dict(context)
    model, name = _model_and_key(path)
    fields = keys_of(model)
    if name in fields:
        for rule in fields[name].metadata:
            bounds |= {key: getattr(rule, key) for key in ("ge", "gt", "le", "lt") if hasattr(rule, key)}
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return " and ".join(f"{word} {bounds[key]}" for key, word in words.items() if key in bounds)


def _known_keys(path: PathParts) -> str:
    model, name = _model_and_key(path)
    return did_you_mean(str(name), keys_of(model), "known keys") if model is not None else ""


def _description(path: PathParts) -> str:
    model, name = _model_and_key(path)
    fields = keys_of(model)
    if name not in fields:
        return ""
    field = fields[name]
    inner = model_in(field.annotation)
    description = (field.description or "").rstrip(".")
    text = f"{name}: {description[:1].lower()}{description[1:]}"
    return f"{text} ({inner.accepted()})" if inner is not None and issubclass(inner, Choice) else text


def _model_and_key(path: PathParts) -> tuple[type[BaseModel] | None, str]:
    """The model that the last key of a path belongs to, and that key."""
    model: type[BaseModel] | None = Document
    named, owner, key = False, None, ""
    for part in path:
        if isinstance(part, int):
            continue
        if named:  # a name that the policy's author chose, as in `issuers.<name>`: described by the field above it
            named = False
            continue
        owner, key = model, part
        field = keys_of(model).get(part)
        annotation = field.annotation if field is not None else None
        model, named = model_in(annotation), get_origin(annotation) is dict
    return owner, key


def keys_of(model: type[BaseModel] | None) -> Mapping[str, FieldInfo]:
    """A model's fields by their keys in the document; none without a model."""
    if model is None:
        return {}
    return {field.alias or name: field for name, field in model.model_fields.items()}


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The one model that a field's type holds, however deep; None where it holds none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := model_in(inner)) is not None), None)
