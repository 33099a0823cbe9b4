"""Read back what an apply has written, so that a bare driver can write the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.store import ConversationStore
from letopis.store.database.schema import conversations, events, lanes, log_heads, messages

BATCH: Final = 500
"""Events in one transaction, as many as a relay delivers in one."""

Rows = list[tuple[Any, ...]]
TABLES: Final[tuple[sa.Table, ...]] = (conversations, messages, lanes, events)
"""In the order in which an apply writes them."""
REWRITTEN: Final = frozenset({conversations.name, lanes.name})
"""Of these a row may be there already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The rows of one transaction, by table, in the order of its columns; and the counter of the log after it."""

    rows: dict[str, Rows]
    head: int


async def rows_after(store: ConversationStore, position: int) -> list[Batch]:
    """Return what was written after a position of the log, in batches as they were written.

    Rows of conversations and lanes are as they are now, in each batch that touches them.
    """
    async with store.runtime.callers_engine.connect() as connection:

        async def read(statement: sa.Select[Any]) -> Rows:
            return [tuple(row) for row in (await connection.execute(statement)).all()]

        fresh = events.c.position > position
        written = await read(sa.select(events).where(fresh).order_by(events.c.position))
        places = sa.and_(
            messages.c.partition == events.c.partition,
            messages.c.conversation_id == events.c.conversation_id,
            messages.c.version == events.c.version,
        )
        said = await read(sa.select(messages).select_from(messages.join(events, places)).where(fresh))
        by_conversation = {row[1]: row for row in await read(sa.select(conversations))}
        by_lane = {row[1]: row for row in await read(sa.select(lanes))}
    name, version = _place(events, "conversation_id"), _place(events, "version")
    by_place = {(row[_place(messages, "conversation_id")], row[_place(messages, "version")]): row for row in said}
    batches = []
    for start in range(0, len(written), BATCH):
        part = written[start : start + BATCH]
        touched = list(dict.fromkeys(row[name] for row in part))
        batches.append(
            Batch(
                rows={
                    conversations.name: [by_conversation[one] for one in touched],
                    lanes.name: [by_lane[one] for one in touched],
                    messages.name: [
                        found for row in part if (found := by_place.get((row[name], row[version]))) is not None
                    ],
                    events.name: part,
                },
                head=part[-1][_place(events, "position")],
            )
        )
    return batches


def names_of(table: sa.Table) -> list[str]:
    """Return the columns of a table, in order."""
    return [column.name for column in table.columns]


def keys_of(table: sa.Table) -> list[str]:
    """Return the columns of its primary key."""
    return [column.name for column in table.primary_key.columns]


def values_of(table: sa.Table) -> list[str]:
    """Return the other ones."""
    return [column.name for column in table.columns if not column.primary_key]


def with_bytes(rows: Sequence[tuple[Any, ...]]) -> Rows:
    """Return rows with ids as the 16 bytes that SQLite and MariaDB hold."""
    return [tuple(value.bytes if isinstance(value, UUID) else value for value in row) for row in rows]


def _place(table: sa.Table, name: str) -> int:
    return names_of(table).index(name)


HEAD: Final = f"UPDATE {log_heads.name} SET position = {{place}} WHERE {{quote}}partition{{quote}} = 0"
