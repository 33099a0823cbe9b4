"""Sum up an outbox's state in one sentence, in the reader's language; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from letopis.console.i18n import Language
from letopis.outbox.alerting.incidents import IncidentKind
from letopis.outbox.operations.status import Status

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
    """Return what :meth:`Status.judge` finds, in the reader's language."""
    _, ngettext, number = language.gettext, language.ngettext, language.number
    pending = _("Nothing is pending.")
    if (count := status.pending) > 0:
        pending = ngettext(
            "%(count)s event is pending, nothing is lost.", "%(count)s events are pending, nothing is lost.", count
        ) % {"count": number(count)}
    match condition := status.judge()[0]:
        case "lost":
            title = ngettext(
                "%(count)s conversation has lost events", "%(count)s conversations have lost events", status.lost
            ) % {"count": number(status.lost)}
            text = _("Neither the history store nor this outbox holds them.")
            return Verdict(level="bad", title=title, text=text, page="stuck")
        case "incomplete":
            text = _("It counts events that it does not hold: restore it from a backup.")
            return Verdict(level="bad", title=_("The history store has lost events"), text=text, page="integrity")
        case "erasures missing":
            text = _("It was restored from before them: `letopis history erase --repeat` after a look at the holds.")
            title = _("The history store has forgotten erasures")
            return Verdict(level="bad", title=title, text=text, page="integrity")
        case "blocked":
            count, text = status.lanes["blocked"], _("Nothing is lost. An operator has to decide.")
            title = ngettext("%(count)s conversation is blocked", "%(count)s conversations are blocked", count)
            return Verdict(level="bad", title=title % {"count": number(count)}, text=text, page="stuck")
        case "wrong store" | "refusing" | "misconfigured" | "unreachable":
            title = {
                "wrong store": _("The relay is pointed at another history store"),
                "refusing": _("The history store answers, and refuses every delivery"),
                "misconfigured": _("The history store takes no deliveries"),
                "unreachable": _("The history store is unreachable"),
            }[condition]
            reason, detail = status.breaker.reason or "", status.breaker.detail
            text = _sentence(language.reason(f"{detail} [{reason}]" if detail else reason))
            level: Level = "waiting" if condition == "unreachable" else "bad"
            return Verdict(level=level, title=title, text=f"{text} {pending}")
        case "relay paused":
            return Verdict(level="waiting", title=_("Delivery is paused"), text=pending)
        case "no relay":
            return Verdict(level="bad", title=_("No relay is running"), text=pending)
        case "overdue":
            count = sum(case.kind is IncidentKind.CONVERSATION_BLOCKED for case in status.incidents)
            title = ngettext(
                "%(count)s conversation has waited too long", "%(count)s conversations have waited too long", count
            ) % {"count": number(count)}
            return Verdict(level="waiting", title=title, text=pending, page="stuck")
        case "retrying":
            count = status.lanes["retrying"]
            title = ngettext(
                "%(count)s conversation is being retried.", "%(count)s conversations are being retried.", count
            ) % {"count": number(count)}
            return Verdict(level="waiting", title=title.rstrip("."), text=pending, page="stuck")
        case "paused":
            count = status.lanes["paused"]
            title = ngettext("%(count)s conversation is paused.", "%(count)s conversations are paused.", count)
            title = title.rstrip(".") % {"count": number(count)}
            return Verdict(level="waiting", title=title, text=pending, page="stuck")
        case "late":
            text = _("The oldest event has waited for %(time)s, and the relay made no progress.") % {
                "time": language.duration(status.oldest_pending_seconds)
            }
            return Verdict(level="waiting", title=_("Deliveries are late"), text=f"{pending} {text}", page="stuck")
        case "recovered":
            text = _("An open incident closes after a quiet minute.")
            return Verdict(level="waiting", title=_("Delivery works again"), text=f"{pending} {text}", page="stuck")
        case "large wal":
            text = _("Something keeps its write-ahead log from shrinking: run `letopis doctor`.")
            return Verdict(level="waiting", title=_("The outbox file grows"), text=text)
        case "delivering":
            return Verdict(level="good", title=_("Events are being delivered"), text=pending)
        case "idle":
            return Verdict(level="good", title=_("Everything is in the history store"), text=pending)


def _sentence(text: str) -> str:
    text = text.strip()
    if not text:
        return ""
    return f"{text[0].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
