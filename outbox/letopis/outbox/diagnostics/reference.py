"""Read what an outbox can be compared by, and what its history store holds of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.event_log.bound_store import UNBOUND, StoreBinding, read_binding
from letopis.outbox.file.inspection import OUTBOX_MIGRATIONS
from letopis.outbox.file.opening import open_read_only
from letopis.store.database.dialects import in_batches
from letopis.store.database.migrations import SchemaState, revision_state
from letopis.store.database.schema import lanes, origins

_LANES: Final = "SELECT conversation_id, head, delivered FROM letopis_outbox_lanes ORDER BY lane DESC LIMIT ?"
_EVENTS: Final = (
    "SELECT conversation_id, sequence, event_id, digest, occurred_at, redacted FROM letopis_outbox_log"
    " ORDER BY conversation_id, sequence"
)
_ORIGIN: Final = "SELECT origin_id, epoch FROM letopis_outbox_origin"
UNREADABLE: Final = (SQLAlchemyError, sqlite3.Error, ValueError, TypeError, OverflowError)
"""Errors of reading a damaged file: SQLite's, and those of values that are not what they should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLog:
    """What the history store can be compared with.

    :ivar lanes: head and delivered sequence by conversation.
    :ivar events: event id, digest, time and redaction by conversation and sequence; empty unless they were read.
    """

    origin_id: UUID
    epoch: int
    bound: StoreBinding = UNBOUND
    lanes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    events: Mapping[tuple[str, int], tuple[bytes, bytes, int, int]] = field(default_factory=dict)


def read_reference(path: Path, *, newest: int = -1, events: bool = True) -> ReferenceLog | None:
    """Return what an outbox file can be compared by; ``None`` if it cannot be read or was never opened by a bot.

    :param newest: read only this many conversations, those begun last; all of them by default.
    :param events: read the events too.
    """
    try:
        with open_read_only(path) as connection:
            if revision_state(connection, OUTBOX_MIGRATIONS).state is not SchemaState.CURRENT:
                return None
            origin = connection.exec_driver_sql(_ORIGIN).one_or_none()
            if origin is None:
                return None
            found = connection.exec_driver_sql(_EVENTS) if events else ()
            return ReferenceLog(
                origin_id=UUID(bytes=origin[0]),
                epoch=int(origin[1]),
                bound=read_binding(connection),
                lanes={row[0]: (row[1], row[2]) for row in connection.exec_driver_sql(_LANES, (newest,))},
                events={(row[0], row[1]): (row[2], row[3], row[4], row[5]) for row in found},
            )
    except UNREADABLE:
        return None


async def stored_epoch(connection: AsyncConnection, origin_id: UUID) -> int | None:
    """Return the epoch at which the store knows an outbox; ``None`` if it does not."""
    known = sa.select(origins.c.epoch).where(origins.c.origin_id == origin_id)
    return (await connection.execute(known)).scalar_one_or_none()


async def stored_heads(
    connection: AsyncConnection, origin_id: UUID, conversations: Iterable[str] | None = None
) -> dict[str, int]:
    """Return how far the store holds an outbox's conversations; those without an event are missing.

    :param conversations: only these.
    """
    known = sa.select(lanes.c.conversation_id, lanes.c.sequence).where(lanes.c.origin_id == origin_id)
    statements = [known]
    if conversations is not None:
        statements = [known.where(lanes.c.conversation_id.in_(part)) for part in in_batches(conversations)]
    found: dict[str, int] = {}
    for statement in statements:
        found.update({row[0]: row[1] for row in (await connection.execute(statement)).all()})
    return found
