"""Keep a log of what operators did to an outbox; each function works in an open transaction."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.event_log.statements import fetch_all
from letopis.store.model.events import from_microseconds

MAX_ENTRIES: Final = 10_000
"""Entries that are kept, so that the log cannot fill the file."""
MAX_TEXT: Final = 2_000
DONE: Final = "done"
"""The outcome of an action that took effect; any other outcome is why it was refused."""

Via = Literal["console", "command", "python"]
"""By what an operator acted."""

_INSERT: Final = (
    "INSERT INTO letopis_outbox_audit"
    " (occurred_at, action, outcome, conversation_id, event_id, conversations, reason, actor, via)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_PRUNE: Final = (
    "DELETE FROM letopis_outbox_audit WHERE entry_id <= (SELECT max(entry_id) FROM letopis_outbox_audit) - ?"
)
_LIST: Final = (
    "SELECT entry_id, occurred_at, action, outcome, conversation_id, event_id, conversations, reason, actor, via"
    " FROM letopis_outbox_audit WHERE entry_id < ? ORDER BY entry_id DESC LIMIT ?"
)
_NEWEST: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One action of an operator.

    :ivar entry_id: rises with each entry.
    :ivar action: ``retry``, ``fix``, ``skip``, ``skip_missing``, ``restore``, ``pause``, ``resume``, ``rebind``,
        ``pause_relay``, ``resume_relay``, ``verify`` or ``export``.
    :ivar outcome: ``done``, or why it was refused.
    :ivar conversations: how many it was about.
    :ivar reason: as the operator gave it.
    :ivar actor: who, if known.
    :ivar via: ``console``, ``command`` or ``python``.
    """

    entry_id: int
    occurred_at: datetime
    action: str
    outcome: str
    conversation_id: str | None
    event_id: UUID | None
    conversations: int
    reason: str | None
    actor: str | None
    via: str


def record_action(
    connection: sa.Connection,
    action: str,
    *,
    now_us: int,
    via: Via,
    actor: str | None = None,
    outcome: str = DONE,
    conversation_id: str | None = None,
    event_id: UUID | None = None,
    conversations: int = 0,
    reason: str | None = None,
) -> None:
    """Record an action in the transaction that carries it out, and drop the oldest entries beyond the limit."""
    connection.exec_driver_sql(
        _INSERT,
        (
            now_us,
            action,
            outcome[:MAX_TEXT],
            conversation_id,
            None if event_id is None else event_id.bytes,
            conversations,
            None if reason is None else reason[:MAX_TEXT],
            None if actor is None else actor[:MAX_TEXT],
            via,
        ),
    )
    connection.exec_driver_sql(_PRUNE, (MAX_ENTRIES,))


def list_actions(connection: sa.Connection, *, limit: int, before: int | None = None) -> list[AuditEntry]:
    """Return at most ``limit`` entries, the newest first."""
    rows = fetch_all(connection, _LIST, (_NEWEST if before is None else before, limit))
    return [_entry(row) for row in rows]


def _entry(row: Any) -> AuditEntry:
    values = dict(zip((column.name for column in fields(AuditEntry)), row, strict=True))
    event_id = values["event_id"]
    values |= {
        "occurred_at": from_microseconds(values["occurred_at"]),
        "event_id": None if event_id is None else UUID(bytes=event_id),
    }
    return AuditEntry(**values)
