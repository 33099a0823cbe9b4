"""Sum up an outbox's state in one sentence, in the reader's language; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from letopis.console.i18n import Language
from letopis.outbox.alerting.incidents import IncidentKind, fault_class
from letopis.outbox.operations.status import Status
from letopis.store.database.faults import FaultClass

Level = Literal["good", "waiting", "bad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The most important fact.

    :ivar level: ``good``, ``waiting`` (resolves without help) or ``bad`` (needs an operator).
    :ivar page: the page with details; ``None`` if there are none.
    """

    level: Level
    title: str
    text: str
    page: str | None = None


def verdict(status: Status, language: Language) -> Verdict:
    """Return the verdict, in the order of :attr:`Status.verdict`."""
    _, ngettext = language.gettext, language.ngettext
    blocked, relay, breaker = status.lanes.get("blocked", 0), status.relay, status.breaker
    pending = (
        ngettext(
            "%(count)s event is pending, nothing is lost.",
            "%(count)s events are pending, nothing is lost.",
            status.pending,
        )
        % {"count": language.number(status.pending)}
        if status.pending
        else _("Nothing is pending.")
    )
    if status.lost:
        title = ngettext(
            "%(count)s conversation has lost events", "%(count)s conversations have lost events", status.lost
        ) % {"count": language.number(status.lost)}
        text = _("Neither the history store nor this outbox holds them.")
        return Verdict(level="bad", title=title, text=text, page="stuck")
    if any(case.kind is IncidentKind.HISTORY_INCOMPLETE for case in status.incidents):
        text = _("It counts events that it does not hold: restore it from a backup.")
        return Verdict(level="bad", title=_("The history store has lost events"), text=text, page="integrity")
    if status.missing_erasures:
        text = _("It was restored from before them: `letopis history erase --repeat` after a look at the holds.")
        title = _("The history store has forgotten erasures")
        return Verdict(level="bad", title=title, text=text, page="integrity")
    if blocked:
        title = ngettext("%(count)s conversation is blocked", "%(count)s conversations are blocked", blocked) % {
            "count": language.number(blocked)
        }
        return Verdict(level="bad", title=title, text=_("Nothing is lost. An operator has to decide."), page="stuck")
    if breaker.state != "closed":
        return _outage(status, language, pending)
    if relay.paused_since is not None and status.pending:
        return Verdict(level="waiting", title=_("Delivery is paused"), text=pending)
    if status.pending and not relay.running:
        return Verdict(level="bad", title=_("No relay is running"), text=pending)
    overdue = sum(case.kind is IncidentKind.CONVERSATION_BLOCKED for case in status.incidents)
    if overdue and status.pending:
        title = ngettext(
            "%(count)s conversation has waited too long", "%(count)s conversations have waited too long", overdue
        ) % {"count": language.number(overdue)}
        return Verdict(level="waiting", title=title, text=pending, page="stuck")
    if status.late:
        text = _("The oldest event has waited for %(time)s, and the relay made no progress.") % {
            "time": language.duration(status.oldest_pending_seconds)
        }
        return Verdict(level="waiting", title=_("Deliveries are late"), text=f"{pending} {text}", page="stuck")
    if status.incidents:
        text = _("An open incident closes after a quiet minute.")
        return Verdict(level="waiting", title=_("Delivery works again"), text=f"{pending} {text}", page="stuck")
    if status.pending:
        return Verdict(level="good", title=_("Events are being delivered"), text=pending)
    if not status.healthy:
        text = _("Something keeps its write-ahead log from shrinking: run `letopis doctor`.")
        return Verdict(level="waiting", title=_("The outbox file grows"), text=text)
    return Verdict(level="good", title=_("Everything is in the history store"), text=_("Nothing is pending."))


def _outage(status: Status, language: Language, pending: str) -> Verdict:
    _, breaker = language.gettext, status.breaker
    reason = breaker.reason or ""
    detail = language.reason(f"{breaker.detail} [{reason}]" if breaker.detail else reason)
    if reason.startswith(FaultClass.WRONG_STORE):
        title = _("The relay is pointed at another history store")
    elif fault_class(reason) == FaultClass.POISON:
        title = _("The history store answers, and refuses every delivery")
    elif reason.startswith(FaultClass.MISCONFIGURED):
        title = _("The history store takes no deliveries")
    else:
        title = _("The history store is unreachable")
        return Verdict(level="waiting", title=title, text=" ".join((_sentence(detail), pending)))
    return Verdict(level="bad", title=title, text=" ".join((_sentence(detail), pending)))


def _sentence(text: str) -> str:
    text = text.strip()
    if not text:
        return ""
    return f"{text[0].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
