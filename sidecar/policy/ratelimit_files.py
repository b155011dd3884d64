"""The rate limit service's files: a directory of YAML files, one domain each, in envoyproxy/ratelimit's format.

What a file may hold is in ratelimit_document.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, TypeAlias

from sidecar.core.descriptors import DescriptorRule, Domain, RateLimitConfig, RateLimitOptions
from sidecar.policy import go_yaml
from sidecar.policy.faults import Fault, PolicyError, shown
from sidecar.policy.ratelimit_document import RateLimitDocument
from sidecar.policy.yaml import Source, read

_AS_THE_REFERENCE: Final = RateLimitOptions()

SUFFIXES: Final = (".yaml", ".yml")

FileChoice: TypeAlias = Literal["yaml", "visible", "all"]
"""Which files of a directory are read: `*.yaml` and `*.yml` right in it; every file at any depth without a name that
begins with a dot on the way to it; those as well. Names that begin with two dots, with which Kubernetes lays out a
volume, are never read."""

DEPTH_MAX: Final = 16
"""Directories within directories that are looked into."""

FILES_MAX: Final = 1024
"""Files in the directory; several times the domains of a large installation."""


def load_directory(
    path: Path,
    options: RateLimitOptions = _AS_THE_REFERENCE,
    *,
    files: FileChoice = "yaml",
    required: bool = True,
) -> RateLimitConfig:
    """Read the files of a directory.

    Args:
        path: The directory.
        options: Of the whole service.
        files: Which ones.
        required: At least one file must be there.

    Raises:
        PolicyError: With every fault of every file: the directory or a file cannot be read, no file is there, a file
            is not valid, or two files have the same domain, which `options` do not merge.
    """
    faults: list[Fault] = []
    sources: list[Source] = []
    for file in _files(path, files, required=required):
        try:
            sources.append(read(file, go_yaml.plain))
        except PolicyError as error:
            faults += error.faults
    return load_sources(sources, options, str(path), faults)


def load_sources(
    sources: Iterable[Source], options: RateLimitOptions, origin: str, faults: Iterable[Fault] = ()
) -> RateLimitConfig:
    """Compile documents, wherever they come from.

    Args:
        sources: One for each file, in order.
        options: Of the whole service.
        origin: What they come from together: what faults of all of them name.
        faults: Found before; nothing is compiled where there are any.

    Raises:
        PolicyError: With every fault.
    """
    collected = _Domains(options, list(faults))
    for source in sources:
        collected.add(source)
    return collected.compile(origin)


class _Domains:
    """What the documents say, by domain."""

    def __init__(self, options: RateLimitOptions, faults: list[Fault]) -> None:
        self._options = options
        self._faults = faults
        self._warnings: list[Fault] = []
        self._declared: dict[str, Fault] = {}
        self._rules: dict[str, list[DescriptorRule]] = {}
        self._lines: dict[str, dict[str, str]] = {}

    def add(self, source: Source) -> None:
        """Read one document."""
        document = RateLimitDocument(source, self._faults, self._warnings)
        name = document.name()
        first = self._declared.get(name)
        if first is not None and not self._options.merge_domains:
            message = f"duplicate domain {shown(name)} in config file: it is already in {first.file}:{first.line}"
            self._faults.append(source.fault(("domain",), message, "one file a domain, or ratelimit.merge_domains"))
        self._declared.setdefault(name, source.fault(("domain",), ""))
        rules = document.descriptors(name, self._lines.setdefault(name, {}))
        self._rules.setdefault(name, []).extend(rules)

    def compile(self, origin: str) -> RateLimitConfig:
        """All domains, if nothing was wrong."""
        domains: dict[str, Domain] = {}
        if not self._faults:
            for name, rules in self._rules.items():
                try:
                    domains[name] = Domain(name, rules, self._options)
                except ValueError as error:
                    place = self._declared[name]
                    message = f"ratelimit.algorithms does not fit a limit of this domain: {error}"
                    self._faults.append(Fault(place.file, place.line, "domain", message, "another algorithm for it"))
        if not self._faults:
            self._check_algorithms(domains, origin)
        if self._faults:
            raise PolicyError(self._faults)
        return RateLimitConfig(domains, self._options, tuple(str(warning) for warning in self._warnings))

    def _check_algorithms(self, domains: dict[str, Domain], origin: str) -> None:
        used = set().union(*(domain.algorithms_used for domain in domains.values()))
        accepted = "a domain, or domain/path such as shop/path_/orders*.user"
        for name in self._options.algorithms:
            if name not in used:
                message = f"ratelimit.algorithms: there is no domain or descriptor {shown(name)}"
                self._faults.append(Fault(origin, 0, "", message, accepted))


def _files(path: Path, files: FileChoice, *, required: bool) -> list[Path]:
    if not required and not path.exists():
        return []
    try:
        found = sorted(_yaml_files(path) if files == "yaml" else _every_file(path, DEPTH_MAX, dots=files == "all"))
    except OSError as error:
        reason = f"cannot be read: {error.strerror or 'unknown reason'}"
        raise PolicyError([Fault(str(path), 0, "", reason, "a readable directory")]) from None
    accepted = f"1 to {FILES_MAX} files" + (" named *.yaml or *.yml" if files == "yaml" else "")
    if not found and required:
        raise PolicyError([Fault(str(path), 0, "", "the directory holds no rate limit file", accepted)])
    if len(found) > FILES_MAX:
        raise PolicyError([Fault(str(path), 0, "", f"the directory holds {len(found)} rate limit files", accepted)])
    return found


def _yaml_files(path: Path) -> list[Path]:
    return [
        entry
        for entry in path.iterdir()
        if entry.suffix in SUFFIXES and not entry.name.startswith(".") and not entry.is_dir()
    ]


def _every_file(path: Path, depth: int, *, dots: bool) -> list[Path]:
    found: list[Path] = []
    for entry in path.iterdir():
        if entry.name.startswith(".." if dots else "."):
            continue
        if not entry.is_dir():
            found.append(entry)
        elif depth:
            found += _every_file(entry, depth - 1, dots=dots)
        if len(found) > FILES_MAX:
            break
    return found
