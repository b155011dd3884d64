"""From the document to what deciding needs: written -> validated -> compiled.

`load` reports every fault of every kind at once. Where the models refuse a part (a rule, an issuer, a limit, a
section), that part alone is left out, and what can be checked between the others still is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar.core.policy import Policy
from sidecar.core.secret import MASK
from sidecar.policy.api_key_section import compile_api_keys
from sidecar.policy.binding_sections import compile_bindings
from sidecar.policy.compile_authenticate import Provers
from sidecar.policy.compile_issuers import compile_issuers
from sidecar.policy.compile_limits import compile_limits, held_limits
from sidecar.policy.compile_rules import RuleCompiler
from sidecar.policy.compile_settings import compile_settings
from sidecar.policy.faults import PolicyError
from sidecar.policy.files import Files
from sidecar.policy.internal_tokens_section import compile_internal_tokens
from sidecar.policy.introspection_section import compile_introspection
from sidecar.policy.ratelimit_section import compile_ratelimit
from sidecar.policy.references import check_references
from sidecar.policy.validate import validate
from sidecar.policy.yaml import Source, read

if TYPE_CHECKING:
    from sidecar.core.bindings import LimitBinding
    from sidecar.policy.api_key_section import CompiledKeyring
    from sidecar.policy.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class CompiledDocument:
    """A policy file that was accepted.

    Attributes:
        policy: What deciding needs; replaced at a reload.
        settings: How the process runs; a change needs a restart.
        written: The document with its defaults, as JSON: see `masked`.
        limits: The policy's limits by name, also those that no rule uses.
        keyrings: By name, with the files that they are from.
    """

    policy: Policy
    settings: Settings
    written: bytes
    limits: Mapping[str, LimitBinding] = field(default_factory=dict)
    keyrings: Mapping[str, CompiledKeyring] = field(default_factory=dict)


def load(path: Path, generation: int, resources: tuple[Source, ...] | None = None) -> CompiledDocument:
    """Read, validate and compile a policy file.

    Args:
        path: The file.
        generation: Of the policy.
        resources: What `ratelimit.xds` sent; None: nothing yet.

    Raises:
        PolicyError: With every fault of the file and of those that it names, in the order of their lines.
    """
    return compile_source(read(path), path.parent, generation, resources)


def compile_source(
    source: Source, directory: Path, generation: int, resources: tuple[Source, ...] | None = None
) -> CompiledDocument:
    """The same for a document that was read already; relative paths are relative to `directory`.

    Raises:
        PolicyError: With every fault.
    """
    validated = validate(source)
    check_references(validated)
    document = validated.document
    files = Files(directory, validated)
    settings = compile_settings(validated, files)
    bindings = compile_bindings(validated, files)
    issuers = bindings.issuers(compile_issuers(validated, files))
    keyrings = compile_api_keys(validated, files)
    introspection = bindings.introspection(compile_introspection(validated, files))
    provers = Provers(issuers, {name: each.keyring for name, each in keyrings.items()}, introspection, bindings.trusts)
    limits = compile_limits(validated)
    rules = RuleCompiler(validated, provers, limits).table()
    ratelimit = compile_ratelimit(validated, files, resources)
    internal_tokens = compile_internal_tokens(validated, files)
    if validated.faults:
        raise PolicyError(validated.faults)
    policy = Policy(
        generation=generation,
        rules=rules,
        issuers={issuer.issuer: issuer for issuer in issuers.values()},
        keyrings=provers.keyrings,
        introspection=introspection,
        ratelimit=ratelimit,
        audit_claims=tuple(document.audit.claims),
        held_limits=held_limits(limits),
        internal_tokens=internal_tokens,
    )
    return CompiledDocument(
        policy, settings, document.model_dump_json(exclude_none=True, by_alias=True).encode(), limits, keyrings
    )


def masked(compiled: CompiledDocument) -> dict[str, Any]:
    """The policy for the eyes of operators: generation, and the document with its defaults; nothing secret in it.

    Passwords are in files and never part of the document; what is left to mask are the queries of URLs.
    """
    return {"generation": compiled.policy.generation, "policy": _without_queries(json.loads(compiled.written))}


def _without_queries(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_queries(inner) for key, inner in value.items()}
        case list():
            return [_without_queries(inner) for inner in value]
        case str() if re.match(r"https?://", value):
            return re.sub(r"\?.*", f"?{MASK}", value, flags=re.DOTALL)
        case _:
            return value
