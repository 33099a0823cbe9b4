"""Check that owners' active conversations are those that the log says; read in pages and change nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.row_mapping import conflict_of
from letopis.store.database.schema import conversations, events, owners
from letopis.store.model.codec import decode
from letopis.store.model.event_types import ConversationActivated, ConversationArchived, ConversationDeleted
from letopis.store.rules.projection import ACTIVATION_ORDER_KEY

_PAGE_ROWS: Final = 500
_COLUMNS: Final = (
    events.c.partition,
    events.c.conversation_id,
    events.c.version,
    events.c.origin_id,
    events.c.metadata,
)
_ACTIVATED: Final = sa.select(*_COLUMNS).where(events.c.type == ConversationActivated.type)
_LEFT: Final = sa.select(*_COLUMNS).where(events.c.type.in_([ConversationArchived.type, ConversationDeleted.type]))


async def active_problems(connection: AsyncConnection) -> AsyncIterator[str]:
    """Yield the owners whose active conversation is not the one that was activated last.

    An owner's row names the activation. Only if its conversation was archived or deleted since, another one is active;
    which one is not checked.
    """
    place = (-1, "")
    while True:
        page = (
            await connection.execute(
                sa.select(owners)
                .where(sa.tuple_(owners.c.partition, owners.c.owner_id) > sa.tuple_(*map(sa.literal, place)))
                .order_by(owners.c.partition, owners.c.owner_id)
                .limit(_PAGE_ROWS)
            )
        ).all()
        for owner in await _not_activated(connection, page):
            if not await _was_left(connection, owner):
                yield f"the active conversation of owner {owner.owner_id!r} is not the one that was activated last"
        if len(page) < _PAGE_ROWS:
            return
        place = (page[-1].partition, page[-1].owner_id)


async def _not_activated(connection: AsyncConnection, page: Sequence[sa.Row[Any]]) -> list[sa.Row[Any]]:
    """Return the owners whose active conversation does not hold the activation that their rows name."""
    partitions, names = {row.active_partition for row in page}, {row.active_conversation_id for row in page}
    within = _ACTIVATED.where(events.c.partition.in_(partitions - {None}), events.c.conversation_id.in_(names - {None}))
    held = {(row.conversation_id, *_activation(row)) for row in await connection.execute(within)}
    return [
        row
        for row in page
        if (row.active_conversation_id, row.activated_by, row.activated_order) not in held
        and (row.active_conversation_id, row.activated_by) != (None, None)
    ]


async def _was_left(connection: AsyncConnection, owner: sa.Row[Any]) -> bool:
    """Return True if the conversation that was activated last was archived or deleted since."""
    own = sa.and_(
        conversations.c.partition == events.c.partition,
        conversations.c.conversation_id == events.c.conversation_id,
        conversations.c.owner_id == owner.owner_id,
    )
    activated = _ACTIVATED.join_from(conversations, events, own).where(events.c.origin_id == owner.activated_by)
    for event in (await connection.execute(activated)).all():
        if _activation(event) != (owner.activated_by, owner.activated_order):
            continue
        left = _LEFT.where(
            events.c.partition == event.partition,
            events.c.conversation_id == event.conversation_id,
            events.c.version > event.version,
        )
        if any(conflict_of(row.metadata) is None for row in await connection.execute(left)):
            return True
    return False


def _activation(event: Any) -> tuple[UUID, int | None]:
    """Return the outbox of an activation, and its order there."""
    try:
        order = decode(event.metadata).get(ACTIVATION_ORDER_KEY)
    except ValueError:
        order = None
    return event.origin_id, order if isinstance(order, int) else None
