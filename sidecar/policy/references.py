"""What parts of a document say about each other by name, checked on the data as written.

So these faults show also where the models refuse the part that holds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidecar.policy.faults import did_you_mean
from sidecar.policy.yaml import Mapping, PathParts, Sequence

if TYPE_CHECKING:
    from sidecar.policy.validate import Validated


def check_references(validated: Validated) -> None:
    """Add faults for names of rules, issuers and limits, and for rules that do not say who is let in."""
    rules = validated.source.root.get("rules")
    if not isinstance(rules, Sequence):
        return
    first: dict[str, int] = {}
    for number, rule in enumerate(rules):
        if not isinstance(rule, Mapping):
            continue
        where = ("rules", number)
        name = rule.get("name")
        if isinstance(name, str) and first.setdefault(name, number) != number:
            line = validated.source.line_of(("rules", first[name], "name"))
            message = f"the name {name!r} is already that of the rule on line {line}"
            validated.fault((*where, "name"), message, "each rule's name once")
        _check_who(validated, where, rule)
        authenticate = rule.get("authenticate")
        if isinstance(authenticate, Mapping):
            _check_authenticate(validated, (*where, "authenticate"), authenticate)
        _check_names(validated, (*where, "limits"), rule.get("limits"), "limits")


_SECTION_KEYS = {
    "token": ("issuers", "issuers"),
    "api_key": ("keyrings", "api_keys"),
    "opaque_token": ("introspection", "introspection"),
    "certificate": ("trust", "certificates"),
}
"""For each kind of credential: the key that holds a name or several, and the section that they are from."""


_NAMES_ONE = frozenset({"opaque_token", "certificate"})


def _check_authenticate(validated: Validated, where: PathParts, authenticate: Mapping) -> None:
    _check_names(validated, (*where, "issuers"), authenticate.get("issuers"), "issuers")
    for together in ("any_of", "all_of"):
        credentials = authenticate.get(together)
        for n, credential in enumerate(credentials if isinstance(credentials, Sequence) else ()):
            for kind, (key, section) in _SECTION_KEYS.items():
                written = credential.get(kind) if isinstance(credential, Mapping) else None
                if not isinstance(written, Mapping):
                    continue
                at, names = (*where, together, n, kind, key), written.get(key)
                if kind in _NAMES_ONE and isinstance(names, str):
                    _check_name(validated, at, names, section)
                elif kind not in _NAMES_ONE:
                    _check_names(validated, at, names, section)


def _check_who(validated: Validated, where: PathParts, rule: Mapping) -> None:
    accepted = "either authenticate: {issuers: [NAME]} or anonymous: true"
    if "authenticate" in rule and "anonymous" in rule:
        validated.fault((*where, "anonymous"), "authenticate and anonymous are given together", accepted)
    elif "authenticate" not in rule and "anonymous" not in rule:
        validated.fault(where, "neither authenticate nor anonymous is given", accepted)


def _check_names(validated: Validated, where: PathParts, names: Any, section: str) -> None:
    seen = set[str]()
    for n, name in enumerate(names if isinstance(names, Sequence) else ()):
        if not isinstance(name, str):
            continue
        if _check_name(validated, (*where, n), name, section) and name in seen:
            validated.fault((*where, n), f"{name!r} is listed twice", "each name once")
        seen.add(name)


def _check_name(validated: Validated, where: PathParts, name: str, section: str) -> bool:
    known = validated.names[section]
    if name not in known:
        accepted = did_you_mean(name, known, section)
        validated.fault(where, f"there is no {name!r} among the {section}", accepted)
    return name in known
