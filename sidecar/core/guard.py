"""What stands between a proof and believing it: what was revoked, and who has guessed too often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sidecar.core.revocation import NO_REVOCATIONS
from sidecar.core.suspects import NO_SUSPECTS

if TYPE_CHECKING:
    from sidecar.core.revocation import Revocations
    from sidecar.core.suspects import Suspects


@dataclass(frozen=True, slots=True, eq=False)
class Guard:
    """Both, as this process knows them now; each says by its `active` whether it need be asked at all."""

    revocations: Revocations = NO_REVOCATIONS
    suspects: Suspects = NO_SUSPECTS


NO_GUARD: Final = Guard()
