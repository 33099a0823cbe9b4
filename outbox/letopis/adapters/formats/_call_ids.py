"""Assign unique ids that pair calls with results, for messages of another provider."""

from __future__ import annotations

import re
from typing import Final

from letopis.store.model.messages import Message
from letopis.store.model.parts import ToolCall, ToolResult

_REFUSED: Final = re.compile(r"[^a-zA-Z0-9_-]")
_MAX_LENGTH: Final = 40
"""The longest id that OpenAI Chat Completions accepts, in characters; the others accept longer ones."""


class CallIds:
    """The ids of the calls in one conversation, in order.

    An id is kept if the providers accept it and no earlier call has it. A result gets the id of the first call without
    a result in the latest message that has a call with the same original id.
    """

    __slots__ = ("_latest", "_names", "_open", "_place", "_used")

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._open: dict[str, tuple[int, list[str]]] = {}
        self._place = 0
        self._latest: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def begin(self) -> None:
        """Begin the next message."""
        self._place += 1

    def keep(self, message: Message) -> None:
        """Note the calls and results of a message whose ids are kept."""
        for part in () if message.content is None or isinstance(message.content, str) else message.content:
            if isinstance(part, ToolCall):
                self._note(part, part.call_id)
            elif isinstance(part, ToolResult):
                self.of_result(part)

    def of_call(self, call: ToolCall) -> str:
        """Return the id for a call."""
        wanted = _REFUSED.sub("_", call.call_id)[:_MAX_LENGTH] or "call"
        made, number = wanted, 1
        while made in self._used:
            number += 1
            made = f"{wanted[: _MAX_LENGTH - 1 - len(str(number))]}_{number}"
        return self._note(call, made)

    def of_result(self, result: ToolResult) -> str:
        """Return the id for a result: that of its call."""
        _, waiting = self._open.get(result.call_id, (0, []))
        if waiting:
            return waiting.pop(0)
        return self._latest.get(result.call_id) or _REFUSED.sub("_", result.call_id)[:_MAX_LENGTH] or "call"

    def name_of(self, result: ToolResult) -> str:
        """Return the name of the tool that gave a result; its id if the call is unknown."""
        return self._names.get(result.call_id, result.call_id)

    def _note(self, call: ToolCall, made: str) -> str:
        self._used.add(made)
        if self._open.get(call.call_id, (0,))[0] != self._place:
            self._open[call.call_id] = (self._place, [])
        self._open[call.call_id][1].append(made)
        self._latest[call.call_id] = made
        self._names[call.call_id] = call.name
        return made
