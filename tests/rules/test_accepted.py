"""A listener of the tests leaves no socket behind, whenever it ends."""

import asyncio
import gc
import socket
import sys

import pytest

from tests.support.peers import silent


async def _end_after(steps: int) -> None:
    """Connect, and end the listener so many steps of the event loop later."""
    with socket.socket() as client:
        client.setblocking(False)
        async with silent() as port:
            client.connect_ex(("127.0.0.1", port))
            for _ in range(steps):
                await asyncio.sleep(0)


def test_a_connection_is_closed_that_comes_as_its_listener_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: left.append(str(found.exc_value)))
    for steps in range(8):
        asyncio.run(_end_after(steps))
        gc.collect(1)  # what is new: a whole collection walks all that the tests before have left
    assert not left
