"""Write the texts about incidents for users and operators, in their language.

The English texts are the keys of the catalogues in ``locales/``; a language without a catalogue gets English. Texts are
made of counts, durations, names and fault classes only, never of a payload, an address or a secret.
"""

from __future__ import annotations

import gettext as gettext_module
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Final, Literal

from letopis.outbox.alerting.incidents import fault_class

LOCALES: Final = Path(__file__).parent / "locales"
DOMAIN: Final = "letopis"
LANGUAGES: Final = ("en", "ru")

Style = Literal["plain", "seed"]
"""``plain`` says that the reply is kept and still being saved. ``seed`` says that saving failed, and to try later: the
sentence that users of older bots know."""

STYLES: Final[tuple[Style, ...]] = ("plain", "seed")
MAX_NAME_LENGTH: Final = 80

_REASON: Final = re.compile(r"\[([^\[\]]*)\]\s*$")
"""The class and the code at the end of a sentence of ours."""
_REFUSED: Final = re.compile(r"\((constraint|column|type) ([\w.$() ]+)\)")
"""What refused an event, as the schema calls it; see :mod:`letopis.store.database.fault_classification`."""


def language_of(locale: str | None) -> str:
    """Return the language of a locale as platforms give it (``ru``, ``ru-RU``, ``ru_RU.UTF-8``); ``en`` if unknown."""
    language = (locale or "").replace("_", "-").split("-")[0].split(".")[0].strip().lower()
    return language if language in LANGUAGES else "en"


def duration(seconds: float, locale: str | None = None) -> str:
    """Return how long something took, in one or two units: ``45 seconds``, ``5 minutes``, ``1 hour 5 minutes``.

    In Russian it is the accusative, as after "for" and "after": ``1 минуту``.
    """
    catalogue = _catalogue(language_of(locale))
    ngettext = catalogue.ngettext
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86_400, whole % 86_400 // 3_600, whole % 3_600 // 60
    if whole < 1:
        return catalogue.gettext("less than a second")
    if whole < 60:
        return ngettext("%(count)d second", "%(count)d seconds", whole) % {"count": whole}
    words = []
    if days:
        words.append(ngettext("%(count)d day", "%(count)d days", days) % {"count": days})
    if hours:
        words.append(ngettext("%(count)d hour", "%(count)d hours", hours) % {"count": hours})
    if minutes and not days:
        words.append(ngettext("%(count)d minute", "%(count)d minutes", minutes) % {"count": minutes})
    return " ".join(words)


def messages(count: int, locale: str | None = None) -> str:
    """Return ``1 message``, ``1 сообщение``, ``5 сообщений``."""
    ngettext = _catalogue(language_of(locale)).ngettext
    return ngettext("%(count)d message", "%(count)d messages", count) % {"count": count}


def conversations(count: int, locale: str | None = None) -> str:
    """Return ``1 conversation``, ``2 разговора``, ``5 разговоров``."""
    ngettext = _catalogue(language_of(locale)).ngettext
    return ngettext("%(count)d conversation", "%(count)d conversations", count) % {"count": count}


