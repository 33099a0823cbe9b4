"""List open and past incidents, with who was notified of each; reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from letopis.outbox.alerting.incident_table import JOIN_LANE, SELECT_INCIDENT, incident_from_row
from letopis.outbox.alerting.incidents import IncidentRecord
from letopis.outbox.event_log.statements import fetch_all
from letopis.store.model.events import from_microseconds

MAX_RECIPIENTS: Final = 20
"""Recipients that are named of one incident; the others are counted."""

_LIST: Final = (
    f"{SELECT_INCIDENT} FROM letopis_outbox_incidents i{JOIN_LANE}"
    " ORDER BY i.resolved_at IS NOT NULL, i.resolved_at DESC, i.kind = 'conversation_blocked', i.opened_at LIMIT ?"
)
_RECIPIENTS: Final = (
    "SELECT recipient, kind, state, changed_at, count(*) OVER () FROM letopis_outbox_notifications"
    " WHERE incident_id = ? ORDER BY recipient LIMIT ?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """Who was notified of an incident.

    :ivar kind: ``channel`` for operators, ``user`` for an owner, ``conversation`` for one without an owner.
    :ivar name: of the channel, owner or conversation. The name of a channel is a digest of its address.
    :ivar about: ``stuck`` or ``recovered``: the last notification.
    :ivar state: ``sending``, ``retrying``, ``sent`` or ``failed``.
    """

    kind: str
    name: str
    about: str
    state: str
    changed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentReport:
    """An incident and who was notified of it.

    :ivar recipients: at most ``MAX_RECIPIENTS``.
    :ivar recipient_count: how many there are in all.
    """

    incident: IncidentRecord
    recipients: tuple[Recipient, ...]
    recipient_count: int


def list_incidents(connection: sa.Connection, *, limit: int) -> list[IncidentReport]:
    """Return at most ``limit`` open incidents, the global ones first, and then past ones, the newest first."""
    return [_report(connection, incident_from_row(row)) for row in fetch_all(connection, _LIST, (limit,))]


def _report(connection: sa.Connection, incident: IncidentRecord) -> IncidentReport:
    rows = fetch_all(connection, _RECIPIENTS, (incident.incident_id.bytes, MAX_RECIPIENTS))
    return IncidentReport(
        incident=incident,
        recipients=tuple(_recipient(*row[:4]) for row in rows),
        recipient_count=rows[0][4] if rows else 0,
    )


def _recipient(recipient: str, about: str, state: str, changed_at: int) -> Recipient:
    kind, _, name = recipient.partition(":")
    if kind == "user":
        inner, _, name = name.partition(":")
        kind = "user" if inner == "owner" else "conversation"
    return Recipient(kind=kind, name=name, about=about, state=state, changed_at=from_microseconds(changed_at))
