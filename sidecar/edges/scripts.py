"""The Lua of lua/, put together into the one script that decides."""

from __future__ import annotations

from pathlib import Path

_PARTS = (
    "counts",
    "sliding_window",
    "fixed_window",
    "gcra",
    "sliding_log",
    "concurrency",
    "holds",
    "operations",
    "charge",
)


def charge_script() -> str:
    """The source: shared arithmetic, one part for each algorithm, holds, then the decision."""
    package = Path(__file__).parents[1]
    # in the wheel the directory lies inside the package, in a working tree beside it
    directory = next(path for path in (package / "lua", package.parent / "lua") if path.is_dir())
    return "\n".join((directory / f"{part}.lua").read_text(encoding="utf-8") for part in _PARTS)
