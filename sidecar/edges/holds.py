"""Names of holds: numbers that nobody can guess and no two decisions share."""

from __future__ import annotations

import secrets

from sidecar.core.reservations import HOLD_MAX


def new_hold() -> int:
    """A fresh name for what one decision holds: 1 to `HOLD_MAX`."""
    return secrets.randbelow(HOLD_MAX) + 1
