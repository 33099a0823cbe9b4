"""Translate messages and chats of the seed's bot to those of a history, and back; no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any, Final, TypeGuard
from uuid import UUID, uuid5

from letopis.store import Conversation, Event, Message, MessageSent, RecordedMessage

NAMESPACE: Final = UUID("2f3e6f1e-6f0a-5b8e-9a53-7c3f0c1b5d42")
"""Namespace of the ids derived from the seed's data; must never change."""
FIELDS: Final = ("timestamp", "message_id", "type", "text", "tokens", "sent_as", "file_path", "search_type")
"""The fields of a message of the seed."""
QUESTION: Final = "user_question"
ANSWER: Final = "bot_answer"
_KEPT: Final = ("timestamp", "search_type", "sent_as", "file_path")
"""The fields that a history keeps as metadata."""
_TYPES: Final = {"user": QUESTION, "assistant": ANSWER}
_PLATFORM: Final = "telegram"
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
_ID: Final = re.compile(r"tg:-?\d+:(\d+)")


def values_of(message: Any) -> dict[str, Any]:
    """Return the fields of a message, which is an object or a dictionary."""
    if isinstance(message, Mapping):
        return {name: message.get(name) for name in FIELDS}
    return {name: getattr(message, name, None) for name in FIELDS}


def storable(text: object) -> str:
    """Return text that every store accepts: NUL and lone surrogates are replaced by U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text if isinstance(text, str) else "" if text is None else str(text))


def message_id_of(user_id: int, values: Mapping[str, Any], occurrence: int = 0) -> str:
    """Return the id of a message: its Telegram id within its chat.

    :param occurrence: how many messages with the same Telegram id precede it; a damaged folder may contain some.
    """
    given = values["message_id"]
    message_id = f"tg:{user_id}:{given if _is_whole(given) else uuid5(NAMESPACE, ascii(given))}"
    return message_id if occurrence == 0 else f"{message_id}:{occurrence}"


def to_message(user_id: int, values: Mapping[str, Any], *, occurrence: int = 0) -> Message:
    """Convert a message of the seed. The same values always give the same message.

    :param values: all fields of the seed, of any kind.
    """
    kind, tokens, telegram = values["type"], values["tokens"], values["message_id"]
    metadata = {name: storable(values[name]) for name in _KEPT if values[name] is not None}
    if kind not in _TYPES.values():
        metadata["type"] = storable(kind)
    return Message(
        role="user" if storable(kind).startswith("user") else "assistant",
        content=storable(values["text"]),
        id=message_id_of(user_id, values, occurrence),
        tokens=tokens if _is_whole(tokens) and tokens >= 0 else None,
        external_ids={_PLATFORM: telegram} if _is_whole(telegram) else {},
        metadata=metadata,
    )


def to_sent(conversation_id: str, message: Message, occurred_at: datetime | None) -> Event | None:
    """Return the event that an answer was sent: the seed records it after sending; ``None`` for a question."""
    if message.role != "assistant":
        return None
    body = MessageSent(
        message_id=message.id,
        platform_ids=dict(message.external_ids) or None,
        sent_as=message.metadata.get("sent_as"),
        file_path=message.metadata.get("file_path"),
    )
    return event_of(conversation_id, body, f"{message.id}\nsent", occurred_at)


def event_of(conversation_id: str, body: Any, name: str, occurred_at: datetime | None) -> Event:
    """Return an event whose id derives from its conversation and a name, so that it takes effect once."""
    made = Event.of(body, conversation_id=conversation_id, occurred_at=occurred_at)
    return Event(
        type=made.type,
        data=made.data,
        schema_version=made.schema_version,
        event_id=uuid5(NAMESPACE, f"{conversation_id}\n{name}"),
        occurred_at=made.occurred_at,
    )


def from_messages(messages: Sequence[RecordedMessage], tz: tzinfo | None) -> list[dict[str, Any]]:
    """Return messages with the seed's fields, without other roles and redacted ones."""
    return [_values(one, tz) for one in messages if one.role in _TYPES and not one.redacted]


def _values(recorded: RecordedMessage, tz: tzinfo | None) -> dict[str, Any]:
    message, sent = recorded.message, recorded.delivery_data
    return {
        "timestamp": message.metadata.get("timestamp") or local_time(recorded.occurred_at, tz),
        "message_id": _telegram_id(recorded),
        "type": message.metadata.get("type") or _TYPES[recorded.role],
        "text": recorded.text,
        "tokens": message.tokens or 0,
        "sent_as": message.metadata.get("sent_as") or sent.get("sent_as"),
        "file_path": message.metadata.get("file_path") or sent.get("file_path"),
        "search_type": message.metadata.get("search_type"),
    }


def _telegram_id(recorded: RecordedMessage) -> int:
    for ids in (recorded.message.external_ids, recorded.delivery_data.get("platform_ids") or {}):
        if _is_whole(found := ids.get(_PLATFORM)):
            return found
    if (named := _ID.match(recorded.id)) is not None:
        return int(named[1])
    return recorded.version or recorded.sequence


def metadata_of(chat: Conversation, user_id: int, *, active: bool, tz: tzinfo | None) -> dict[str, Any]:
    """Return the seed's metadata of a chat."""
    return {
        "conversation_id": chat.conversation_id,
        "user_id": user_id,
        "username": chat.metadata.get("username") or f"user_{user_id}",
        "title": chat.title or "",
        "created_at": local_time(chat.created_at, tz),
        "updated_at": local_time(chat.updated_at, tz),
        "is_active": active,
        "message_count": chat.message_count,
        "total_tokens": chat.tokens,
        "chat_number": number_of(chat),
    }


def number_of(chat: Conversation) -> int:
    """Return the permanent number of a chat; 0 if it has none."""
    number = chat.metadata.get("chat_number")
    return number if _is_whole(number) else 0


def local_time(moment: datetime, tz: tzinfo | None) -> str:
    """Return a moment as the seed writes it: local time without an offset; with ``None``, the machine's."""
    return moment.astimezone(tz).replace(tzinfo=None).isoformat()


def parse_time(text: object, tz: tzinfo | None) -> datetime | None:
    """Parse a moment written by the seed; ``None`` if it is not valid."""
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
        if found is None or found.tzinfo is not None:
            return found
        return found.astimezone() if tz is None else found.replace(tzinfo=tz)
    except (ValueError, OverflowError, OSError):
        return None


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
