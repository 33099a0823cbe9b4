"""Erasure: what is left of an event whose content is taken away for good; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_MESSAGE: Final = ("message_id",)

# What a reader needs to make sense of the rest of the log, and nothing that a person wrote. Ids are not content.
_KEPT: Final[Mapping[str, tuple[str, ...]]] = {
    "message.appended": ("message_id", "role", "tokens", "status"),
    "message.edited": _MESSAGE,
    "message.sent": ("message_id", "platform_ids", "sent_as"),
    "message.failed": _MESSAGE,
    "message.redacted": _MESSAGE,
    "reaction.added": _MESSAGE,
    "reaction.removed": _MESSAGE,
    "conversation.started": ("owner_id", "forked_from"),
    "conversation.rewound": ("to_message_id",),
}
# So that each can still be read as what it was.
_EMPTIED: Final[Mapping[str, Mapping[str, Any]]] = {
    "message.appended": {"content": ""},
    "message.edited": {"content": ""},
    "reaction.added": {"key": ""},
    "reaction.removed": {"key": ""},
    "conversation.renamed": {"title": ""},
    "conversation.annotated": {"metadata": {}},
}

OF_A_MESSAGE: Final = ("message.appended", "message.edited", "message.sent", "message.failed")
"""The types of the events that hold a message's content, and so go with it."""


def stripped(type_name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is left of an event's data: ids, roles and figures, nothing that a person or a model wrote.

    Stripping again changes nothing. What is not known is emptied.
    """
    left = {key: data[key] for key in _KEPT.get(type_name, ()) if key in data}
    left.update(_EMPTIED.get(type_name, {}))
    usage = data.get("usage")
    if type_name == "message.appended" and isinstance(usage, Mapping):
        figures = {key: value for key, value in usage.items() if isinstance(value, int | float)}
        if figures:
            left["usage"] = figures
    return left
