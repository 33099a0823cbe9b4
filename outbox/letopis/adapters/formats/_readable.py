"""Give the content of a message that the stores would refuse in a form that can be read, searched and exported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Any, Final

from letopis.adapters.formats._media import mention
from letopis.store.model.codec import INTEGER_MAX, INTEGER_MIN
from letopis.store.model.parts import (
    Content,
    File,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    part_from_json,
    part_to_json,
)

_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
_MAX_CHARACTERS: Final = 60_000
"""How much of a message is shown; all of it is in the envelope."""
_MAX_LABEL: Final = 255
_MAX_DEPTH: Final = 24
_MORE: Final = "…"


def readable(content: Content | None) -> Content | None:
    """Return content with U+FFFD for characters that are no text, numbers beyond JSON as text, cut if it is huge.

    Calls and results stay such parts, and equal ids stay equal.
    """
    if content is None:
        return None
    reader = _Reader()
    return reader.text(content) if isinstance(content, str) else tuple(reader.parts(content))


def readable_text(text: str) -> str:
    """Return a text as :func:`readable` does."""
    return _NO_TEXT.sub("\ufffd", text[:_MAX_LABEL])


class _Reader:
    """Counts how much may still be shown."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = _MAX_CHARACTERS

    def parts(self, given: Iterable[Part]) -> Iterator[Part]:
        for part in given:
            if self._left < -_MAX_CHARACTERS:
                return
            self._left -= _MAX_LABEL
            match part:
                case ToolCall():
                    yield ToolCall(readable_text(part.call_id), readable_text(part.name), self.value(part.arguments))
                case ToolResult():
                    yield ToolResult(readable_text(part.call_id), self.value(part.output), readable_text(part.status))
                case Text() | Reasoning():
                    yield type(part)(self.text(part.text))
                case File() if len(part.uri) > _MAX_CHARACTERS // 2:  # half an address is none
                    yield Text(self.text(mention(part)))
                case _:
                    yield part_from_json(self.value(part_to_json(part)))  # as it will be read back

    def text(self, given: str) -> str:
        cut = given[: max(0, self._left)]
        self._left -= len(given) + 1
        return _NO_TEXT.sub("\ufffd", cut) + (_MORE if len(cut) < len(given) else "")

    def value(self, given: Any, depth: int = _MAX_DEPTH) -> Any:
        if isinstance(given, str):
            return self.text(given)
        if depth == 0 and isinstance(given, Mapping | list | tuple):
            return _MORE
        if isinstance(given, Mapping):
            return {self.text(str(key)): self.value(item, depth - 1) for key, item in self._some(given.items())}
        if isinstance(given, list | tuple):
            return [self.value(item, depth - 1) for item in self._some(given)]
        self._left -= len(str(given))
        if isinstance(given, float) and not isfinite(given):
            return json.dumps(given)
        if isinstance(given, int) and not INTEGER_MIN <= given <= INTEGER_MAX:
            return self.text(str(given))
        return given

    def _some(self, given: Iterable[Any]) -> Iterator[Any]:
        for one in given:
            if self._left <= 0:
                return
            yield one
