"""Composing: content that grows, chunk by chunk, and never beyond what can be appended."""

from __future__ import annotations

from typing import Final

import orjson

from letopis.store.codec import Limits, encode
from letopis.store.errors import InvalidInput
from letopis.store.events import Event
from letopis.store.messages import Content, Message, Part, Reasoning, Text, content_text, part_to_json
from letopis.store.vocabulary import MessageAppended

_SPARE: Final = 64
"""Bytes of a message's data that are kept free, for its status and what surrounds its parts."""
_Words = Text | Reasoning


class Composition:
    """The content of a message while it is being written.

    Pieces of text are one text, and so are pieces of a model's reasoning, until a part of another kind comes between.

    :param empty: the message without content.
    """

    def __init__(self, empty: Message, limits: Limits) -> None:
        self._limits = limits
        self._used = _size(empty, limits) + _SPARE
        self._parts: list[Part] = []
        # Of the last part, while it grows: joined when it is asked for, so that a chunk costs what it is long.
        self._kind: type[_Words] | None = None
        self._chunks: list[str] = []
        self.characters = 0
        """Characters of text so far."""

    @property
    def nothing(self) -> bool:
        """Whether nothing was said so far."""
        return not self._parts and self._kind is None

    @property
    def content(self) -> Content:
        """All so far: text where nothing else is in it, else parts."""
        if not self._parts and self._kind is Text:
            return self._join()
        if self._kind is None:
            return tuple(self._parts) if self._parts else ""
        return (*self._parts, self._kind(self._join()))

    @property
    def text(self) -> str:
        """The words for people so far."""
        return content_text(self.content)

    def add(self, what: str | Part) -> None:
        """Put ``what`` behind what is there.

        :raises InvalidInput: it cannot be kept in every store, or the message would grow beyond the limit; then it is
            as it was.
        """
        if isinstance(what, str | Text | Reasoning):
            kind = Text if isinstance(what, str) else type(what)
            self._add_words(kind, what if isinstance(what, str) else what.text)
            return
        message = Message.assistant((what,))  # refuses what is no part
        self._take(_size(message, self._limits))
        self._settle()
        self._parts.append(what)

    def _add_words(self, kind: type[_Words], words: str) -> None:
        if not isinstance(words, str):
            raise InvalidInput("content", f"text must be text, not {type(words).__name__}")
        if not words:
            return
        if "\0" in words:
            raise InvalidInput("content", "has a NUL character: PostgreSQL cannot store it, remove it")
        try:
            size = len(orjson.dumps(words)) - 2  # the quotes stand once
        except TypeError as error:
            raise InvalidInput("content", "has a lone surrogate: it is not text") from error
        grows = self._kind is kind
        self._take(size if grows else size + len(orjson.dumps(part_to_json(kind("")))) + 1)
        if not grows:
            self._settle()
            self._kind = kind
        self._chunks.append(words)
        if kind is Text:
            self.characters += len(words)

    def _take(self, size: int) -> None:
        if self._used + size > self._limits.max_bytes:
            raise InvalidInput(
                "content",
                f"the message would be larger than {self._limits.max_bytes} bytes of JSON: finish it, and go on in"
                " another one",
            )
        self._used += size

    def _settle(self) -> None:
        """Make the part that grows one that does not."""
        if self._kind is not None:
            self._parts.append(self._kind(self._join()))
            self._kind, self._chunks = None, []

    def _join(self) -> str:
        if len(self._chunks) > 1:
            self._chunks = ["".join(self._chunks)]
        return self._chunks[0]


def _size(message: Message, limits: Limits) -> int:
    """Return the bytes that a message takes.

    :raises InvalidInput: it cannot be kept.
    """
    event = Event(type=MessageAppended.type, data=message.to_data())
    return len(encode(event, conversation_id="-", limits=limits).data.encode())
