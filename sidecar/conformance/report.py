"""Results for people (text), for programs (JSON), and for build servers (JUnit's XML)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from sidecar.conformance.cases import Case
    from sidecar.conformance.runner import CaseResult

SUITE: Final = "sidecar conformance ratelimit"

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text_line(result: CaseResult) -> str:
    """One case, over several lines where it failed."""
    if result.outcome == "skipped":
        return f"skip  {result.case.title} ({_because(result)})"
    if not result.differences:
        return f"pass  {result.case.title}"
    found = "".join(f"\n        {text}" for text in result.differences)
    return f"FAIL  {result.case.title}: {result.case.proves}\n      rests on {result.case.rests_on}{found}"


def text_summary(results: Sequence[CaseResult]) -> str:
    """The counts, and advice where nothing can have worked."""
    counts = Counter(result.outcome for result in results)
    told = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
    if counts["failed"] and not any(
        result.outcome == "passed" and result.case.windows_s() and not result.case.requires for result in results
    ):
        told += "\nNo limit was applied as configured: has the target loaded what --write-config writes?"
    return told


def as_json(results: Sequence[CaseResult]) -> str:
    """All results, and the counts."""
    counts = Counter(result.outcome for result in results)
    listed = [
        _described(result.case)
        | {
            "outcome": result.outcome,
            "differences": list(result.differences),
            "missing": sorted(result.missing),
            "seconds": round(result.seconds, 3),
        }
        for result in results
    ]
    summary = {outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")}
    return json.dumps({"summary": summary, "cases": listed}, indent=2)


def as_junit(results: Sequence[CaseResult]) -> str:
    """One `testsuite`."""
    counts = Counter(result.outcome for result in results)
    seconds = sum(result.seconds for result in results)
    suite = (
        f'<testsuite name={quoteattr(SUITE)} tests="{len(results)}" failures="{counts["failed"]}" errors="0" '
        f'skipped="{counts["skipped"]}" time="{seconds:.3f}">'
    )
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        suite,
        *(_testcase(result) for result in results),
        "</testsuite>",
    ]
    return "\n".join(lines)


def listing(cases: Iterable[Case], output: str) -> str:
    """The cases, without asking anybody."""
    if output == "json":
        return json.dumps([_described(case) for case in cases], indent=2)
    return "\n".join(f"{case.title}{_required(case)}: {case.proves}" for case in cases)


WHOLE: Final[dict[str, Callable[[Sequence[CaseResult]], str]]] = {"json": as_json, "junit": as_junit}
"""Formats that are written when all results are there."""


def _described(case: Case) -> dict[str, Any]:
    return {
        "family": case.family,
        "name": case.name,
        "proves": case.proves,
        "rests_on": case.rests_on,
        "requires": sorted(case.requires),
        "domain": case.domain,
    }


def _required(case: Case) -> str:
    return f" [{', '.join(sorted(case.requires))}]" if case.requires else ""


def _because(result: CaseResult) -> str:
    if result.missing:
        return f"the target is not said to have {', '.join(sorted(result.missing))}"
    return "the target is in a mode that changes this answer"


def _testcase(result: CaseResult) -> str:
    case = result.case
    head = (
        f"  <testcase classname={quoteattr(f'conformance.ratelimit.{case.family}')} name={quoteattr(case.name)} "
        f'time="{result.seconds:.3f}"'
    )
    if result.outcome == "skipped":
        return f"{head}><skipped message={quoteattr(_because(result))}/></testcase>"
    if not result.differences:
        return f"{head}/>"
    body = escape(_NOT_IN_XML.sub("?", "\n".join((*result.differences, f"rests on {case.rests_on}"))))
    return f"{head}><failure message={quoteattr(case.proves)}>{body}</failure></testcase>"
