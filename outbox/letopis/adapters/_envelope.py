"""Hold the item of a framework as JSON text, for items that the stores or the limits would refuse as values."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar
from zlib import compress, decompressobj

from letopis.store import InvalidInput
from letopis.store.model.codec import DEFAULT_LIMITS, encode_value
from letopis.store.model.large_content import MAX_ITEM_BYTES, PACKED_KEY

_JSON: Final = "json"
_MAX_PLAIN_LENGTH: Final = 65_536
"""Longer text is compressed: in base64 there is nothing that JSON or a driver would have to escape."""
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")

R = TypeVar("R")


class NotJson(InvalidInput, TypeError):
    """An item holds a value that JSON cannot express: a ``TypeError`` too, which frameworks' own stores raise."""


def to_text(item: Any, field: str = "item") -> str:
    r"""Return what ``json.dumps`` writes, in characters that all stores accept: NUL and surrogates are escaped."""
    try:
        text = _on_a_fresh_stack(lambda: json.dumps(item, ensure_ascii=False, separators=(",", ":")))
    except (TypeError, ValueError, RecursionError) as error:  # they quote no value
        kind = NotJson if isinstance(error, TypeError) else InvalidInput
        raise kind(field, f"is not JSON that can be stored: {error}") from error
    text = _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    if (size := len(text.encode())) > MAX_ITEM_BYTES:
        raise InvalidInput(
            field, f"is {size} bytes of JSON, the limit is {MAX_ITEM_BYTES}: keep it in a file and store a reference"
        )
    return text


def from_text(text: str) -> Any:
    """Return the item that :func:`to_text` wrote."""
    return _on_a_fresh_stack(lambda: json.loads(text))


def seal(item: Any) -> dict[str, str]:
    """Return an item as the field of an envelope: its text, compressed if it is long."""
    text = to_text(item)
    if len(text) <= _MAX_PLAIN_LENGTH:
        return {_JSON: text}
    return {PACKED_KEY: b64encode(compress(text.encode(), 1)).decode()}


def is_sealed(envelope: Mapping[str, Any]) -> bool:
    """Return True if an envelope holds its item as text."""
    return _JSON in envelope or PACKED_KEY in envelope


def unseal(envelope: Mapping[str, Any]) -> Any:
    """Return the item that was sealed in an envelope."""
    if (packed := envelope.get(PACKED_KEY)) is None:
        return from_text(envelope[_JSON])
    unpacker = decompressobj()
    try:
        # Bounded: a packed text that comes from elsewhere may stand for gigabytes.
        text = unpacker.decompress(b64decode(packed), MAX_ITEM_BYTES)
    except Exception as error:  # zlib's error is no ValueError
        raise ValueError("the packed text is damaged") from error
    if not unpacker.eof:
        raise ValueError("the packed text is damaged, or larger than any item")
    return from_text(text.decode())


def _on_a_fresh_stack(work: Callable[[], R]) -> R:
    """Run something recursive, again on a stack of its own if the caller's is too deep for it."""
    try:
        return work()
    except RecursionError:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(work).result()


def to_record(value: Any) -> Any:
    """Return a value for a record: unchanged, or the bytes of its JSON text if the stores would refuse it.

    :raises InvalidInput: it is not JSON, or such text has more than 64 MiB.
    """
    try:
        encode_value(value, "value", DEFAULT_LIMITS)
    except InvalidInput:
        return to_text(value, "value").encode()
    return value


def from_record(value: Any) -> Any:
    """Return the value that :func:`to_record` was given."""
    return from_text(value.decode()) if isinstance(value, bytes) else value
