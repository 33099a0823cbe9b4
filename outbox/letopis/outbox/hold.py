"""Hold: keep the whole relay of an outbox file from delivering, whichever process it runs in, until it is let go."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from letopis.store.events import from_microseconds

_READ: Final = "SELECT since, reason, held_by FROM letopis_outbox_hold"
# The first word stays: since when it is held is what people ask.
_HOLD: Final = (
    "INSERT INTO letopis_outbox_hold (only, since, reason, held_by) VALUES (1, ?, ?, ?)"
    " ON CONFLICT (only) DO UPDATE SET reason = excluded.reason, held_by = excluded.held_by"
)
_RELEASE: Final = "DELETE FROM letopis_outbox_hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """That the relay is held back, since when, and why and by whom as far as was said."""

    since: datetime
    reason: str | None
    held_by: str | None


def held(connection: sa.Connection) -> Hold | None:
    """Return the hold on the relay; ``None`` where it may deliver. Reads only."""
    row = connection.exec_driver_sql(_READ).one_or_none()
    return None if row is None else Hold(since=from_microseconds(row[0]), reason=row[1], held_by=row[2])


def hold(connection: sa.Connection, *, now_us: int, reason: str | None = None, by: str | None = None) -> None:
    """Hold the relay back, in an open write transaction; again gives another reason.

    A batch under way is finished. Appends go on, the relay's process and its lease too; nothing of what then waits is
    told as stuck. Restarts change nothing about it: only :func:`release` does.
    """
    connection.exec_driver_sql(_HOLD, (now_us, reason, by))


def release(connection: sa.Connection) -> bool:
    """Let the relay go on, in an open write transaction; whether it was held back."""
    return connection.exec_driver_sql(_RELEASE).rowcount == 1
