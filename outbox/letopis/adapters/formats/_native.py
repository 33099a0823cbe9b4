"""Keep what a provider's item has beyond a message, and restore the item byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import groupby
from typing import Any, Final

import orjson

from letopis.adapters._envelope import is_sealed, seal, unseal
from letopis.adapters.formats._call_ids import CallIds
from letopis.adapters.formats._readable import readable, readable_text
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import DEFAULT_LIMITS, encode_value
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.large_content import FORMAT_KEY, extract
from letopis.store.model.messages import Message, Role
from letopis.store.model.parts import (
    Content,
    File,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    UnknownPart,
    content_to_json,
    part_from_json,
    part_to_json,
)

_POINTER: Final = "$"
_MIN_LENGTH: Final = 16
"""The shortest text that a pointer replaces, in characters."""
_MAX_TEMPLATE_BYTES: Final = DEFAULT_LIMITS.max_bytes - 65_536
"""The rest is for what adapters add to the message."""
_BASE64: Final = ";base64,"

Pointer = list[int | str]


def to_message(
    item: Mapping[str, Any], *, provider: str, role: Role, content: Content | None, name: str | None = None
) -> Message:
    """Convert a provider's item to a message, with a template of the item in its metadata.

    In the template, everything that the content holds is replaced by a pointer into the content, so that nothing is
    stored twice. An item that cannot be stored so is in the metadata as text, and the content is a readable form of it.

    :raises InvalidInput: the item holds a value that is not JSON, or has more than 64 MiB.
    """
    if isinstance(content, tuple):
        content = tuple(map(_as_read_back, content))
    made = _with_template(item, provider, role, content, name)
    if made is None:
        sealed = seal(item)  # before anything else is read, because it may not be JSON
        content, name = readable(content), None if name is None else readable_text(name)
        kept = {"provider": provider, "content": _digests(content), **sealed}
        made = Message(role=role, content=content, name=name, metadata={FORMAT_KEY: kept})
    return made


def native_item(message: Message, provider: str) -> dict[str, Any] | None:
    """Return the item from which a message was made; ``None`` if the message came from elsewhere or was edited since.

    :raises InvalidInput: the template in the metadata does not belong to the message.
    """
    kept = message.metadata.get(FORMAT_KEY)
    if not isinstance(kept, Mapping) or kept.get("provider") != provider:
        return None
    if kept.get("content") != _digests(message.content):
        return None
    try:
        item: dict[str, Any] = unseal(kept) if is_sealed(kept) else _filled(kept["item"], message.content)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise InvalidInput(f"metadata.{FORMAT_KEY}", "is not what a converter of Letopis put there") from error
    return item


def whole_messages(messages: Iterable[Message | RecordedMessage], provider: str) -> Iterator[Message]:
    """Yield messages without what the history knows about them.

    A context window gives each result its own message with the same id; here the parts of one provider item are joined
    again.

    :raises InvalidInput: one of them is not a message.
    """
    for _, pieces in groupby(_plain(messages), key=lambda message: message.id):
        found = list(pieces)
        whole = _whole(found, provider) if len(found) > 1 else None
        yield from found if whole is None else (whole,)


def with_own_items(
    messages: Iterable[Message | RecordedMessage], provider: str
) -> Iterator[tuple[Message, dict[str, Any] | None, CallIds]]:
    """Yield each message with its item, if it is one of the provider's own, and the ids of the calls so far.

    :raises InvalidInput: one of them is not a message.
    """
    ids = CallIds()
    for message in whole_messages(messages, provider):
        ids.begin()
        own = native_item(message, provider)
        if own is not None:
            ids.keep(message)
        yield message, own, ids


def _with_template(
    item: Mapping[str, Any], provider: str, role: Role, content: Content | None, name: str | None
) -> Message | None:
    """Return the message with a template of its item; ``None`` if the stores or the default limits would refuse it.

    :raises InvalidInput: the item holds a value that is not JSON.
    """
    try:
        template = _template(item, _sources(content), "item")
    except RecursionError:
        return None
    try:
        kept = {"provider": provider, "content": _digests(content), "item": template}
        made = Message(role=role, content=content, name=name, metadata={FORMAT_KEY: kept})
        data = made.to_data()
        if len(encode_value(data, "item", DEFAULT_LIMITS)) <= _MAX_TEMPLATE_BYTES:
            return made
        # Large strings are kept apart.
        left = encode_value(extract(data, "").data, "item", DEFAULT_LIMITS)
        return made if len(left) <= _MAX_TEMPLATE_BYTES else None
    except (InvalidInput, TypeError):
        return None  # what is wrong with the message itself is raised again when it is made with the text


def _plain(messages: Iterable[Message | RecordedMessage]) -> Iterator[Message]:
    for place, one in enumerate(messages):
        found = one.message if isinstance(one, RecordedMessage) else one
        if not isinstance(found, Message):
            raise InvalidInput(f"messages[{place}]", f"must be a Message, not {type(one).__name__}")
        yield found


def _whole(pieces: Sequence[Message], provider: str) -> Message | None:
    """Return the message that was split into these pieces, with its parts in place; ``None`` if it is not known."""
    kept = pieces[0].metadata.get(FORMAT_KEY)
    digests = kept.get("content") if isinstance(kept, Mapping) and kept.get("provider") == provider else None
    parts = [part for one in pieces for part in (one.content if isinstance(one.content, tuple) else ())]
    if not isinstance(digests, list | tuple) or len(digests) != len(parts):
        return None
    by_digest: dict[str, list[Part]] = {}
    for part in parts:
        by_digest.setdefault(_digest(part_to_json(part)), []).append(part)
    try:
        content = tuple(by_digest[digest].pop(0) for digest in digests)
    except (KeyError, IndexError):
        return None
    return replace(pieces[0], content=content)


def _as_read_back(part: Part) -> Part:
    """Return a part as it will be read: what a provider has as a block of its own may look like one of ours."""
    if isinstance(part, UnknownPart) and not isinstance(found := part_from_json(part.value), UnknownPart):
        return found
    return part


class _Sources:
    """Finds an item's values in the content: text by value, objects and lists by identity."""

    __slots__ = ("objects", "texts")

    def __init__(self) -> None:
        self.texts: dict[str, Pointer] = {}
        self.objects: dict[int, Pointer] = {}

    def add(self, value: Any, pointer: Pointer) -> None:
        if isinstance(value, str):
            self.texts.setdefault(value, pointer)
        elif isinstance(value, Mapping | list) and value:
            self.objects.setdefault(id(value), pointer)


