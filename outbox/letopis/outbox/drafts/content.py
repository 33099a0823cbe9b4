"""Assemble the content of a message piece by piece, within what can be appended."""

from __future__ import annotations

from typing import Final

import orjson

from letopis.store.errors import InvalidInput
from letopis.store.model.codec import Limits, encode
from letopis.store.model.event_types import MessageAppended
from letopis.store.model.events import Event
from letopis.store.model.messages import Message
from letopis.store.model.parts import Content, Part, Reasoning, Text, content_text, part_to_json

_RESERVED_BYTES: Final = 64  # left free in a message's data, for its status and the brackets around its parts
_Words = Text | Reasoning


class DraftContent:
    """The content of a message being written; consecutive pieces of text, or of reasoning, become one."""

    def __init__(self, empty: Message, limits: Limits) -> None:
        self._limits = limits
        self._used = _size(empty, limits) + _RESERVED_BYTES
        self._parts: list[Part] = []
        # The last part while it grows: joined on demand, so that the cost of a piece is its own length.
        self._kind: type[_Words] | None = None
        self._chunks: list[str] = []
        self.characters = 0  # characters of text so far

    @property
    def empty(self) -> bool:
        return not self._parts and self._kind is None

    @property
    def content(self) -> Content:
        """All content so far: text if there is nothing else in it, parts otherwise."""
        if not self._parts and self._kind is Text:
            return self._join()
        if self._kind is None:
            return tuple(self._parts) if self._parts else ""
        return (*self._parts, self._kind(self._join()))

    @property
    def text(self) -> str:
        return content_text(self.content)

    def add(self, what: str | Part) -> None:
        if isinstance(what, str | Text | Reasoning):
            kind = Text if isinstance(what, str) else type(what)
            self._add_words(kind, what if isinstance(what, str) else what.text)
            return
        message = Message.assistant((what,))  # refuses what is not a part
        self._reserve(_size(message, self._limits))
        self._close_part()
        self._parts.append(what)

    def _add_words(self, kind: type[_Words], words: str) -> None:
        if not isinstance(words, str):
            raise InvalidInput("content", f"text must be text, not {type(words).__name__}")
        if not words:
            return
        if "\0" in words:
            raise InvalidInput("content", "has a NUL character: PostgreSQL cannot store it, remove it")
        try:
            size = len(orjson.dumps(words)) - 2  # the quotes are counted with the part
        except TypeError as error:
            raise InvalidInput("content", "has a lone surrogate: it is not text") from error
        grows = self._kind is kind
        self._reserve(size if grows else size + len(orjson.dumps(part_to_json(kind("")))) + 1)
        if not grows:
            self._close_part()
            self._kind = kind
        self._chunks.append(words)
        if kind is Text:
            self.characters += len(words)

    def _reserve(self, size: int) -> None:
        if self._used + size > self._limits.max_bytes:
            raise InvalidInput(
                "content",
                f"the message would be larger than {self._limits.max_bytes} bytes of JSON: finish it, and go on in"
                " another one",
            )
        self._used += size

    def _close_part(self) -> None:
        if self._kind is not None:
            self._parts.append(self._kind(self._join()))
            self._kind, self._chunks = None, []

    def _join(self) -> str:
        if len(self._chunks) > 1:
            self._chunks = ["".join(self._chunks)]
        return self._chunks[0]


def _size(message: Message, limits: Limits) -> int:
    """Return the size of a message in bytes."""
    event = Event(type=MessageAppended.type, data=message.to_data())
    return len(encode(event, conversation_id="-", limits=limits).data.encode())
