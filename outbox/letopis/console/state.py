"""Hold what all pages of one console share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from letopis.console.access import Gate
from letopis.console.activity import Pulse
from letopis.console.figures import LogFigures
from letopis.console.verification import Verifier
from letopis.outbox.history.history import History
from letopis.outbox.history.insight import Insight


@dataclass(slots=True, kw_only=True)
class ConsoleState:
    """What all pages of one console share.

    :ivar open_reading: whether requests of this machine may read without the token.
    :ivar language: of readers whose browser asks for none that there is; ``None`` to go by the browser.
    :ivar home: where the link beside the name leads, out of the console; ``None`` for no link.
    :ivar name: of the outbox, for display.
    """

    history: History
    insight: Insight
    gate: Gate
    pulse: Pulse
    figures: LogFigures
    verifier: Verifier
    name: str
    open_reading: bool = True
    language: str | None = None
    home: str | None = None
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def close(self) -> None:
        """End what runs in the background; the history stays open."""
        await self.figures.close()
        await self.verifier.close()
