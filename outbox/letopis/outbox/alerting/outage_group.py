"""Announce an outage of a history store once for all outbox files of a daemon that deliver to it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple

from filelock import FileLock, Timeout

from letopis.outbox.alerting.incident_table import COUNT_PENDING
from letopis.outbox.alerting.incidents import fault_class
from letopis.outbox.alerting.notifications import NotificationKind, PendingNotification
from letopis.outbox.event_log.statements import query_all, query_one
from letopis.outbox.file.inspection import read_file
from letopis.store.errors import LetopisError
from letopis.store.model.events import to_microseconds

LOCK_TIMEOUT_SECONDS: Final = 5.0  # who claims for longer is taken for stopped: two messages are better than none

# Told of an earlier outage whose recovery is still to be announced: to the recipient this is the same one.
_OUTAGES: Final = (
    "SELECT i.reason, i.state = 'firing', iif(n.kind = 'stuck' AND n.escalations = i.escalations"
    " AND (n.told_at IS NOT NULL OR n.state = 'retrying'), n.number, 0), n.kind = 'stuck' AND n.told_at IS NOT NULL"
    " FROM letopis_outbox_incidents i LEFT JOIN letopis_outbox_notifications n"
    " ON n.incident_id = i.incident_id AND n.recipient = ? WHERE i.kind = 'store_down'"
    " AND (i.resolved_at IS NULL OR i.resolved_at >= ? OR (n.kind = 'stuck' AND n.told_at IS NOT NULL))"
)


class OutageDecision(Enum):
    """What becomes of one file's notification about an outage."""

    ANNOUNCE = "announce"
    ANNOUNCED = "announced"  # by another file, or it will
    WAIT = "wait"  # another file is trying to, or still down: decide at the next look


class Extent(NamedTuple):
    """What waits for a store in all files."""

    files: int
    events: int
    conversations: int


class _Outage(NamedTuple):
    """One file's incident, and the number of the last notification of it that was sent or is being sent; 0 if none."""

    reason: str | None
    firing: bool
    number: int
    told: bool


class OutageGroup:
    """The outbox files of one process that deliver to one store: one announces, the others store it without told_at."""

    def __init__(self) -> None:
        self.paths: set[Path] = set()
        self._claiming, self._decisive = asyncio.Lock(), Path()  # the file to read first

    @asynccontextmanager
    async def claiming(self) -> AsyncIterator[None]:
        """Exclude the group's other files, in all processes, from deciding and claiming."""
        async with self._claiming:
            lock = FileLock(f"{min(self.paths)}.alerts.lock", mode=0o600, thread_local=False)
            try:
                with suppress(Timeout, OSError):
                    await asyncio.to_thread(lock.acquire, timeout=LOCK_TIMEOUT_SECONDS)
                yield
            finally:
                lock.release()

    def decide(self, own: Path, due: PendingNotification) -> tuple[OutageDecision, Extent]:
        """Decide whether ``own`` announces an outage or its end to a recipient. Reads the other files: in a thread."""
        incident, recovered = due.incident, due.notification.kind is NotificationKind.RECOVERED
        wrong_store = fault_class(incident.reason) == "wrong_store"
        files, events, conversations = 1, incident.events, incident.conversations
        for path in sorted(self.paths - {own}, key=lambda path: (path != self._decisive, path)):
            try:
                outages, pending = read_file(path, lambda cursor: _read(cursor, due.recipient, incident.opened_at))
            except (LetopisError, sqlite3.Error, OSError):  # it decides nothing
                continue
            # A file alone may have the wrong store.
            outages = [outage for outage in outages if (fault_class(outage.reason) == "wrong_store") == wrong_store]
            decisive = [
                outage for outage in outages if (outage.firing or outage.told if recovered else _covers(outage, due))
            ]
            if decisive:
                self._decisive = path
                told = any(outage.told for outage in decisive)
                return (OutageDecision.ANNOUNCED if told else OutageDecision.WAIT), Extent(0, 0, 0)
            files += bool(outages or pending[0])
            events, conversations = events + pending[0], conversations + pending[1]
        self._decisive = own
        return OutageDecision.ANNOUNCE, Extent(files, events, conversations)


def _covers(outage: _Outage, due: PendingNotification) -> bool:
    """Return True if the notification of another file leaves this one nothing new to say."""
    told, wanted = fault_class(outage.reason), fault_class(due.incident.reason)
    return outage.number >= due.notification.number and wanted in (told, "unavailable")


def _read(cursor: Any, recipient: str, since: datetime) -> tuple[list[_Outage], tuple[int, int]]:
    rows = query_all(cursor, _OUTAGES, (recipient, to_microseconds(since)))
    return [_Outage(*row) for row in rows], query_one(cursor, COUNT_PENDING) or (0, 0)
