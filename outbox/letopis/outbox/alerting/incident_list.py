"""List open and past incidents, with who was notified of each; reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from letopis.outbox.alerting.incident_table import INCIDENT_COLUMNS, WIDTH, incident_from_row
from letopis.outbox.alerting.incidents import IncidentRecord
from letopis.outbox.event_log.statements import fetch_all
from letopis.store.model.events import from_microseconds

MAX_RECIPIENTS: Final = 20
"""Recipients that are named of one incident; the others are counted."""

_LIST: Final = (
    f"SELECT {INCIDENT_COLUMNS} FROM letopis_outbox_incidents i"  # noqa: S608
    " WHERE i.resolved_at IS NULL ORDER BY i.kind = 'conversation_blocked', i.opened_at LIMIT ?"
)
_PAST: Final = (
    f"SELECT {INCIDENT_COLUMNS} FROM letopis_outbox_incidents i"  # noqa: S608
    " WHERE i.resolved_at IS NOT NULL ORDER BY i.resolved_at DESC LIMIT ?"
)
_RECIPIENTS: Final = (
    "SELECT recipient, word, state, reached, attempts, changed_at FROM letopis_outbox_notices"
    " WHERE incident_id = ? ORDER BY recipient LIMIT ?"
)
_COUNT: Final = "SELECT count(*) FROM letopis_outbox_notices WHERE incident_id = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """Who was notified of an incident.

    :ivar kind: ``channel`` for operators, ``user`` for an owner, ``conversation`` for one without an owner.
    :ivar name: of the channel, owner or conversation. The name of a channel is a digest of its address.
    :ivar about: ``stuck`` or ``recovered``: the last notification.
    :ivar state: ``telling``, ``waiting``, ``told`` or ``failed``.
    :ivar reached: whether they were notified of the incident, or may have been.
    """

    kind: str
    name: str
    about: str
    state: str
    reached: bool
    attempts: int
    changed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentReport:
    """An incident and who was notified of it.

    :ivar recipients: at most ``MAX_RECIPIENTS``.
    :ivar told: how many recipients there are in all.
    """

    incident: IncidentRecord
    recipients: tuple[Recipient, ...]
    told: int


def list_incidents(connection: sa.Connection, *, limit: int) -> list[IncidentReport]:
    """Return at most ``limit`` open incidents, the global ones first, and then past ones, the newest first."""
    rows = fetch_all(connection, _LIST, (limit,))
    if len(rows) < limit:
        rows += fetch_all(connection, _PAST, (limit - len(rows),))
    return [_report(connection, incident_from_row(row[:WIDTH])) for row in rows]


def _report(connection: sa.Connection, incident: IncidentRecord) -> IncidentReport:
    key = incident.incident_id.bytes
    recipients = tuple(
        _recipient(name, about, state, reached, attempts, changed_at)
        for name, about, state, reached, attempts, changed_at in fetch_all(
            connection, _RECIPIENTS, (key, MAX_RECIPIENTS)
        )
    )
    told = len(recipients)
    if told == MAX_RECIPIENTS:
        told = fetch_all(connection, _COUNT, (key,))[0][0]
    return IncidentReport(incident=incident, recipients=recipients, told=told)


def _recipient(name: str, about: str, state: str, reached: int, attempts: int, changed_at: int) -> Recipient:
    kind, _, rest = name.partition(":")
    if kind == "user":
        inner, _, rest = rest.partition(":")
        kind = "user" if inner == "owner" else "conversation"
    return Recipient(
        kind=kind,
        name=rest,
        about=about,
        state=state,
        reached=reached > 0,
        attempts=attempts,
        changed_at=from_microseconds(changed_at),
    )
