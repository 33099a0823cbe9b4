"""Have the updates of a chat that are handled again go before its new ones."""

from __future__ import annotations

import asyncio

from letopis.adapters.telegram_core.incoming import Recorded
from letopis.adapters.telegram_core.keys import ChatKey


class ResumedTurns:
    """Lets the resumed updates of each chat go in order, one at a time, and its new ones after them.

    An update whose handling is cancelled does not end its turn: the process is ending, and what waits for it is handled
    after the next start, too.
    """

    def __init__(self) -> None:
        self._chats: dict[ChatKey, dict[int, asyncio.Event]] = {}

    def expect(self, recorded: Recorded) -> None:
        """Have the later updates of the chat wait for a resumed one."""
        if recorded.key is not None:
            self._chats.setdefault(recorded.key, {})[recorded.update_id] = asyncio.Event()

    async def wait(self, recorded: Recorded) -> None:
        """Wait until no resumed update of the chat is before this one."""
        for update_id, ended in tuple(self._chats.get(recorded.key, {}).items()) if recorded.key is not None else ():
            if update_id == recorded.update_id:
                return
            await ended.wait()

    def end(self, recorded: Recorded) -> None:
        """Let the next update of the chat go. No effect on one that was not resumed."""
        waiting = self._chats.get(recorded.key, {}) if recorded.key is not None else {}
        if (ended := waiting.pop(recorded.update_id, None)) is not None:
            ended.set()
        if not waiting and recorded.key is not None:
            self._chats.pop(recorded.key, None)
