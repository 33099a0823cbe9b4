"""Rows: what a read of the tables gives, as the values that the rules work on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from letopis.store.codec import decode
from letopis.store.fold import SUPERSEDED, Tally
from letopis.store.projection import ConversationRow, MessageRow, reactions_from_text
from letopis.store.turns import Conflict
from letopis.store.vocabulary import ForkPoint


def conversation_row(row: sa.Row[Any]) -> ConversationRow:
    """Return a row of the conversations as an apply changes it."""
    values: Mapping[Any, Any] = row._mapping
    return ConversationRow(
        partition=values["partition"],
        conversation_id=values["conversation_id"],
        tally=Tally(
            owner_id=values["owner_id"],
            title=values["title"],
            state=values["state"],
            version=values["version"],
            message_count=values["message_count"],
            tokens=values["tokens"],
            created_at=values["created_at"],
            updated_at=values["updated_at"],
            metadata=decode(values["metadata"]),
            fork=fork_of(values),
            inherits=bool(values["inherits"]),
            inherited_to=values["inherited_to"],
        ),
        number=values["number"],
        retained=values["retained"],
        rules=values["rules"],
    )


def fork_of(values: Mapping[Any, Any]) -> ForkPoint | None:
    """Return where a row of the conversations reads its parent up to."""
    if values["forked_from_id"] is None:
        return None
    return ForkPoint(
        conversation_id=values["forked_from_id"],
        version=values["forked_from_version"],
        event_id=values["forked_from_event"],
    )


def message_row(row: sa.Row[Any]) -> MessageRow:
    """Return a row of the messages as an apply changes it."""
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
    )


def conflict_of(metadata: str | None) -> Conflict | None:
    """Return the verdict that an event's metadata holds; ``None`` where it stands."""
    return None if metadata is None or SUPERSEDED not in metadata else Conflict.of(decode(metadata))
