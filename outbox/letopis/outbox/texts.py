"""What people are told about incidents, in their language.

The English texts are the keys of the catalogues in ``locales/``; a language without a catalogue gets English. Nothing
here knows a payload, an address or a secret: texts are made of counts, durations, names and fault classes only.
"""

from __future__ import annotations

import gettext as gettext_module
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Final, Literal

LOCALES: Final = Path(__file__).parent / "locales"
DOMAIN: Final = "letopis"
LANGUAGES: Final = ("en", "ru")

Style = Literal["plain", "seed"]
"""``plain`` says what is true: the reply is kept and still being saved. ``seed`` says that saving failed, and to try
later: the sentence that users of older bots know; it is also given for incidents that mend themselves."""

STYLES: Final[tuple[Style, ...]] = ("plain", "seed")
LONGEST_NAME: Final = 80


def language_of(locale: str | None) -> str:
    """Return the language of a locale as platforms give it (``ru``, ``ru-RU``, ``ru_RU.UTF-8``), ``en`` if it is none
    that there are texts for."""
    language = (locale or "").replace("_", "-").split("-")[0].split(".")[0].strip().lower()
    return language if language in LANGUAGES else "en"


def duration(seconds: float, locale: str | None = None) -> str:
    """Return how long something took, in one or two units: ``45 seconds``, ``5 minutes``, ``1 hour 5 minutes``.

    It is in the case that Russian wants after "for" and "after" (the accusative): ``1 минуту``.
    """
    texts = _catalogue(language_of(locale))
    ngettext = texts.ngettext
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86_400, whole % 86_400 // 3_600, whole % 3_600 // 60
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
    """Return an id so that it can stand in a line of text: quoted, what cannot be printed escaped, cut at 80."""
    return repr(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…")


def user_stuck(*, needs_person: bool, promise: bool = True, style: Style = "plain", locale: str | None = None) -> str:
    """Return what a user is told whose messages are not in the history yet.

    :param needs_person: it will not mend itself: an operator has to act.
    :param promise: the bot will tell them once it is saved.
    """
    gettext = _catalogue(language_of(locale)).gettext
    if style == "seed":
        return gettext("⚠️ The reply could not be saved in the multichat history. Please try again later.")
    if needs_person:
        first = gettext("⚠️ The reply has not reached the chat history. It is kept, but somebody has to look into it.")
    else:
        first = gettext("⚠️ The reply has not reached the chat history yet. It is kept, and I go on trying.")
    second = gettext("I will tell you once it is saved.")
    return f"{first} {second}" if promise else first


def user_recovered(*, skipped: bool = False, locale: str | None = None) -> str:
    """Return what a user is told who was told before.

    :param skipped: an operator left the message out of the history.
    """
    gettext = _catalogue(language_of(locale)).gettext
    if skipped:
        return gettext("⚠️ The reply could not be saved: the chat history has a mark in its place.")
    return gettext("✅ The reply is saved in the chat history.")


def operator_title(
    kind: str, *, count: int = 1, recovered: bool = False, still: bool = False, locale: str | None
) -> str:
    """Return the first line of an operator's alert.

    :param kind: ``store_down``, ``conversation_blocked``, ``relay_silent``.
    :param count: of the conversations, where that is what it is about.
    """
    texts = _catalogue(language_of(locale))
    gettext, ngettext = texts.gettext, texts.ngettext
    if kind == "store_down":
        title = gettext("The history store is back") if recovered else gettext("The history store is down")
    elif kind == "relay_silent":
        title = gettext("The relay delivers again") if recovered else gettext("The relay is silent")
    elif recovered:
        title = ngettext("%(count)d conversation is saved again", "%(count)d conversations are saved again", count) % {
            "count": count
        }
    else:
        title = ngettext("%(count)d conversation is stuck", "%(count)d conversations are stuck", count) % {
            "count": count
        }
    if still:
        title = gettext("still: %(title)s") % {"title": title}
    return f"Letopis: {title}"


def operator_body(
    kind: str,
    *,
    outbox: str,
    since: datetime,
    seconds: float,
    reason: str | None,
    events: int,
    waiting: int,
    recovered: bool = False,
    locale: str | None,
) -> str:
    """Return the text of an operator's alert: what, since when, how much waits, and what to do.

    :param outbox: the base name of the outbox file.
    :param seconds: how long it has lasted.
    :param events: messages that wait now.
    :param waiting: conversations that wait now.
    """
    gettext = _catalogue(language_of(locale)).gettext
    lines = [gettext("Outbox: %(outbox)s") % {"outbox": outbox}]
    instant = since.strftime("%Y-%m-%d %H:%M:%S UTC")
    if recovered:
        lines.append(gettext("It lasted %(duration)s.") % {"duration": duration(seconds, locale)})
    else:
        lines.append(
            gettext("Since: %(instant)s, for %(duration)s")
            % {"instant": instant, "duration": duration(seconds, locale)}
        )
        if reason:
            lines.append(gettext("Reason: %(reason)s") % {"reason": reason})
    if events:
        lines.append(
            gettext("Waiting: %(messages)s, %(conversations)s. Nothing is lost.")
            % {"messages": messages(events, locale), "conversations": conversations(waiting, locale)}
        )
    elif recovered:
        lines.append(gettext("Everything is delivered."))
    if not recovered:
        lines.append(_advice(kind, reason, locale))
    return "\n".join(lines)


def operator_list(names: list[str], more: int, locale: str | None) -> str:
    """Return the conversations that an alert is about, one a line."""
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
        return gettext("Start `letopis relay`, or look at the process that should run it; `letopis status` tells more.")
    if kind == "conversation_blocked":
        return gettext("See `letopis outbox list`, then `retry`, `fix` or `skip`.")
    if reason and "misconfigured" in reason.lower():
        return gettext("It will not mend itself: run `letopis doctor`.")
    return gettext("The relay goes on trying by itself; `letopis status` tells more.")


@cache
def _catalogue(language: str) -> gettext_module.NullTranslations:
    return gettext_module.translation(DOMAIN, LOCALES, languages=[language], fallback=True)