def shown(name: str) -> str:
    """Return an id for a line of text: quoted, unprintable characters escaped, truncated at 80."""
    return repr(name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…")


def user_stuck(*, needs_operator: bool, promise: bool = True, style: Style = "plain", locale: str | None = None) -> str:
    """Return what to tell a user whose messages are not in the history yet.

    :param needs_operator: it will not resolve by itself.
    :param promise: the bot will tell them once it is saved.
    """
    gettext = _catalogue(language_of(locale)).gettext
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
    gettext = _catalogue(language_of(locale)).gettext
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
    catalogue = _catalogue(language_of(locale))
    gettext, ngettext = catalogue.gettext, catalogue.ngettext
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
    gettext = _catalogue(language_of(locale)).gettext
    lines = [gettext("Outbox: %(outbox)s") % {"outbox": outbox}]
    lasted = duration(seconds, locale)
    if recovered:
        lines.append(gettext("It lasted %(duration)s.") % {"duration": lasted})
    else:
        instant = since.strftime("%Y-%m-%d %H:%M:%S UTC")
        lines.append(gettext("Since: %(instant)s, for %(duration)s") % {"instant": instant, "duration": lasted})
        if reasons:
            listed = "; ".join(dict.fromkeys(reason_in(one, locale) for one in reasons))
            lines.append(gettext("Reason: %(reason)s") % {"reason": listed})
    if events:
        lines.append(
            gettext("Pending: %(messages)s, %(conversations)s. Nothing is lost.")
            % {"messages": messages(events, locale), "conversations": conversations(waiting, locale)}
        )
    elif recovered:
        lines.append(gettext("Everything is delivered."))
    if not recovered:
        lines.append(_advice(kind, reasons[0] if reasons else None, locale))
    return "\n".join(lines)


def reason_in(reason: str, locale: str | None) -> str:
    """Return the reason of an incident in a language: English unchanged, others by the fault's class and code.

    An unknown code is described by its class, so that a text in another language holds no English sentence. The class,
    the code and what refused (a constraint, a column, a setting) are the same in every language.
    """
    if language_of(locale) == "en":
        return reason
    found = _REASON.search(reason)
    words = found[1].split() if found else reason.split()
    name, code = words[0] if words else "", words[1] if len(words) > 1 else ""
    phrases = _phrases(language_of(locale))
    text = phrases.get(code) or phrases.get(name) or phrases["unclassified"]
    if (refused := _REFUSED.search(reason)) is not None:
        text = f"{text} ({phrases[refused[1]]} {refused[2]})"
    return f"{text} [{found[1]}]" if found else text


@cache
def _phrases(language: str) -> dict[str, str]:
    """Return the description of faults in a language, by code and by class."""
    gettext = _catalogue(language).gettext
    return {
        # classes of the store's faults
        "unavailable": gettext("the history store is unavailable"),
        "misconfigured": gettext("the history store takes no deliveries until its configuration is corrected"),
        "wrong_store": gettext("this is not the history store that the outbox is bound to"),
        "unknown_outcome": gettext("it is not known whether the last delivery took effect"),
        "conflict": gettext("another transaction is in the way"),
        "poison": gettext("the history store refuses it"),
        "unclassified": gettext("an error that Letopis does not know"),
        # other reasons for a blocked or late conversation
        "diverged": gettext("the history store holds something else in its place"),
        "damaged": gettext("the outbox file is damaged there"),
        "lost": gettext("events before it are lost: restore a newer backup of the history store"),
        "late": gettext("it has been pending for too long"),
        "incomplete": gettext("events were deleted from the history store: restore it from a backup"),
        # what refused
        "constraint": gettext("constraint"),
        "column": gettext("column"),
        "type": gettext("type"),
        # codes
        "refused": gettext("the history store refuses connections"),
        "disconnected": gettext("the connection to the history store was lost"),
        "timeout": gettext("the history store did not answer in time"),
        "name-resolution": gettext("the host name of the history store is not known"),
        "disk-full": gettext("the disk of the history store is full"),
        "rows": gettext("the history store drops rows: a trigger, a rule or a policy does it"),
        "moved": gettext("the history was moved away from this store"),
        "arriving": gettext("the move into this store is not finished"),
        "tls-file": gettext("a TLS file is missing"),
        "tls-untrusted": gettext("the certificate of the history store is not trusted"),
        "tls-expired": gettext("the certificate of the history store has expired"),
        "tls-host": gettext("the certificate of the history store is for another host"),
        "schema-missing": gettext("the history store has no tables: run `letopis db upgrade`"),
        "schema-older": gettext(
            "the tables of the history store are older than this release: run `letopis db upgrade`"
        ),
        "28P01": gettext("the history store refuses the login"),
        "1045": gettext("the history store refuses the login"),
        "3D000": gettext("the database of the history store does not exist"),
        "1049": gettext("the database of the history store does not exist"),
        "1153": gettext("the message is bigger than max_allowed_packet of the server: raise that setting"),
    }


def operator_list(names: list[str], more: int, locale: str | None) -> str:
    """Return the conversations that an alert is about, one per line."""
    gettext = _catalogue(language_of(locale)).gettext
    lines = [f"- {shown(name)}" for name in names]
    if more > 0:
        lines.append(gettext("- and %(count)d more") % {"count": more})
    return "\n".join(lines)


def trial_alert(outbox: str, locale: str | None) -> tuple[str, str]:
    """Return the title and the text of ``letopis alerts test``."""
    gettext = _catalogue(language_of(locale)).gettext
    title = gettext("test alert")
    return f"Letopis: {title}", gettext("Alerts of the outbox %(outbox)s arrive here. Nothing is wrong.") % {
        "outbox": outbox
    }


def _advice(kind: str, reason: str | None, locale: str | None) -> str:
    gettext = _catalogue(language_of(locale)).gettext
    if kind == "relay_silent":
        return gettext("Start `letopis relay`, or check the process that should run it; see `letopis status`.")
    if kind == "history_incomplete":
        return gettext("This will not resolve by itself: run `letopis db verify`, and restore the store from a backup.")
    if kind == "conversation_blocked":
        return gettext("See `letopis outbox list`, then `retry`, `fix` or `skip`.")
    if fault_class(reason) != "away":
        return gettext("This will not resolve by itself: run `letopis doctor`.")
    return gettext("The relay keeps retrying by itself; see `letopis status`.")


@cache
def _catalogue(language: str) -> gettext_module.NullTranslations:
    return gettext_module.translation(DOMAIN, LOCALES, languages=[language], fallback=True)
