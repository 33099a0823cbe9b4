"""Recorded: what the rows of a read hold, as callers get it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from letopis.store.codec import decode
from letopis.store.conversation import Conversation, PlainMessage, RecordedMessage
from letopis.store.errors import InvalidInput
from letopis.store.events import RecordedEvent, from_microseconds
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.messages import ROLES, Message, UnknownPart
from letopis.store.rows import fork_of
from letopis.store.vocabulary import MessageAppended


def recorded_event(row: sa.Row[Any]) -> RecordedEvent:
    """Return the event that a row of the log holds."""
    values = row._mapping
    return RecordedEvent(
        conversation_id=values["conversation_id"],
        event_id=values["event_id"],
        origin_id=values["origin_id"],
        sequence=values["sequence"],
        type=values["type"],
        schema_version=values["schema_version"],
        data=decoded(values["data"]),
        metadata=decoded(values["metadata"]),
        digest=values["digest"],
        occurred_at=from_microseconds(values["occurred_at"]),
        version=values["version"],
        partition=values["partition"],
        position=values["position"],
        recorded_at=from_microseconds(values["recorded_at"]),
    )


PlainRow = tuple[int, UUID, UUID, int, str, int, int]
"""Version, event id, origin id, sequence, data, and when it happened and was recorded, in microseconds."""


def plain_messages(conversation_id: str, rows: Iterable[PlainRow]) -> dict[int, RecordedMessage]:
    """Return messages of which nothing but their appending is recorded, by version.

    What cannot be read as a message here, because a newer release wrote it, is left out.
    """
    found: dict[int, RecordedMessage] = {}
    # Events that were delivered together were recorded at one moment.
    recorded: dict[int, datetime] = {}
    for version, event_id, origin_id, sequence, data, occurred_at, recorded_at in rows:
        try:
            message = Message.from_data(decoded(data))
        except InvalidInput:
            continue
        if (moment := recorded.get(recorded_at)) is None:
            moment = recorded[recorded_at] = from_microseconds(recorded_at)
        found[version] = PlainMessage(  # type: ignore[assignment]  # it is one once it is made
            conversation_id, message, event_id, origin_id, sequence, from_microseconds(occurred_at), version, moment
        )
    return found


def is_plain(row: sa.Row[Any]) -> bool:
    """Whether a row of a window's select holds a message of which nothing but its appending is recorded."""
    return (
        row.e_type == MessageAppended.type
        and row.e_schema_version == MessageAppended.schema_version
        and row.e_digest is not None
        and row.m_left_at is None
        and row.m_redacted_at is None
        and row.m_reactions is None
        and row.c_digest is None
        and row.d_data is None
    )


def appended_event(values: Mapping[Any, Any], conversation_id: str) -> RecordedEvent:
    """Return the event that appended the message of a row of a window's select; without its metadata."""
    return RecordedEvent(
        conversation_id=conversation_id,
        event_id=values["e_event_id"],
        origin_id=values["e_origin_id"],
        sequence=values["e_sequence"],
        type=values["e_type"],
        schema_version=values["e_schema_version"],
        data=decoded(values["e_data"]),
        metadata={},
        digest=values["e_digest"],
        occurred_at=from_microseconds(values["e_occurred_at"]),
        version=values["m_version"],
        recorded_at=from_microseconds(values["e_recorded_at"]),
    )


def decoded(text: str | None) -> Mapping[str, Any]:
    """Return the JSON object that a column holds.

    :raises StoreFault: it holds none.
    """
    try:
        return decode(text)
    except ValueError:
        # Not chained: the error holds the text.
        reason = "an event in the history store is not the JSON that was written: the database was damaged"
    raise StoreFault(fault_class=FaultClass.UNCLASSIFIED, code="damaged", reason=reason)


def unreadable(values: Mapping[Any, Any], data: Mapping[str, Any]) -> MessageAppended:
    """Return a message whose event this release cannot read (written by a newer one): shown as it is."""
    role = values["m_role"]
    return MessageAppended(
        message=Message(
            role=role if role in ROLES else "system", content=(UnknownPart(data),), id=values["m_message_id"]
        )
    )


def conversation_of(values: Mapping[Any, Any]) -> Conversation:
    """Return the conversation that the values of a row come to, with its owner's ``active_conversation_id``."""
    return Conversation(
        conversation_id=values["conversation_id"],
        owner_id=values["owner_id"],
        number=values["number"],
        title=values["title"],
        state=values["state"],
        version=values["version"],
        message_count=values["message_count"],
        tokens=values["tokens"],
        created_at=from_microseconds(values["created_at"]),
        updated_at=from_microseconds(values["updated_at"]),
        metadata=decoded(values["metadata"]),
        active=values["active_conversation_id"] == values["conversation_id"],
        forked_from=fork_of(values),
        inherits=bool(values["inherits"]),
        inherited_to=values["inherited_to"],
    )
