"""The core cannot do I/O and does not know the time: its imports are walked against an allow-list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "sidecar"
PURE = [*sorted((ROOT / "core").rglob("*.py")), ROOT / "pipeline.py"]

ALLOWED = {
    "__future__", "array", "base64", "binascii", "bisect", "collections", "dataclasses", "datetime", "enum",
    "functools", "hashlib", "heapq", "hmac", "ipaddress", "itertools", "json", "math", "msgspec", "operator", "re",
    "string", "struct", "types", "typing", "urllib.parse",
}  # fmt: skip
CRYPTOGRAPHY = {"keys.py", "verifiers.py", "private_keys.py", "signing_keys.py", "certificate_reader.py"}
"""The modules that may import cryptography (to verify, to sign, to read X.509), and no other may."""

CLOCKS = {"now", "utcnow", "today", "perf_counter", "monotonic", "time_ns"}
FORBIDDEN_CALLS = {"open", "print", "input", "exec", "eval", "breakpoint"}


def imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
    return names


def allowed(name: str, module: Path) -> bool:
    if name in ALLOWED or name.split(".", maxsplit=1)[0] in ALLOWED or name.startswith("sidecar.core"):
        return True
    return module.name in CRYPTOGRAPHY and name.split(".", maxsplit=1)[0] == "cryptography"


@pytest.mark.parametrize("module", PURE, ids=lambda path: path.name)
def test_imports_are_pure(module: Path) -> None:
    """Only calculation can be imported."""
    names = imported(ast.parse(module.read_text()))
    assert [name for name in sorted(names) if not allowed(name, module)] == []


@pytest.mark.parametrize("module", PURE, ids=lambda path: path.name)
def test_nothing_waits_or_prints(module: Path) -> None:
    """No coroutine, no file, no output."""
    for node in ast.walk(ast.parse(module.read_text())):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS
        if isinstance(node, ast.Attribute):
            assert node.attr not in CLOCKS
