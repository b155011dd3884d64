"""Telling the owner of a server that a handler raised, without letting that telling fail the call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def report(on_error: Callable[[Exception, str], None], fault: Exception, method: str) -> None:
    """Call `on_error`; what it raises (a log that cannot be written, say) goes to the loop's exception handler."""
    try:
        on_error(fault, method)
    except Exception as second:  # noqa: BLE001 - the caller of the method must be answered all the same
        context = {"message": f"{method}: on_error failed", "exception": second}
        asyncio.get_running_loop().call_exception_handler(context)
