"""Strip events of their content, keeping ids, roles and figures, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from letopis.store.errors import InvalidInput
from letopis.store.model.codec import RESERVED, EncodedEvent, decode
from letopis.store.model.event_types import Body, MessageAppended
from letopis.store.model.identifiers import check_identifier
from letopis.store.rules.reducer import MessageChange

_MESSAGE: Final = ("message_id",)

# What a reader needs to make sense of the rest of the log, but nothing that a user or a model wrote.
_KEPT: Final[Mapping[str, tuple[str, ...]]] = {
    "message.appended": ("message_id", "role", "author", "tokens", "status"),
    "message.edited": _MESSAGE,
    "message.sent": ("message_id", "platform_ids", "sent_as"),
    "message.failed": _MESSAGE,
    "message.redacted": _MESSAGE,
    "reaction.added": _MESSAGE,
    "reaction.removed": _MESSAGE,
    "conversation.started": ("owner_id", "forked_from"),
    "conversation.rewound": ("to_message_id", "erase", "upto", "undone"),
    "conversation.trimmed": ("upto", "rule", "sequence"),
}
# Required fields stay, empty, so that each event can still be read as what it was.
_EMPTIED: Final[Mapping[str, Mapping[str, Any]]] = {
    "message.appended": {"content": ""},
    "message.edited": {"content": ""},
    "reaction.added": {"key": ""},
    "reaction.removed": {"key": ""},
    "conversation.renamed": {"title": ""},
    "conversation.annotated": {"metadata": {}},
    "conversation.tagged": {"add": []},
}

ARRIVED_ERASED_KEY: Final = f"{RESERVED}arrived_erased"
"""The key of an event's metadata that says that its outbox had erased it before its delivery."""
RETAINED_KEY: Final = f"{RESERVED}retained"
"""The key of an event's metadata that says that its message was erased, and its content stays for forks alone."""
MESSAGE_CONTENT_TYPES: Final = ("message.appended", "message.edited", "message.sent", "message.failed")
"""The types of the events that hold a message's content, and are stripped when it is redacted."""
LATER_CONTENT_TYPES: Final = MESSAGE_CONTENT_TYPES[1:]
"""Those of them that come after the message."""


def stripped(type_name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an event's data that is not content: ids, roles and figures. Idempotent."""
    # Data of an unknown type is emptied.
    left = {key: data[key] for key in _KEPT.get(type_name, ()) if key in data}
    left.update(_EMPTIED.get(type_name, {}))
    usage = data.get("usage")
    if type_name == "message.appended" and isinstance(usage, Mapping):
        figures = {key: value for key, value in usage.items() if isinstance(value, int | float)}
        if figures:
            left["usage"] = figures
    return left


def is_stripped(type_name: str, data: str, metadata: str | None) -> bool:
    """Return True if a redacted event holds no more than a redaction leaves."""
    left = decode(data)
    return stripped(type_name, left) == left and decode(internal_metadata(metadata)) == decode(metadata)


def message_of(event: EncodedEvent, body: Body) -> str | None:
    """Return the id of the message whose content an event holds, also if this release does not know its shape."""
    if event.type not in MESSAGE_CONTENT_TYPES:
        return None
    if isinstance(body, MessageAppended):
        return body.message.id
    if isinstance(body, MessageChange):
        return body.message_id
    try:
        return check_identifier(decode(event.data).get("message_id"), "message_id")
    except InvalidInput:
        return None  # no message can have it, and some databases refuse to be asked for it


def strip_event(event: EncodedEvent) -> EncodedEvent:
    """Return an event without its content and salt; digest and Letopis' own keys of its metadata stay. Idempotent."""
    data = orjson.dumps(stripped(event.type, decode(event.data))).decode()
    return replace(event, data=data, metadata=internal_metadata(event.metadata), salt=None, redacted=True)


def with_note(metadata: str | None, key: str) -> str:
    """Return the metadata of an event with a note of the history store."""
    return orjson.dumps({**decode(metadata), key: True}).decode()


def arrived_erased(metadata: str | None) -> bool:
    """Return True if an event was erased before its delivery."""
    return metadata is not None and ARRIVED_ERASED_KEY in decode(metadata)


def internal_metadata(metadata: str | None) -> str | None:
    """Return the part of an event's metadata that Letopis itself put there."""
    if metadata is None or f'"{RESERVED}' not in metadata:
        return None
    ours = {key: value for key, value in decode(metadata).items() if key.startswith(RESERVED)}
    return orjson.dumps(ours).decode() if ours else None
