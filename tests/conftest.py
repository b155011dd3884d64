"""For every test: nothing that is written while it runs looks like a signed token or a private key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.secrecy import suspicious

if TYPE_CHECKING:
    from collections.abc import Generator

LOGS = ("*.log", "log", "stdout", "stderr", "*.jsonl")
"""What tests call the files into which processes write."""
NOT_OURS = frozenset({"access.log", "envoy.log", "valkey.log"})
"""What others log, such as the whole path that Envoy was asked for, is theirs to configure."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test whose captured output shows a secret; the output itself is then not repeated."""
    report = yield
    sections = {name: text for name, text in report.sections if name.endswith(report.when)}
    shown = suspicious({name: text.encode("utf-8", "replace") for name, text in sections.items()})
    if shown:
        report.sections = [section for section in report.sections if section[0] not in shown]
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: a token or a private key is in {', '.join(shown)}"
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the whole run where a process wrote a secret into its log."""
    directory: Path = session.config._tmp_path_factory.getbasetemp()
    files = {
        path for pattern in LOGS for path in directory.rglob(pattern) if path.is_file() and path.name not in NOT_OURS
    }
    found = [str(path) for path in sorted(files) if suspicious({"": path.read_bytes()})]
    if found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.get_terminal_writer().line(f"\n\nA token or a private key is in: {', '.join(found)}", red=True)
