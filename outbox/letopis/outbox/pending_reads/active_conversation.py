"""Find an owner's active conversation: the last activation of the outbox wins, however lanes are delivered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from letopis.outbox.event_log.lanes import find_lane
from letopis.outbox.event_log.statements import fetch_all, fetch_one
from letopis.store.model.event_types import ConversationActivated, ConversationArchived, ConversationDeleted
from letopis.store.read.reader import StoreView
from letopis.store.rules.projection import ACTIVATION_ORDER_KEY

_LAST: Final = "SELECT active_conversation_id, activated_order FROM letopis_outbox_owners WHERE owner_id = ?"
_ACTIVATION: Final = (
    "SELECT max(sequence) FROM letopis_outbox_log WHERE conversation_id = ? AND type = ?"
    " AND json_extract(metadata, ?) = ?"
)
_ORDER: Final = f'$."{ACTIVATION_ORDER_KEY}"'
_LEAVING: Final = (
    "SELECT l.conversation_id, max(e.sequence), e.occurred_at FROM letopis_outbox_lanes AS l"
    " JOIN letopis_outbox_events AS e ON e.lane = l.lane AND e.sequence > l.delivered"
    " WHERE l.owner_id = ?1 AND l.pending_since IS NOT NULL AND l.delivered < l.head"
    " AND e.type IN (?2, ?3) GROUP BY l.conversation_id"
)
_LEFT: Final = "SELECT max(sequence), occurred_at FROM letopis_outbox_log WHERE conversation_id = ? AND type IN (?, ?)"
_LEAVES: Final = (ConversationArchived.type, ConversationDeleted.type)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """The last activation that was appended here for an owner."""

    conversation_id: str
    sequence: int  # 0 if the event was pruned: it comes before all that the file holds
    delivered: bool  # when the file was read


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingActive:
    """What the file holds about which conversation of an owner is active."""

    activation: Activation | None  # the last one appended here
    # where an archive or delete is pending, and of ``activation``: the last one's sequence and moment
    left: Mapping[str, tuple[int, int]]

    @property
    def lane(self) -> str | None:
        """The conversation whose lane head in the store has to be known."""
        return None if self.activation is None or self.activation.delivered else self.activation.conversation_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveConversation:
    """The conversation that was activated last."""

    conversation_id: str
    left_at: int | None  # when a pending event has archived or deleted it since


def read_active(connection: sa.Connection, owner_id: str) -> PendingActive:
    """Read what is pending about which conversation of an owner is active."""
    left = {row[0]: (row[1], row[2]) for row in fetch_all(connection, _LEAVING, (owner_id, *_LEAVES))}
    activation = _activation(connection, owner_id)
    if activation is not None and activation.conversation_id not in left:
        ((last, occurred_at),) = fetch_all(connection, _LEFT, (activation.conversation_id, *_LEAVES))
        left[activation.conversation_id] = (last or 0, occurred_at or 0)
    return PendingActive(activation=activation, left=left)


def merge_active(pending: PendingActive, view: StoreView, *, head: int) -> ActiveConversation | None:
    """Return the active conversation of the store's view, updated by what is pending; ``None`` for none."""
    activation = pending.activation
    if activation is not None and not activation.delivered and activation.sequence > head:
        return _active(pending, activation.conversation_id, activation.sequence)
    stored = view.conversation
    return None if stored is None else _active(pending, stored.conversation_id, view.sequence)


def active_alone(pending: PendingActive) -> ActiveConversation | None:
    """Return the active conversation as far as the file alone tells."""
    activation = pending.activation
    return None if activation is None else _active(pending, activation.conversation_id, activation.sequence)


def _active(pending: PendingActive, conversation_id: str, after: int) -> ActiveConversation:
    sequence, left_at = pending.left.get(conversation_id, (0, 0))
    return ActiveConversation(conversation_id=conversation_id, left_at=left_at if sequence > after else None)


def _activation(connection: sa.Connection, owner_id: str) -> Activation | None:
    row = fetch_one(connection, _LAST, (owner_id,))
    if row is None:
        return None
    name, order = row
    lane = find_lane(connection, name)
    ((sequence,),) = fetch_all(connection, _ACTIVATION, (name, ConversationActivated.type, _ORDER, order))
    if sequence is None or lane is None:
        return Activation(conversation_id=name, sequence=0, delivered=True)
    return Activation(conversation_id=name, sequence=sequence, delivered=sequence <= lane.delivered)
