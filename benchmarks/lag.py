"""Measure how late the event loop comes to what is due while something else works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

INTERVAL_SECONDS = 0.002
"""Seconds between two looks."""


@asynccontextmanager
async def measured_lag(late: list[float]) -> AsyncIterator[None]:
    """Add to ``late`` by how many seconds each look was late while the block ran."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def look(due: float) -> None:
        nonlocal timer
        now = time.monotonic()
        late.append(max(0.0, now - due))
        timer = loop.call_at(now + INTERVAL_SECONDS, look, now + INTERVAL_SECONDS)

    timer = loop.call_later(INTERVAL_SECONDS, look, time.monotonic() + INTERVAL_SECONDS)
    try:
        yield
    finally:
        timer.cancel()
