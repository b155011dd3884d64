"""Generates `sidecar/envoy/pb/*_pb2.py` and their type stubs from the definitions beside this file (`make proto`).

Usage: `python proto/generate.py [DIRECTORY]`. The modules land in `DIRECTORY/sidecar/envoy/pb`; without an argument,
in the repository. The output depends on the definitions alone: what the compiler adds about its own version is taken
out (see `portable`), so that the checked-in modules stay the same whichever grpcio-tools generates them.
"""

# ruff: noqa: INP001 - a script, not a module of a package

from __future__ import annotations

import re
import sys
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent
PACKAGE = Path("sidecar/envoy/pb")

_VERSION_CHECK = re.compile(r"^_runtime_version\.ValidateProtobufRuntimeVersion\(\n(?:    .*\n)+\)\n", re.MULTILINE)
_VERSION_LINES = re.compile(
    r"^(?:# Protobuf Python Version: .*|# NO CHECKED-IN PROTOBUF GENCODE"
    r"|from google\.protobuf import runtime_version as _runtime_version)\n",
    re.MULTILINE,
)


def portable(generated: str) -> str:
    """A generated module without the compiler's version.

    The check that is removed would demand a protobuf runtime at least as new as the compiler. The definitions use
    nothing but plain proto3, which every runtime that `pyproject.toml` admits can load.
    """
    return _VERSION_LINES.sub("", _VERSION_CHECK.sub("", generated))


def generate(destination: Path) -> list[Path]:
    """Write all modules and stubs below `destination`; returns their paths, sorted.

    Raises:
        RuntimeError: The compiler refused a definition; what it says is on standard error.
    """
    import grpc_tools  # noqa: PLC0415 - the compiler is needed for generating only, not for importing this module
    from grpc_tools import protoc  # noqa: PLC0415

    sources = sorted(path.relative_to(PROTO_ROOT).as_posix() for path in (PROTO_ROOT / PACKAGE).glob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    destination.mkdir(parents=True, exist_ok=True)
    outputs = [f"--python_out={destination}", f"--pyi_out={destination}"]
    status = protoc.main(["protoc", f"-I{PROTO_ROOT}", f"-I{well_known}", *outputs, *sources])
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")
    written = sorted((destination / PACKAGE).glob("*_pb2.py*"))
    for path in written:
        path.write_text(portable(path.read_text("utf-8")), "utf-8")
    return written


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO_ROOT.parent)
