"""Diversity: whether the event or the history store is to blame, judged by what happens to other conversations."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

STORE_AFTER: Final = 3
"""So many different conversations that fail in a row, with no success between, make it the store."""
ALONE_AFTER: Final = 2
"""A conversation blamed so often is delivered on its own, so that it takes nobody down with it."""
EVENT_AFTER: Final = 3
"""A conversation blamed so often is at fault even where the fault looks like an outage."""
_MOST: Final = 10_000


class Diversity:
    """Remembers which conversations failed, and which of them failed while others got through.

    A conversation is *blamed* once each time that it failed and, after that, another one succeeded. Its own success
    acquits it wholly. Nothing is concluded from one conversation alone: without another to compare with, it waits.
    """

    def __init__(self) -> None:
        self._failing: dict[str, None] = {}
        self._blame: dict[str, int] = {}

    def failed(self, conversation_ids: Iterable[str]) -> None:
        """Note conversations that were in a delivery which failed."""
        self._failing.update(dict.fromkeys(conversation_ids))

    def succeeded(self, conversation_ids: Collection[str]) -> None:
        """Note conversations that got through: the others that failed before are blamed."""
        got_through = frozenset(conversation_ids)
        if not got_through:
            return
        for conversation_id in self._failing:
            if conversation_id not in got_through and (
                conversation_id in self._blame or len(self._blame) < _MOST  # whatever happens, memory is bounded
            ):
                self._blame[conversation_id] = self._blame.get(conversation_id, 0) + 1
        self._failing.clear()
        for conversation_id in got_through & self._blame.keys():
            del self._blame[conversation_id]

    def forget(self, conversation_id: str) -> None:
        """Drop what is held against a conversation."""
        self._failing.pop(conversation_id, None)
        self._blame.pop(conversation_id, None)

    def blame(self, conversation_id: str) -> int:
        """Return how often a conversation failed while another one then got through."""
        return self._blame.get(conversation_id, 0)

    @property
    def failing(self) -> int:
        """How many different conversations failed since the last success."""
        return len(self._failing)
