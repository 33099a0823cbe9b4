"""Check that the large content of messages is there for exactly the events that show it; change nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.schema import events, records
from letopis.store.model.large_content import CONTENT_TYPES, LIKE_REFERENCE, references_in
from letopis.store.model.records import CONTENT_SCOPES

IS_CONTENT: Final = records.c.scope.startswith(CONTENT_SCOPES, autoescape=True)
_SCOPES: Final = sa.select(records.c.partition, records.c.scope).distinct().where(IS_CONTENT)
_SHOW: Final = (
    events.c.salt.is_not(None),
    events.c.type.in_(CONTENT_TYPES),
    events.c.data.contains(LIKE_REFERENCE),
)
_CONVERSATIONS: Final = sa.select(events.c.partition, events.c.conversation_id).distinct().where(*_SHOW)


async def content_problems(connection: AsyncConnection) -> AsyncIterator[str]:
    """Yield the conversations with large content that no event shows, or with events whose content is missing."""
    keys = {(row.partition, row.conversation_id) for row in await connection.execute(_CONVERSATIONS)}
    for row in await connection.execute(_SCOPES):
        keys.add((row.partition, row.scope.removeprefix(CONTENT_SCOPES)))
    for partition, conversation_id in sorted(keys):
        shown = await _shown(connection, partition, conversation_id)
        own = (records.c.partition == partition, records.c.scope == CONTENT_SCOPES + conversation_id)
        rows = await connection.execute(sa.select(records.c.record_key).where(*own))
        held = {bytes(row.record_key).decode() for row in rows}
        if orphans := held - shown:
            yield f"conversation {conversation_id!r}: {len(orphans)} pieces of large content belong to no event"
        if missing := shown - held:
            yield f"conversation {conversation_id!r}: {len(missing)} pieces of large content are missing"


async def _shown(connection: AsyncConnection, partition: int, conversation_id: str) -> set[str]:
    own = (events.c.partition == partition, events.c.conversation_id == conversation_id)
    names = set[str]()
    rows: Any = await connection.stream(sa.select(events.c.type, events.c.data).where(*own, *_SHOW))
    async for row in rows:
        names |= references_in(row.type, row.data)
    return names
