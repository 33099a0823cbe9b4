"""Write the alert that operators get, of counts, durations, names and fault classes: no payload, address or secret."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from letopis.outbox.alerting.channels import Alert
from letopis.outbox.alerting.incidents import IncidentKind, IncidentRecord, fault_class
from letopis.outbox.alerting.language import catalogue, duration, moment, reason_in
from letopis.outbox.alerting.notifications import NotificationKind, PendingNotification
from letopis.outbox.alerting.outage_group import Extent
from letopis.store.model.records import shown_lane

MAX_LISTED: Final = 5  # conversations that an alert about several names
MAX_NAME_LENGTH: Final = 80
JUST_NOW_SECONDS: Final = 5.0
LOSSES: Final = frozenset({"lost", "incomplete", "damaged"})  # faults in which something may be lost


def build_alert(
    pending: Sequence[PendingNotification],
    *,
    outbox: str,
    now: datetime,
    locale: str | None,
    extent: Extent | None = None,
) -> Alert:
    """Return the alert for one channel about incidents of one kind; ``extent`` is that of several files."""
    gettext = catalogue(locale).gettext
    incidents = [due.incident for due in pending]
    first, recovered = incidents[0], pending[0].notification.kind is NotificationKind.RECOVERED
    blocked = first.kind is IncidentKind.CONVERSATION_BLOCKED
    reminder = all(due.notification.reminder for due in pending)
    since = min(incident.opened_at for incident in incidents)
    files, events, waiting = extent or (1, first.events, first.conversations)
    if blocked:
        events, waiting = sum(incident.events for incident in incidents), len(pending)
    reasons = sorted({incident.reason for incident in incidents if incident.reason})
    title = _title(first, len(pending) if recovered else first.conversations, recovered=recovered, locale=locale)
    if reminder:
        title = gettext("still: %(title)s") % {"title": title}
    lines = [
        (gettext("Outbox: %(outbox)s") if files == 1 else gettext("Outboxes: %(files)d, among them %(outbox)s"))
        % {"outbox": outbox, "files": files},
        _lasting(since, first.resolved_at or now, reasons[:MAX_LISTED], recovered=recovered, locale=locale),
    ]
    if events:
        counts = {"messages": messages(events, locale), "conversations": in_conversations(waiting, locale)}
        lost = first.kind is IncidentKind.HISTORY_INCOMPLETE or any(fault_class(text) in LOSSES for text in reasons)
        line = gettext("Pending: %(messages)s %(conversations)s.") % counts
        lines.append(line if lost else " ".join((line, gettext("Nothing is lost."))))
    elif recovered:
        lines.append(gettext("Everything is delivered."))
    if not recovered:
        lines.append(_advice(first.kind, reasons[0] if reasons else None, locale))
    names = [shown_lane(incident.conversation_id) for incident in incidents if incident.conversation_id is not None]
    lines += [f"- {shown(name)}" for name in names[:MAX_LISTED]]
    if len(names) > MAX_LISTED:
        lines.append(gettext("- and %(count)d more") % {"count": len(names) - MAX_LISTED})
    told = [(due.incident.incident_id, due.notification) for due in pending]
    parts = sorted(f"{incident}/{notification.escalations}.{notification.number}" for incident, notification in told)
    key = parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    return Alert(
        key=f"{key}/{pending[0].recipient}/{pending[0].notification.kind}",
        title=f"Letopis: {title}",
        text="\n".join(lines),
        recovered=recovered,
        facts={
            "kind": str(first.kind),
            "state": str(first.state),
            "reminder": reminder,
            "outbox": outbox,
            "files": files,
            "since": since.isoformat(),
            "reasons": reasons,
            "events": events,
            "conversations": waiting,
            "incidents": [str(incident.incident_id) for incident in incidents],
        },
    )


def trial_alert(outbox: str, locale: str | None) -> tuple[str, str]:
    """Return the title and the text of ``letopis alerts test``."""
    gettext = catalogue(locale).gettext
    title, text = gettext("test alert"), gettext("Alerts of the outbox %(outbox)s arrive here. Nothing is wrong.")
    return f"Letopis: {title}", text % {"outbox": outbox}


def messages(count: int, locale: str | None = None) -> str:
    """Return ``1 message``, ``1 сообщение``, ``5 сообщений``."""
    return catalogue(locale).ngettext("%(count)d message", "%(count)d messages", count) % {"count": count}


def in_conversations(count: int, locale: str | None = None) -> str:
    """Return ``in 1 conversation``, ``в 2 разговорах``."""
    ngettext = catalogue(locale).ngettext
    return ngettext("in %(count)d conversation", "in %(count)d conversations", count) % {"count": count}


def shown(name: str) -> str:
    """Return an id for a line of text: quoted, unprintable characters escaped, truncated at 80."""
    return repr(name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…")


def _title(incident: IncidentRecord, count: int, *, recovered: bool, locale: str | None) -> str:
    translations = catalogue(locale)
    gettext, ngettext = translations.gettext, translations.ngettext
    titles = {
        "store_down": (gettext("The history store is down"), gettext("The history store is back")),
        # It answers and takes no deliveries, so it is not down.
        "store_refuses": (
            gettext("The history store refuses messages"),
            gettext("The history store takes messages again"),
        ),
        "history_incomplete": (gettext("The history has lost events"), gettext("The history is complete again")),
        "erasures_missing": (
            gettext("The history store has forgotten erasures"),
            gettext("The history store knows all erasures again"),
        ),
        "relay_silent": (gettext("The relay is silent"), gettext("The relay delivers again")),
        "conversation_blocked": (
            ngettext("%(count)d conversation is stuck", "%(count)d conversations are stuck", count),
            ngettext("%(count)d conversation is saved again", "%(count)d conversations are saved again", count),
        ),
    }
    refuses = incident.kind is IncidentKind.STORE_DOWN and fault_class(incident.reason) == "poison"
    return titles["store_refuses" if refuses else incident.kind][recovered] % {"count": count}


def _lasting(since: datetime, until: datetime, reasons: list[str], *, recovered: bool, locale: str | None) -> str:
    gettext = catalogue(locale).gettext
    seconds = max(0.0, (until - since).total_seconds())
    values = {"duration": duration(seconds, locale), "instant": moment(since, now=max(since, until), locale=locale)}
    if recovered:
        return gettext("It lasted %(duration)s.") % values
    just_now = seconds < JUST_NOW_SECONDS
    line = gettext("Just now, at %(instant)s.") if just_now else gettext("Since %(instant)s, for %(duration)s.")
    listed = "; ".join(dict.fromkeys(reason_in(reason, locale) for reason in reasons))
    return "\n".join((line % values, *([gettext("Reason: %(reason)s") % {"reason": listed}] if listed else [])))


def _advice(kind: IncidentKind, reason: str | None, locale: str | None) -> str:
    gettext = catalogue(locale).gettext
    if kind is IncidentKind.RELAY_SILENT:
        return gettext("Start `letopis relay`, or check the process that should run it; see `letopis status`.")
    if kind is IncidentKind.HISTORY_INCOMPLETE:
        return gettext("This will not resolve by itself: run `letopis db verify`, and restore the store from a backup.")
    if kind is IncidentKind.ERASURES_MISSING:
        return gettext("Set holds that it lost again, then run `letopis history erase --repeat`.")
    if kind is IncidentKind.CONVERSATION_BLOCKED:
        return gettext("See `letopis outbox list`, then `retry`, `fix` or `skip`.")
    if fault_class(reason) != "unavailable":
        return gettext("This will not resolve by itself: run `letopis doctor`.")
    return gettext("The relay keeps retrying by itself; see `letopis status`.")
