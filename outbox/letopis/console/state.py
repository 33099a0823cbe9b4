"""Hold the state that all pages of one console share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from letopis.console.access import Gate
from letopis.console.activity import Pulse
from letopis.console.figures import LogFigures
from letopis.console.insight import Insight
from letopis.console.verification import Verifier
from letopis.ops.config.settings import AlertSettings
from letopis.outbox.history.history import History

MAX_DELAYED_ANSWERS: Final = 8


@dataclass(slots=True, kw_only=True)
class ConsoleState:
    """The state that all pages of one console share.

    :ivar language: the language of readers who have not chosen one; ``None`` to use their browser's.
    :ivar home: the target of the link beside the name; ``None`` for no link.
    :ivar name: the outbox's name, for display.
    :ivar cookie_path: where the session cookie is sent; ``None`` for this console only.
    :ivar alerts: reads the settings of alerts; ``None`` for the channels of the history itself.
    :ivar delays: one for each wrong token whose answer is being delayed.
    """

    history: History
    insight: Insight
    gate: Gate
    pulse: Pulse
    figures: LogFigures
    verifier: Verifier
    name: str
    language: str | None = None
    home: str | None = None
    cookie_path: str | None = None
    alerts: Callable[[], AlertSettings] | None = None
    delays: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_DELAYED_ANSWERS))
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def close(self) -> None:
        """Stop the background tasks; the history stays open."""
        await self.figures.close()
        await self.verifier.close()
