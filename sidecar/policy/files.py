"""The files that a policy names: found relative to the policy's own directory, and looked at while it is compiled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.core.secret import Secret

if TYPE_CHECKING:
    from sidecar.policy.validate import Validated
    from sidecar.policy.yaml import PathParts

SECRET_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """Turns names of files into paths; what cannot be read becomes a fault."""

    directory: Path
    validated: Validated

    def path(self, name: str) -> Path:
        """Where a file is, whether or not it exists."""
        return self.directory / name

    def readable(self, where: PathParts, name: str) -> str:
        """The path of a file that must be readable now."""
        path = self.path(name)
        try:
            with path.open("rb"):
                pass
        except (OSError, ValueError) as error:
            self._unreadable(where, path, error, "a readable file")
        return str(path)

    def optional(self, where: PathParts, name: str | None) -> str | None:
        """The same, where a file need not be named."""
        return None if name is None else self.readable(where, name)

    def secret(self, where: PathParts, name: str) -> Secret | None:
        """What a file holds, less one newline at its end."""
        path = self.path(name)
        accepted = f"a readable file with 1 to {SECRET_BYTES_MAX} bytes of UTF-8 text on one line"
        try:
            with path.open("rb") as stream:
                raw = stream.read(SECRET_BYTES_MAX + 2)
        except (OSError, ValueError) as error:
            self._unreadable(where, path, error, accepted)
            return None
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = ""
        if not text or len(raw) > SECRET_BYTES_MAX or not text.isprintable():
            self.validated.fault(where, f"the file {path} holds no usable secret", accepted)
            return None
        return Secret(text)

    def _unreadable(self, where: PathParts, path: Path, error: OSError | ValueError, accepted: str) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        self.validated.fault(where, f"the file {path} cannot be read: {reason}", accepted)
