"""Write the texts about incidents for users and operators, in their language.

The English texts are the keys of the catalogues in ``locales/``; a language without a catalogue gets English. Texts are
made of counts, durations, names and fault classes only, never of a payload, an address or a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Literal

from letopis.outbox.alerting.catalogue import catalogue, language_of
from letopis.outbox.alerting.incidents import fault_class
from letopis.outbox.alerting.reasons import reason_in
from letopis.outbox.alerting.times import duration, moment

Style = Literal["plain", "seed"]
"""``plain`` says that the reply is kept and still being saved. ``seed`` says that saving failed, and to try later: the
sentence that users of older bots know."""

STYLES: Final[tuple[Style, ...]] = ("plain", "seed")
MAX_NAME_LENGTH: Final = 80
JUST_NOW_SECONDS: Final = 5.0
LOSSES: Final = frozenset({"lost", "incomplete", "damaged"})
"""Classes of faults in which something may be lost."""


def messages(count: int, locale: str | None = None) -> str:
    """Return ``1 message``, ``1 сообщение``, ``5 сообщений``."""
    ngettext = catalogue(language_of(locale)).ngettext
    return ngettext("%(count)d message", "%(count)d messages", count) % {"count": count}


def in_conversations(count: int, locale: str | None = None) -> str:
    """Return ``in 1 conversation``, ``в 2 разговорах``."""
    ngettext = catalogue(language_of(locale)).ngettext
    return ngettext("in %(count)d conversation", "in %(count)d conversations", count) % {"count": count}


def shown(name: str) -> str:
    """Return an id for a line of text: quoted, unprintable characters escaped, truncated at 80."""
    return repr(name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…")


def user_stuck(*, needs_operator: bool, promise: bool = True, style: Style = "plain", locale: str | None = None) -> str:
    """Return what to tell a user whose messages are not in the history yet.

    :param needs_operator: it will not resolve without an operator.
    :param promise: the bot will notify them once it is saved.
    """
    gettext = catalogue(language_of(locale)).gettext
    if style == "seed":
        return gettext("⚠️ The reply could not be saved in the multichat history. Please try again later.")
    if needs_operator:
        first = gettext(
            "⚠️ The reply has not reached the chat history. It is kept, but an operator has to look into it."
        )
    else:
        first = gettext("⚠️ The reply has not reached the chat history yet. It is kept, and I keep trying.")
    second = gettext("I will tell you once it is saved.")
    return f"{first} {second}" if promise else first


def user_recovered(*, skipped: bool = False, locale: str | None = None) -> str:
    """Return what to tell a user who was notified before.

    :param skipped: an operator left the message out of the history.
    """
    gettext = catalogue(language_of(locale)).gettext
    if skipped:
        return gettext("⚠️ The reply could not be saved: the chat history has a mark in its place.")
    return gettext("✅ The reply is saved in the chat history.")


def operator_title(
    kind: str,
    *,
    count: int = 1,
    reason: str | None = None,
    recovered: bool = False,
    still: bool = False,
    locale: str | None,
) -> str:
    """Return the first line of an operator's alert.

    :param kind: ``store_down``, ``conversation_blocked``, ``relay_silent``, ``history_incomplete``.
    :param count: the conversations that it is about.
    :param reason: why a store takes no deliveries: one that answers and refuses is not down.
    """
    found = catalogue(language_of(locale))
    gettext, ngettext = found.gettext, found.ngettext
    titles = {
        "store_down": (gettext("The history store is down"), gettext("The history store is back")),
        "store_refuses": (
            gettext("The history store refuses messages"),
            gettext("The history store takes messages again"),
        ),
        "history_incomplete": (gettext("The history has lost events"), gettext("The history is complete again")),
        "relay_silent": (gettext("The relay is silent"), gettext("The relay delivers again")),
        "conversation_blocked": (
            ngettext("%(count)d conversation is stuck", "%(count)d conversations are stuck", count),
            ngettext("%(count)d conversation is saved again", "%(count)d conversations are saved again", count),
        ),
    }
    refuses = kind == "store_down" and fault_class(reason) == "poison"
    title = titles["store_refuses" if refuses else kind][recovered] % {"count": count}
    if still:
        title = gettext("still: %(title)s") % {"title": title}
    return f"Letopis: {title}"


def operator_body(
    kind: str,
    *,
    outbox: str,
    since: datetime,
    seconds: float,
    reasons: Sequence[str],
    events: int,
    waiting: int,
    recovered: bool = False,
    locale: str | None,
) -> str:
    """Return the text of an operator's alert: what, since when, how much is pending, and what to do.

    :param outbox: the base name of the outbox file.
    :param seconds: how long it has lasted.
    :param reasons: sentences of ours with fault class and code.
    :param events: pending messages.
    :param waiting: conversations with pending messages.
    """
    gettext = catalogue(language_of(locale)).gettext
    lines = [gettext("Outbox: %(outbox)s") % {"outbox": outbox}]
    if recovered:
        lines.append(gettext("It lasted %(duration)s.") % {"duration": duration(seconds, locale)})
    else:
        lines.append(_since(since, seconds, locale))
        if reasons:
            listed = "; ".join(dict.fromkeys(reason_in(one, locale) for one in reasons))
            lines.append(gettext("Reason: %(reason)s") % {"reason": listed})
    if events:
        pending = gettext("Pending: %(messages)s %(conversations)s.") % {
            "messages": messages(events, locale),
            "conversations": in_conversations(waiting, locale),
        }
        lost = kind == "history_incomplete" or any(fault_class(one) in LOSSES for one in reasons)
        lines.append(pending if lost else " ".join((pending, gettext("Nothing is lost."))))
    elif recovered:
        lines.append(gettext("Everything is delivered."))
    if not recovered:
        lines.append(_advice(kind, reasons[0] if reasons else None, locale))
    return "\n".join(lines)


def _since(since: datetime, seconds: float, locale: str | None) -> str:
    gettext = catalogue(language_of(locale)).gettext
    instant = moment(since, now=since + timedelta(seconds=seconds), locale=locale)
    if seconds < JUST_NOW_SECONDS:
        return gettext("Just now, at %(instant)s.") % {"instant": instant}
    return gettext("Since %(instant)s, for %(duration)s.") % {
        "instant": instant,
        "duration": duration(seconds, locale),
    }


def operator_list(names: list[str], more: int, locale: str | None) -> str:
    """Return the conversations that an alert is about, one per line."""
    gettext = catalogue(language_of(locale)).gettext
    lines = [f"- {shown(name)}" for name in names]
    if more > 0:
        lines.append(gettext("- and %(count)d more") % {"count": more})
    return "\n".join(lines)


def trial_alert(outbox: str, locale: str | None) -> tuple[str, str]:
    """Return the title and the text of ``letopis alerts test``."""
    gettext = catalogue(language_of(locale)).gettext
    title = gettext("test alert")
    return f"Letopis: {title}", gettext("Alerts of the outbox %(outbox)s arrive here. Nothing is wrong.") % {
        "outbox": outbox
    }


def _advice(kind: str, reason: str | None, locale: str | None) -> str:
    gettext = catalogue(language_of(locale)).gettext
    if kind == "relay_silent":
        return gettext("Start `letopis relay`, or check the process that should run it; see `letopis status`.")
    if kind == "history_incomplete":
        return gettext("This will not resolve by itself: run `letopis db verify`, and restore the store from a backup.")
    if kind == "conversation_blocked":
        return gettext("See `letopis outbox list`, then `retry`, `fix` or `skip`.")
    if fault_class(reason) != "away":
        return gettext("This will not resolve by itself: run `letopis doctor`.")
    return gettext("The relay keeps retrying by itself; see `letopis status`.")
