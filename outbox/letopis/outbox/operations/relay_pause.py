"""Pause the relay of an outbox file, in whichever process it runs; each function works in an open transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from letopis.outbox.event_log.statements import query_one
from letopis.store.model.events import from_microseconds

if TYPE_CHECKING:
    import sqlalchemy as sa

_READ: Final = "SELECT since, reason, paused_by FROM letopis_outbox_pause"
# The first moment stays: operators ask since when the relay is paused.
_PAUSE: Final = (
    "INSERT INTO letopis_outbox_pause (only, since, reason, paused_by) VALUES (1, ?, ?, ?)"
    " ON CONFLICT (only) DO UPDATE SET reason = excluded.reason, paused_by = excluded.paused_by"
)
_RESUME: Final = "DELETE FROM letopis_outbox_pause"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayPause:
    """Since when the relay is paused, and why and by whom, if that was given."""

    since: datetime
    reason: str | None
    paused_by: str | None


def pause_of(cursor: Any) -> RelayPause | None:
    """Return the pause of the relay of a DBAPI cursor's outbox file; ``None`` if it may deliver."""
    row = query_one(cursor, _READ)
    return None if row is None else RelayPause(since=from_microseconds(row[0]), reason=row[1], paused_by=row[2])


def set_pause(connection: sa.Connection, *, now_us: int, reason: str | None = None, by: str | None = None) -> None:
    """Pause the relay until :func:`clear_pause`; a second call only replaces the reason."""
    connection.exec_driver_sql(_PAUSE, (now_us, reason, by))


def clear_pause(connection: sa.Connection) -> bool:
    """Resume the relay; return True if it was paused."""
    return connection.exec_driver_sql(_RESUME).rowcount == 1
