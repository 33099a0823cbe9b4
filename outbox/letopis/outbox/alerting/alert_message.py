"""Write the alert that operators get about one incident, or about several conversations at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from letopis.outbox.alerting import texts
from letopis.outbox.alerting.channels import Alert
from letopis.outbox.alerting.incidents import IncidentKind, IncidentState
from letopis.outbox.alerting.notifications import NotificationKind, PendingNotification
from letopis.store.model.records import shown_lane

MAX_LISTED: Final = 5
"""Conversations that an alert about several names."""


def build_alert(
    pending: Sequence[PendingNotification], *, outbox: str, told: int, now: datetime, locale: str | None
) -> Alert:
    """Return the alert for one channel about incidents of one kind.

    :param outbox: the base name of the outbox file.
    :param told: conversations that are stuck and that this channel was notified of before.
    """
    first = pending[0].incident
    kind, recovered = first.kind, pending[0].kind is NotificationKind.RECOVERED
    since = min(one.incident.opened_at for one in pending)
    seconds = ((first.resolved_at or now) - since).total_seconds()
    events = sum(one.incident.events for one in pending)
    waiting = len(pending) if kind is IncidentKind.CONVERSATION_BLOCKED else first.conversations
    reasons = sorted({one.incident.reason for one in pending if one.incident.reason})
    new = sum(one.previous is None or not one.previous.reached for one in pending)
    title = texts.operator_title(
        kind,
        count=len(pending) if recovered else max(told + new, len(pending)),
        reason=first.reason,
        recovered=recovered,
        still=not recovered and all(one.incident.why == "repeat" for one in pending),
        locale=locale,
    )
    text = texts.operator_body(
        kind,
        outbox=outbox,
        since=since,
        seconds=max(0.0, seconds),
        reasons=reasons[:MAX_LISTED],
        events=events,
        waiting=waiting,
        recovered=recovered,
        locale=locale,
    )
    names = [shown_lane(one.conversation_id) for one in pending if one.conversation_id is not None]
    if names:
        text = f"{text}\n{texts.operator_list(names[:MAX_LISTED], len(names) - MAX_LISTED, locale)}"
    return Alert(
        key=f"{_key(pending)}/{pending[0].recipient}/{pending[0].kind}",
        title=title,
        text=text,
        recovered=recovered,
        facts={
            "kind": str(kind),
            "state": str(IncidentState.RESOLVED if recovered else IncidentState.FIRING),
            "why": None if recovered else first.why,
            "outbox": outbox,
            "since": since.isoformat(),
            "reasons": reasons,
            "events": events,
            "conversations": waiting,
            "incidents": [str(one.incident.incident_id) for one in pending],
        },
    )


def _key(pending: Sequence[PendingNotification]) -> str:
    parts = sorted(f"{one.incident.incident_id}/{one.number}" for one in pending)
    return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
