"""Mark an event that puts a message back on the path, and tell such events from other appends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import orjson

from letopis.store.model.codec import RESERVED, EncodedEvent, decode

PUT_BACK_KEY: Final = f"{RESERVED}puts_back"
"""The key of an event's metadata that names the event which appended the message first."""


def put_back(event: EncodedEvent, *, first: UUID, event_id: UUID) -> EncodedEvent:
    """Return the event that puts back the message which ``event`` appends.

    It is an append of the same content under an event id of its own. Its digest, which leaves the mark out, stays.

    :param first: the event that appended the message first.
    """
    metadata = orjson.dumps({**decode(event.metadata), PUT_BACK_KEY: str(first)}).decode()
    return replace(event, event_id=event_id, metadata=metadata)


def puts_back(metadata: str | None) -> bool:
    """Return True if the metadata is that of an event that puts a message back."""
    return metadata is not None and PUT_BACK_KEY in metadata and PUT_BACK_KEY in decode(metadata)


def is_put_back(metadata: Mapping[str, Any]) -> bool:
    """Return True if the decoded metadata is that of an event that puts a message back."""
    return PUT_BACK_KEY in metadata
