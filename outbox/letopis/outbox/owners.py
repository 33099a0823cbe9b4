"""Owners: which conversation of an owner's this outbox made active last, and what becomes of that in the history store.

Statements on the file, over a snapshot of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox.lanes import find_lane
from letopis.outbox.overlay import Overtaken
from letopis.store.projection import ORDER
from letopis.store.vocabulary import ConversationActivated, ConversationArchived, ConversationDeleted

_LAST: Final = "SELECT active_conversation_id, activated_order FROM letopis_outbox_owners WHERE owner_id = ?"
_ACTIVATION: Final = (
    "SELECT sequence FROM letopis_outbox_events WHERE conversation_id = ? AND sequence > ? AND type = ?"
    " AND json_extract(metadata, ?) = ?"
)
_ORDER: Final = f'$."{ORDER}"'
_LEFT: Final = (
    "SELECT 1 FROM letopis_outbox_events WHERE conversation_id = ? AND sequence > ? AND type IN (?, ?) LIMIT 1"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """The last activation that was appended here for an owner; it may be delivered, or not.

    :ivar order: what tells it from others of this outbox, the greater the later.
    """

    conversation_id: str
    order: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Where an owner's mark stands, with what is pending here.

    :ivar left: whether the conversation is archived or deleted by something pending: then the mark moves on from it.
    """

    conversation_id: str
    left: bool


def last_activation(connection: sa.Connection, owner_id: str) -> Activation | None:
    """Return an owner's last activation in this outbox; ``None`` where there was none."""
    row = _first(connection, _LAST, (owner_id,))
    return None if row is None else Activation(conversation_id=row[0], order=row[1])


def mark_over(
    connection: sa.Connection,
    activation: Activation | None,
    *,
    activated_head: int,
    stored: str | None,
    stored_head: int,
) -> Mark | None:
    """Return the mark that the history store holds, moved by what the file holds beyond; ``None`` for none.

    Of one outbox the last activation wins whatever the lanes' order of delivery, so only that one is looked at.

    :param activated_head: how far the lane of ``activation`` had got in the store, or earlier.
    :param stored: the store's own mark, and ``stored_head`` how far the lane of that one had got then.
    :raises Overtaken: read the store again.
    """
    if activation is not None:
        sequence = _sequence_of(connection, activation, activated_head)
        if sequence is not None:
            return _mark(connection, activation.conversation_id, sequence)
    return None if stored is None else _mark(connection, stored, stored_head)


def mark_alone(connection: sa.Connection, activation: Activation | None) -> Mark | None:
    """Return the mark as far as the file alone tells."""
    if activation is None:
        return None
    name = activation.conversation_id
    sequence = _sequence_of(connection, activation, 0)
    lane = find_lane(connection, name)
    # An activation that was let go from the file comes before all that is there.
    return _mark(connection, name, sequence if sequence is not None else 0 if lane is None else lane.pruned)


def _sequence_of(connection: sa.Connection, activation: Activation, after: int) -> int | None:
    place = (activation.conversation_id, after, ConversationActivated.type, _ORDER, activation.order)
    row = _first(connection, _ACTIVATION, place)
    return None if row is None else int(row[0])


def _mark(connection: sa.Connection, conversation_id: str, after: int) -> Mark:
    lane = find_lane(connection, conversation_id)
    if lane is not None and lane.pruned > after:
        raise Overtaken
    leaving = (ConversationArchived.type, ConversationDeleted.type)
    left = _first(connection, _LEFT, (conversation_id, after, *leaving)) is not None
    return Mark(conversation_id=conversation_id, left=left)


def _first(connection: sa.Connection, statement: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    cursor = connection.connection.cursor()
    try:
        row: tuple[Any, ...] | None = cursor.execute(statement, values).fetchone()
        return row
    finally:
        cursor.close()
