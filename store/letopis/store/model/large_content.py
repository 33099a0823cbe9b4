"""Replace the large strings of a message by references, and the references by the strings again."""

# A reference is a string itself, so that everything that reads messages need not know of it.

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from operator import is_not
from typing import Any, Final

from letopis.store.errors import InvalidInput

LARGE_BYTES: Final = 256 * 1024
"""A longer string of a message, in UTF-8, is kept apart from its event."""
MAX_STRING_BYTES: Final = 64 * 1024 * 1024
"""The longest string of a message."""
MAX_PACKED_BYTES: Final = 65 * 1024 * 1024
"""The longest one of an item of 64 MiB that an adapter has packed, which base64 makes a little longer."""
MAX_CONTENT_BYTES: Final = 2 * MAX_PACKED_BYTES
"""All large strings of one event: an adapter may keep an item and a readable form of it."""
MAX_ITEM_BYTES: Final = 67_108_864
"""The largest item of a framework that an adapter packs, as JSON in UTF-8."""
FORMAT_KEY: Final = "format"
"""The key of a message's metadata with the envelope: what a framework's item has beyond the message."""
REPLACED_TYPE: Final = "letopis.replaced_item"
"""The type of the last part of an edit that holds a framework's replacement as an envelope."""
PACKED_KEY: Final = "packed"
"""The key of an envelope with a packed item."""
CONTENT_TYPES: Final = ("message.appended", "message.edited")
"""The types of the events whose content and metadata may hold references."""

MARK: Final = "\x01letopis:"
"""Begins a reference, and a string that was escaped."""
_REFERENCE: Final = f"{MARK}content:"
_ESCAPED: Final = f"{MARK}text:"  # stands for the U+0001 that a caller's own string begins with
MARK_IN_JSON: Final = r'"\u0001letopis:'
"""What stored JSON contains if a string in it is a reference, or looks like one."""
LIKE_REFERENCE: Final = "u0001letopis:content:"
"""The same for a database to look for, without a backslash, which databases take in different ways."""
# A string of its own, and no key: not behind a backslash, and not before a colon.
_IN_JSON: Final = re.compile(r'(?<!\\)"\\u0001letopis:content:([0-9a-f]{64}):\d{1,9}"(?!:)')
_WHOLE: Final = re.compile(f"{_REFERENCE}([0-9a-f]{{64}}):([0-9]{{1,9}})")
_IN_TEXT: Final = re.compile(f"^{_WHOLE.pattern}$", re.MULTILINE)
_FIELDS: Final = ("content", "metadata")


@dataclass(frozen=True, slots=True)
class Extracted:
    """The data of an event without its large strings, and these by name."""

    data: dict[str, Any]
    contents: Mapping[str, bytes]


def content_name(conversation_id: str, checksum: str) -> str:
    """Return the name of a string whose SHA-256 is known: in each conversation another one."""
    return sha256(f"{conversation_id}\n{checksum}".encode()).hexdigest()


def extract(data: Mapping[str, Any], conversation_id: str) -> Extracted:
    """Replace the large strings of an event's data, and escape those that look like a reference.

    :raises InvalidInput: one string or all of them are too large, or a field that holds no content looks like one.
    """
    contents: dict[str, bytes] = {}
    packed = _packed(data)

    def replaced(text: str) -> str:
        if len(text) * 4 > LARGE_BYTES and len(body := text.encode()) > LARGE_BYTES:
            if len(body) > (MAX_PACKED_BYTES if text is packed else MAX_STRING_BYTES):
                raise InvalidInput("data", f"has a string of {len(body)} bytes, the limit is 64 MiB: store a reference")
            name = content_name(conversation_id, sha256(body).hexdigest())
            contents[name] = body
            return f"{_REFERENCE}{name}:{len(body)}"
        return _ESCAPED + text[1:] if text.startswith(MARK) else text

    extracted = {key: _mapped(item, replaced) if key in _FIELDS else item for key, item in data.items()}
    if (size := sum(map(len, contents.values()))) > MAX_CONTENT_BYTES:
        raise InvalidInput("data", f"has {size} bytes of large content, the limit is {MAX_CONTENT_BYTES}: split it")
    others = [item for key, item in data.items() if key not in _FIELDS]
    if any(_WHOLE.fullmatch(text) for text in _strings(others)):
        raise InvalidInput("data", "has a string in the form of Letopis' references to large content: change it")
    return Extracted(extracted, contents)


def references_in(type_name: str, data: str) -> set[str]:
    """Return the names in an event's data, JSON as it is stored; other events than those of messages have none."""
    return set(_IN_JSON.findall(data)) if MARK_IN_JSON in data and type_name in CONTENT_TYPES else set()


def references_of(value: Any) -> set[str]:
    """Return the names in a JSON value."""
    return {whole[1] for text in _strings(value) if (whole := _WHOLE.fullmatch(text)) is not None}


def restored(value: Any, contents: Mapping[str, bytes]) -> Any:
    """Return a JSON value with its large strings back in place; a note stands for one that ``contents`` lacks."""

    def replaced(text: str) -> str:
        if (whole := _WHOLE.fullmatch(text)) is not None:
            body = contents.get(whole[1])
            return f"[{whole[2]} bytes of content cannot be read]" if body is None else body.decode()
        return f"\x01{text.removeprefix(_ESCAPED)}" if text.startswith(_ESCAPED) else text

    return _mapped(value, replaced)


def without_references(text: str) -> str:
    """Return the text of a message, as it is searched, without references to large content."""
    return _IN_TEXT.sub("", text) if MARK in text else text


def _mapped(value: Any, replaced: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return replaced(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, replaced) for key, item in value.items()}
    mapped = [_mapped(item, replaced) for item in value] if isinstance(value, list | tuple) else value
    # Copies of very many small lists could fill the memory.
    return mapped if mapped is value or any(map(is_not, mapped, value)) else value


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def packed_bytes(data: Mapping[str, Any]) -> int:
    """Return how many bytes of an event's data are a packed item, which :class:`Limits` do not count."""
    return min(len(_packed(data) or ""), 2 * MAX_ITEM_BYTES)


def _packed(data: Mapping[str, Any]) -> str | None:
    about, content = data.get("metadata"), data.get("content")
    envelope = about.get(FORMAT_KEY) if isinstance(about, Mapping) else None
    if envelope is None and isinstance(content, list) and content and isinstance(content[-1], Mapping):
        envelope = content[-1] if content[-1].get("type") == REPLACED_TYPE else None
    packed = envelope.get(PACKED_KEY) if isinstance(envelope, Mapping) else None
    return packed if isinstance(packed, str) else None
