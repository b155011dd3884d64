"""`sidecar conformance ratelimit`: chooses the cases, writes configurations, asks, reports.

Exit status: 0 every case that was asked passed (or all was listed or written); 1 a case failed; 2 the command line is
wrong, or nobody answers at the target.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml

from sidecar.conformance.cases import FEATURES, MODES, Case, load_kit
from sidecar.conformance.report import WHOLE, listing, text_line, text_summary
from sidecar.conformance.runner import CaseResult, Runner

ALL: Final = "all"
"""Stands for every feature that is no mode."""


class UsageError(Exception):
    """The command line is wrong; the text says how."""


def features_of(written: str) -> frozenset[str]:
    """A comma-separated list of features.

    Raises:
        UsageError: One of them does not exist.
    """
    names = {name.strip() for name in written.split(",")} - {""}
    if ALL in names:
        names = (names - {ALL}) | (set(FEATURES) - MODES)
    if unknown := names - set(FEATURES):
        raise UsageError(f"no feature {', '.join(sorted(unknown))}; there are {ALL}, {', '.join(FEATURES)}")
    return frozenset(names)


def write_configurations(cases: Sequence[Case], directory: Path) -> int:
    """Write what the target must load: one file for each domain, or several where domains are merged.

    Returns:
        How many files.

    Raises:
        OSError: They cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = 0
    for case in cases:
        for number, configuration in enumerate(case.configurations, 1):
            suffix = f".{number}" if len(case.configurations) > 1 else ""
            text = yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True)
            (directory / f"{case.domain}{suffix}.yaml").write_text(f"# {case.proves}\n{text}", encoding="utf-8")
            written += 1
    return written


def run(target: str | None, features: str, output: str, *, list_only: bool, write_config: Path | None) -> int:
    """Run the command; returns its exit status.

    Raises:
        OSError: A configuration cannot be written.
    """
    if target is None and not list_only and write_config is None:
        print("sidecar conformance: one of --target, --list and --write-config is needed", file=sys.stderr)
        return 2
    try:
        has = features_of(features)
    except UsageError as error:
        print(f"sidecar conformance: {error}", file=sys.stderr)
        return 2
    cases = load_kit()
    if list_only:
        print(listing(cases, output))
    if write_config is not None:
        files = write_configurations([case for case in cases if case.runs_with(has)], write_config)
        print(f"{write_config}: {files} files written", file=sys.stderr)
    return _ask(target, has, output, cases) if target is not None else 0


def _ask(address: str, features: frozenset[str], output: str, cases: Sequence[Case]) -> int:
    from sidecar.conformance.grpc_target import GrpcTarget, UnreachableError  # noqa: PLC0415 - grpc is slow to import

    results: list[CaseResult] = []
    try:
        with GrpcTarget(address) as target:
            for result in Runner(target, features).run(cases):
                results.append(result)
                if output not in WHOLE:
                    print(text_line(result), flush=True)
    except UnreachableError as error:
        print(f"sidecar conformance: {error}", file=sys.stderr)
        return 2
    print(WHOLE[output](results) if output in WHOLE else text_summary(results))
    return 1 if any(result.outcome == "failed" for result in results) else 0
