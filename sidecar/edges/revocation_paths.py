"""Where orders to revoke are taken, for the supervisor, which must not load what carries them out."""

from __future__ import annotations

from typing import Final

PATH: Final = "/revocations"
BODY_BYTES_MAX: Final = 4 * 1024
