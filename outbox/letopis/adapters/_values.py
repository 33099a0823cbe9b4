"""Keep what frameworks put into records, whatever JSON it is."""

from __future__ import annotations

from typing import Any

from letopis.adapters._envelope import from_text, to_text
from letopis.store import InvalidInput
from letopis.store.model.codec import DEFAULT_LIMITS, encode_value


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
