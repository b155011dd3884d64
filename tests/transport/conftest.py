"""The behaviour suite runs on uvloop, over both engines unless a test says which."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import uvloop

from tests.support.grpc_server import ENGINES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on uvloop, as the server does."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> str:
    """Both engines, one after the other."""
    name: str = request.param
    return name


@pytest_asyncio.fixture(autouse=True)
async def quiet_loop() -> AsyncIterator[None]:
    """No callback on the loop may raise.

    Except in grpcio's own poller: it wakes each of the process's loops, and all but one find nothing to read.
    """
    faults: list[dict[str, object]] = []

    def note(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        if "PollerCompletionQueue" not in str(context["message"]):
            faults.append(context)

    asyncio.get_running_loop().set_exception_handler(note)
    yield
    assert faults == []