def _sources(content: Content | None) -> _Sources:
    sources = _Sources()
    if isinstance(content, str):
        sources.add(content, ["text"])
        return sources
    for place, part in enumerate(content or ()):
        match part:
            case Text() | Reasoning():
                sources.add(part.text, [place, "text"])
            case File():
                sources.add(part.uri, [place, "uri"])
                if part.uri.startswith("data:") and _BASE64 in part.uri:
                    sources.add(part.uri.partition(_BASE64)[2], [place, "uri", "data"])
            case ToolCall():
                sources.add(part.arguments, [place, "arguments"])
            case ToolResult():
                sources.add(part.output, [place, "output"])
            case UnknownPart():
                sources.add(part.value, [place])
            case _:
                pass
    return sources


def _template(value: Any, sources: _Sources, field: str) -> Any:
    if (pointer := sources.objects.get(id(value))) is not None:
        return {_POINTER: pointer}
    if isinstance(value, str):
        pointer = sources.texts.get(value) if len(value) >= _MIN_LENGTH else None
        return value if pointer is None else {_POINTER: pointer}
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        if value.keys() == {_POINTER}:
            return {_POINTER: {_POINTER: value[_POINTER]}}
        return {key: _template(item, sources, f"{field}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_template(item, sources, f"{field}[{place}]") for place, item in enumerate(value)]
    raise InvalidInput(field, f"is {type(value).__name__}, not JSON: give what model_dump(mode='json') returns")


def _filled(template: Any, content: Content | None) -> Any:
    if isinstance(template, Mapping):
        if template.keys() == {_POINTER}:
            pointer = template[_POINTER]
            return dict(pointer) if isinstance(pointer, Mapping) else _at(pointer, content)
        return {key: _filled(item, content) for key, item in template.items()}
    if isinstance(template, list | tuple):
        return [_filled(item, content) for item in template]
    return template


def _at(pointer: Pointer, content: Any) -> Any:
    if pointer == ["text"]:
        return content
    place, *path = pointer
    part: Part = content[place]
    if not path:
        return part_to_json(part)
    value = getattr(part, str(path[0]))
    return value.partition(_BASE64)[2] if path[1:] == ["data"] else value


def _digests(content: Content | None) -> str | list[str]:
    """Return what distinguishes edited content from the converted one: a digest, or one per part."""
    plain = content_to_json(content)
    return [_digest(part) for part in plain] if isinstance(plain, list) else _digest(plain)


def _digest(value: Any) -> str:
    return sha256(orjson.dumps(value, default=dict, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
