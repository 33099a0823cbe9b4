"""Map rows of the tables to the values that callers read and the rules change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa

from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import decode
from letopis.store.model.conversations import Conversation, RecordedMessage
from letopis.store.model.event_types import MessageAppended
from letopis.store.model.events import RecordedEvent, from_microseconds
from letopis.store.model.identifiers import ForkPoint
from letopis.store.model.messages import ROLES, Message, text_message
from letopis.store.model.parts import UnknownPart
from letopis.store.rules.preconditions import SUPERSEDED_KEY, Conflict
from letopis.store.rules.redaction import RETAINED_KEY
from letopis.store.rules.reducer import ConversationState
from letopis.store.rules.rows import ConversationRow, MessageRow, reactions_from_text
from letopis.store.rules.sight import without_content

_STATE_COLUMNS: Final = (
    *("owner_id", "title", "state", "version", "message_count", "tokens", "trimmed", "reset_to", "inherited_to"),
)
"""The columns of a conversation's state that hold its values as they are."""


def recorded_event(values: Mapping[Any, Any], *, hidden: bool = False, forked: bool = False) -> RecordedEvent:
    """Return the event of a row of the log, whose columns are those of :func:`event_columns`.

    :param hidden: a mark erases it with its message.
    :param forked: it is read by a fork.
    """
    fields: dict[str, Any] = dict(values)
    fields.pop("changes", None)
    hidden = fields.pop("erased", None) is not None or hidden
    fields |= {name: decode_object(fields[name]) for name in ("data", "metadata")}
    fields |= {name: from_microseconds(fields[name]) for name in ("occurred_at", "recorded_at")}
    event = RecordedEvent(**fields)
    return without_content(event) if hidden or (not forked and RETAINED_KEY in event.metadata) else event


PlainRow = tuple[int, UUID | bytes, UUID | bytes, int, str, int, int, Any]
"""Version, event id, origin id, sequence, data, the times it occurred and was recorded, in microseconds, and whether it
has changed since it was appended."""
PLAIN_COLUMNS: Final = 8
MARKED: Final = 2
"""Instead of whether a message has changed, if the conversation has marks."""


def plain_row(row: sa.Row[Any]) -> PlainRow:
    """Return the columns of a whole row that a plain message needs."""
    times = row.e_occurred_at, row.e_recorded_at
    return row.m_version, row.e_event_id, row.e_origin_id, row.e_sequence, row.e_data, *times, False


def plain_messages(conversation_id: str, rows: Iterable[PlainRow]) -> dict[int, RecordedMessage]:
    """Return messages that have not changed since they were appended, by version; others are left out."""
    messages: dict[int, RecordedMessage] = {}
    for version, event_id, origin_id, sequence, text, occurred_at, recorded_at, changed in rows:
        if changed:
            continue
        try:
            data: Any = orjson.loads(text)
        except ValueError:
            data = None
        if type(data) is not dict:
            data = decode_object(text)  # raises what is wrong
        if (message := text_message(data)) is None:
            try:
                message = Message.from_data(data)
            except InvalidInput:
                continue
        row_left = (event_id, origin_id, occurred_at, recorded_at)
        messages[version] = RecordedMessage.of_row(conversation_id, message, version, sequence, row_left)
    return messages


def is_plain(row: sa.Row[Any]) -> bool:
    """Return True if a row of a window's select holds a message that has not changed since it was appended."""
    if row.e_type != MessageAppended.type or row.e_schema_version != MessageAppended.schema_version:
        return False
    changes = (row.m_left_at, row.m_redacted_at, row.m_reactions, row.c_digest, row.d_data)
    return row.e_digest is not None and changes == (None,) * len(changes)


def appended_event(values: Mapping[Any, Any], conversation_id: str) -> RecordedEvent:
    """Return the event that appended the message in a row of a window's select, without its metadata."""
    event = RecordedEvent(
        conversation_id=conversation_id,
        event_id=values["e_event_id"],
        origin_id=values["e_origin_id"],
        sequence=values["e_sequence"],
        type=values["e_type"],
        schema_version=values["e_schema_version"],
        data=decode_object(values["e_data"]),
        metadata={},
        digest=values["e_digest"],
        occurred_at=from_microseconds(values["e_occurred_at"]),
        version=values["m_version"],
        recorded_at=from_microseconds(values["e_recorded_at"]),
    )
    return event if values.get("e_erased") is None else without_content(event)


def decode_object(text: str | None) -> Mapping[str, Any]:
    """Return the JSON object that a column holds."""
    try:
        return decode(text)
    except ValueError:
        # Not chained: the error quotes the text.
        reason = "an event in the history store is not the JSON that was written: the database was damaged"
    raise StoreFault(fault_class=FaultClass.UNCLASSIFIED, code="damaged", reason=reason)


def unreadable_message(values: Mapping[Any, Any], data: Mapping[str, Any]) -> MessageAppended:
    """Return a message whose event a newer release wrote, with its data as an unknown part."""
    role = values["m_role"]
    return MessageAppended(
        message=Message(
            role=role if role in ROLES else "system", content=(UnknownPart(data),), id=values["m_message_id"]
        )
    )


def recorded_conversation(values: Mapping[Any, Any], *, active: bool) -> Conversation:
    return Conversation(
        **{name: values[name] for name in ("conversation_id", "number", *_STATE_COLUMNS)},
        created_at=from_microseconds(values["created_at"]),
        updated_at=from_microseconds(values["updated_at"]),
        metadata=decode_object(values["metadata"]),
        tags=tags_of(values),
        active=active,
        forked_from=fork_of(values),
        inherits=bool(values["inherits"]),
    )


def conversation_row(row: sa.Row[Any]) -> ConversationRow:
    """Return a row of the conversations in the form that the rules change."""
    values: Mapping[Any, Any] = row._mapping
    return ConversationRow(
        partition=values["partition"],
        conversation_id=values["conversation_id"],
        conversation=ConversationState(
            **{name: values[name] for name in ("created_at", "updated_at", *_STATE_COLUMNS)},
            metadata=decode(values["metadata"]),
            tags=tags_of(values),
            forked_from=fork_of(values),
            inherits=bool(values["inherits"]),
        ),
        number=values["number"],
        retained=values["retained"],
        rules=values["rules"],
    )


def tags_of(values: Mapping[Any, Any]) -> tuple[str, ...]:
    return () if values["tags"] is None else tuple(orjson.loads(values["tags"]))


def fork_of(values: Mapping[Any, Any]) -> ForkPoint | None:
    """Return the point up to which a conversation reads its parent; ``None`` if it is not a fork."""
    if values["forked_from_id"] is None:
        return None
    return ForkPoint(
        conversation_id=values["forked_from_id"],
        version=values["forked_from_version"],
        event_id=values["forked_from_event"],
    )


def message_row(row: sa.Row[Any]) -> MessageRow:
    """Return a row of the messages in the form that the rules change."""
    return MessageRow(
        version=row.version,
        message_id=row.message_id,
        content_version=row.content_version,
        delivery_version=row.delivery_version,
        role=row.role,
        state=row.state,
        left_at=row.left_at,
        redacted_at=row.redacted_at,
        reactions=reactions_from_text(row.reactions),
        author=row.author,
    )


def conflict_of(metadata: str | None) -> Conflict | None:
    """Return the conflict that an event's metadata records, or ``None``."""
    return None if metadata is None or SUPERSEDED_KEY not in metadata else Conflict.of(decode(metadata))
