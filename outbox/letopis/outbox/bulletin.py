"""Write the alert that operators get about one incident, or about several conversations at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from letopis.outbox import texts
from letopis.outbox.alerts import Alert
from letopis.outbox.incidents import Kind, State
from letopis.outbox.notice_log import Errand
from letopis.outbox.notices import Word

LISTED: Final = 5
"""Conversations that an alert about several names."""


def alert_about(errands: Sequence[Errand], *, outbox: str, told: int, now: datetime, locale: str | None) -> Alert:
    """Return what one channel is told about errands of one kind and one word.

    :param outbox: the base name of the outbox file.
    :param told: conversations that are stuck and that this channel was told of before.
    """
    first = errands[0]
    case, kind, recovered = first.case, first.case.kind, first.word is Word.RECOVERED
    since = min(errand.case.opened_at for errand in errands)
    seconds = ((case.resolved_at or now) - since).total_seconds()
    events = sum(errand.case.events for errand in errands)
    waiting = len(errands) if kind is Kind.CONVERSATION_BLOCKED else case.conversations
    reasons = sorted({errand.case.reason for errand in errands if errand.case.reason})
    new = sum(errand.given is None or not errand.given.reached for errand in errands)
    title = texts.operator_title(
        kind,
        count=len(errands) if recovered else max(told + new, len(errands)),
        recovered=recovered,
        still=not recovered and all(errand.case.why == "repeat" for errand in errands),
        locale=locale,
    )
    text = texts.operator_body(
        kind,
        outbox=outbox,
        since=since,
        seconds=max(0.0, seconds),
        reason="; ".join(reasons[:LISTED]) or None,
        events=events,
        waiting=waiting,
        recovered=recovered,
        locale=locale,
    )
    names = [errand.conversation_id for errand in errands if errand.conversation_id is not None]
    if names:
        text = f"{text}\n{texts.operator_list(names[:LISTED], len(names) - LISTED, locale)}"
    return Alert(
        key=f"{_key(errands)}/{first.recipient}/{first.word}",
        title=title,
        text=text,
        recovered=recovered,
        facts={
            "kind": str(kind),
            "state": str(State.RESOLVED if recovered else State.FIRING),
            "why": None if recovered else case.why,
            "outbox": outbox,
            "since": since.isoformat(),
            "reasons": reasons,
            "events": events,
            "conversations": waiting,
            "incidents": [str(errand.case.incident_id) for errand in errands],
        },
    )


def _key(errands: Sequence[Errand]) -> str:
    parts = sorted(f"{errand.case.incident_id}/{errand.number}" for errand in errands)
    return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
