"""Describe the parts of a message's content, and give them as JSON values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final

from letopis.store.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Text:
    """Visible text."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A model's reasoning, kept apart from the visible text."""

    kind: ClassVar[str] = "reasoning"
    text: str


@dataclass(frozen=True, slots=True)
class File:
    """A file by reference; its bytes are not copied."""

    kind: ClassVar[str] = "file"
    uri: str
    media_type: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's request to run a tool; ``arguments`` are JSON values or the model's raw text."""

    kind: ClassVar[str] = "tool_call"
    call_id: str
    name: str
    arguments: Any = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The output of a tool for the call with the same id."""

    kind: ClassVar[str] = "tool_result"
    call_id: str
    output: Any = None
    status: str = "ok"


@dataclass(frozen=True, slots=True)
class Data:
    """Any JSON value."""

    kind: ClassVar[str] = "data"
    value: Any = None


@dataclass(frozen=True, slots=True)
class UnknownPart:
    """A part of a kind that this version does not know: kept and returned unchanged."""

    value: Mapping[str, Any]


Part = Text | Reasoning | File | ToolCall | ToolResult | Data | UnknownPart
_PARTS: Final[dict[str, type[Text | Reasoning | File | ToolCall | ToolResult | Data]]] = {
    part.kind: part for part in (Text, Reasoning, File, ToolCall, ToolResult, Data)
}
_TEXT_FIELDS: Final = {"text", "uri", "media_type", "call_id", "name", "status"}


def part_types(content: Content | None) -> frozenset[str]:
    """Return the types of the parts of a message's content; text alone is one of ``text``."""
    if content is None:
        return frozenset()
    if isinstance(content, str):
        return frozenset({Text.kind})
    return frozenset(str(part.value.get("type")) if isinstance(part, UnknownPart) else part.kind for part in content)


def part_to_json(part: Part) -> dict[str, Any]:
    """Return the JSON object of a part, without fields that are ``None``."""
    if isinstance(part, UnknownPart):
        return dict(part.value)
    value: dict[str, Any] = {"type": part.kind}
    for spec in fields(part):
        if (item := getattr(part, spec.name)) is not None:
            value[spec.name] = item
    return value


def part_from_json(value: Any) -> Part:
    """Return the part that a JSON object describes; an unknown one becomes an :class:`UnknownPart`."""
    if not isinstance(value, Mapping):
        raise InvalidInput("content", f"a part must be an object, not {type(value).__name__}")
    kind = value.get("type")
    known = _PARTS.get(kind) if isinstance(kind, str) else None
    given = {key: item for key, item in value.items() if key != "type"}
    if known is None or not given.keys() <= {spec.name for spec in fields(known)}:
        return UnknownPart(dict(value))
    if any(key in _TEXT_FIELDS and not isinstance(item, str) for key, item in given.items()):
        return UnknownPart(dict(value))
    try:
        return known(**given)
    except TypeError:  # a field that the kind needs is missing
        return UnknownPart(dict(value))


Content = str | tuple[Part, ...]


def content_to_json(content: Content | None) -> str | list[dict[str, Any]] | None:
    """Return message content as JSON values: a string or ``None`` unchanged, parts as a list of objects."""
    return content if content is None or isinstance(content, str) else [part_to_json(part) for part in content]


def content_from_json(value: Any) -> Content:
    """Return message content from JSON values."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return tuple(part_from_json(item) for item in value)
    raise InvalidInput("content", f"must be text or a list of parts, not {type(value).__name__}")


def content_text(content: Content | None) -> str:
    """Return the visible text in ``content``, text parts joined by a line feed."""
    if content is None:
        return ""
    return content if isinstance(content, str) else "\n".join(part.text for part in content if isinstance(part, Text))


def checked_parts(content: Any) -> tuple[Part, ...]:
    """Return the parts of content that is not a string."""
    if not isinstance(content, Iterable) or isinstance(content, Mapping | bytes):
        raise InvalidInput("content", f"must be text or parts, not {type(content).__name__}")
    parts = tuple(content)
    for part in parts:
        if not isinstance(part, Part):
            raise InvalidInput("content", f"a part must be Text, File, ToolCall ..., not {type(part).__name__}")
        if isinstance(part, UnknownPart) and not isinstance(part.value, Mapping):
            raise InvalidInput("content", f"a part must be an object, not {type(part.value).__name__}")
        for spec in fields(part):
            item = getattr(part, spec.name)
            # If it were stored, it would come back as a part of an unknown kind.
            if spec.name in _TEXT_FIELDS and not isinstance(item, str) and not (item is None and spec.default is None):
                raise InvalidInput("content", f"{spec.name} of a part must be text, not {type(item).__name__}")
    return parts
