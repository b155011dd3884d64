"""Data to document. Where a part is refused, the rest is validated without it, so that its own faults show as well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from sidecar.policy.document import Document
from sidecar.policy.faults import Fault, PolicyError
from sidecar.policy.messages import faults_of, written_path
from sidecar.policy.yaml import Mapping, PathParts, Sequence, Source

NAMED = ("issuers", "limits", "api_keys", "introspection", "certificates")
"""Sections of parts with names, which rules refer to."""


@dataclass(slots=True, eq=False)
class Validated:
    """A document, possibly without the parts that were refused, and what was wrong with them.

    Attributes:
        rule_numbers: Where the document's rules stand in the file.
        names: All names by section (`NAMED`), also of refused ones: referring to them is no fault.
    """

    source: Source
    document: Document
    rule_numbers: tuple[int, ...]
    names: dict[str, frozenset[str]]
    faults: list[Fault] = field(default_factory=list)

    def fault(self, path: PathParts, message: str, accepted: str = "") -> None:
        """Add a fault at a path."""
        self.faults.append(self.source.fault(path, message, accepted))

    def has(self, section: str) -> bool:
        """Whether the file has this section, be it right or wrong."""
        return section in self.source.root


def validate(source: Source) -> Validated:
    """Check everything that models can check.

    Raises:
        PolicyError: The document is not a mapping.
    """
    root = source.root
    if not isinstance(root, Mapping):
        raise PolicyError(
            [source.fault((), "the document is not a mapping", "sections such as server, issuers, rules")]
        )
    empty = list(_without_value(root))
    faults = [source.fault(path, "the key has no value", "a value; or leave the key out") for path in empty]
    refused = list(empty)
    document: Document | None = None
    try:
        document = Document.model_validate(root)
    except ValidationError as error:
        errors = [e for e in error.errors(include_url=False) if written_path(e) not in set(empty)]
        faults += faults_of(errors, source)
        refused += [written_path(e) for e in errors]
    parts, rule_numbers = _without(root, {_part(path) for path in refused})
    if document is None or refused:
        try:
            document = Document.model_validate(parts)
        except ValidationError:
            raise PolicyError(faults) from None
    names = {section: frozenset(_keys(root.get(section))) for section in NAMED}
    return Validated(source, document, rule_numbers, names, faults)


def _keys(section: Any) -> Iterable[str]:
    return section if isinstance(section, Mapping) else ()


def _without_value(root: Mapping) -> Iterator[PathParts]:
    waiting: list[tuple[PathParts, Any]] = [((), root)]
    while waiting:
        path, node = waiting.pop()
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in items:
            if value is None:
                yield (*path, key)
            elif isinstance(value, (Mapping, Sequence)):
                waiting.append(((*path, key), value))


def _part(path: PathParts) -> PathParts:
    """What is left out for a fault: one rule, issuer or limit, or a whole section."""
    return path[:2] if path and path[0] in {"rules", *NAMED} else path[:1]


def _without(root: Mapping, refused: set[PathParts]) -> tuple[dict[str, Any], tuple[int, ...]]:
    kept: dict[str, Any] = {}
    rule_numbers: tuple[int, ...] = ()
    for section, value in root.items():
        if (section,) in refused:
            continue
        if section == "rules" and isinstance(value, Sequence):
            rule_numbers = tuple(n for n in range(len(value)) if (section, n) not in refused)
            kept[section] = [value[n] for n in rule_numbers]
        elif section in NAMED and isinstance(value, Mapping):
            kept[section] = {name: item for name, item in value.items() if (section, name) not in refused}
        else:
            kept[section] = value
    return kept, rule_numbers
