"""Write times, durations, reasons and the texts for users in a language that has a catalogue."""

from __future__ import annotations

import gettext as gettext_module
import re
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Final, Literal

from letopis.store.database.faults import FaultClass

LOCALES: Final = Path(__file__).parent / "locales"
DOMAIN: Final = "letopis"
LANGUAGES: Final = ("en", "ru")
MINUTE: Final = 60
HOUR: Final = 3_600
DAY: Final = 86_400


def language_of(locale: str | None) -> str:
    """Return the language of a locale as platforms give it (``ru``, ``ru-RU``, ``ru_RU.UTF-8``); ``en`` if unknown."""
    language = (locale or "").replace("_", "-").split("-")[0].split(".")[0].strip().lower()
    return language if language in LANGUAGES else "en"


@cache
def catalogue(language: str) -> gettext_module.NullTranslations:
    """Return the catalogue of a language; texts that it lacks stay English."""
    return gettext_module.translation(DOMAIN, LOCALES, languages=[language], fallback=True)


def duration(seconds: float, locale: str | None = None) -> str:
    """Return a rounded duration: ``45 seconds``, ``1 hour 5 minutes``; in Russian the accusative, as after "for"."""
    translations = catalogue(language_of(locale))
    ngettext = translations.ngettext
    if seconds < 1:
        return translations.gettext("less than a second")
    whole = rounded(seconds)
    if whole < MINUTE:
        return ngettext("%(count)d second", "%(count)d seconds", whole) % {"count": whole}
    days, hours, minutes = whole // DAY, whole % DAY // HOUR, whole % HOUR // MINUTE
    words = []
    if days:
        words.append(ngettext("%(count)d day", "%(count)d days", days) % {"count": days})
    if hours:
        words.append(ngettext("%(count)d hour", "%(count)d hours", hours) % {"count": hours})
    if minutes:
        words.append(ngettext("%(count)d minute", "%(count)d minutes", minutes) % {"count": minutes})
    return " ".join(words)


def rounded(seconds: float) -> int:
    """Return a duration in seconds, to 5 seconds, a minute, 5 minutes or an hour, the longer the rougher."""
    if seconds < 10:
        return max(0, round(seconds))
    for unit, limit in ((5, MINUTE), (MINUTE, HOUR), (5 * MINUTE, DAY)):
        if (whole := int(seconds / unit + 0.5) * unit) < limit:
            return whole
    return int(seconds / HOUR + 0.5) * HOUR


def moment(then: datetime, *, now: datetime, locale: str | None = None) -> str:
    """Return ``12:00 UTC`` on the same day, otherwise ``25 November, 12:00 UTC``; in Russian the genitive."""
    time = f"{then:%H:%M} UTC"
    if then.date() == now.date() and timedelta(0) <= now - then:
        return time
    gettext = catalogue(language_of(locale)).gettext
    months = (
        gettext("January"), gettext("February"), gettext("March"), gettext("April"), gettext("May"), gettext("June"),
        gettext("July"), gettext("August"), gettext("September"), gettext("October"), gettext("November"),
        gettext("December"),
    )  # fmt: skip
    day = f"{then.day} {months[then.month - 1]}" + ("" if then.year == now.year else f" {then.year}")
    return f"{day}, {time}"


_REASON: Final = re.compile(r"\[([^\[\]]*)\]\s*$")
"""The class and the code at the end of a sentence of ours."""
_REFUSED: Final = re.compile(r"\((constraint|column|type) ([\w.$() ]+)\)")
"""What refused an event, as the schema calls it; see :mod:`letopis.store.database.fault_classification`."""


def reason_in(reason: str, locale: str | None) -> str:
    """Return the reason of an incident in a language: English unchanged, others by the fault's class and code."""
    language = language_of(locale)
    if language == "en":
        return reason
    match = _REASON.search(reason)
    words = match[1].split() if match else reason.split()
    name, code = words[0] if words else "", words[1] if len(words) > 1 else ""
    text = _described(name, code, language)
    if (refused := _REFUSED.search(reason)) is not None:
        text = f"{text} ({_phrases(language)[refused[1]]} {refused[2]})"
    return f"{text} [{match[1]}]" if match else text


def _described(name: str, code: str, language: str) -> str:
    # Imported here: commands that read settings only, and end, may not take the time that SQLAlchemy takes.
    from letopis.store.database.fault_rules import rule_of_code

    phrases = _phrases(language)
    if (text := phrases.get(f"{name} {code}") or phrases.get(code)) is not None:
        return text
    rule = rule_of_code(code)
    # A lost connection has another meaning while a commit is under way: then the class says more than the code.
    if rule is not None and (rule.fault_class == name or name not in tuple(FaultClass)):
        return catalogue(language).gettext(rule.reason)
    return phrases.get(name) or phrases["unclassified"]


@cache
def _phrases(language: str) -> dict[str, str]:
    """Return the description of faults in a language: by code, or by class and code, and by class for all others."""
    gettext = catalogue(language).gettext
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
        # codes of ours; those of databases and drivers are in `letopis.store.database.fault_rules`
        "rows": gettext("the history store drops rows: a trigger, a rule or a policy does it"),
        "moved": gettext("the history was moved away from this store"),
        "arriving": gettext("the move into this store is not finished"),
        "stranger": gettext("the history store holds nothing of what this outbox has delivered before"),
        "destination": gettext("the bot and the relay name different history stores"),
        "misconfigured identity": gettext("the identity of the history store is gone: restore the database"),
        "partitions": gettext("the history store has another number of partitions than when it was opened"),
        "replaced": gettext("the file of the history store was replaced; it is opened again"),
        "no-folder": gettext("the folder of the history store's file does not exist"),
        "no-wal": gettext("the file of the history store is on a file system that it cannot work on"),
        "migrating": gettext("the history store is being migrated by another process"),
        "deadline": gettext("the history store did not finish in time"),
        "stood-still": gettext("the relay was stopped in the middle of a delivery, which is run again"),
        "origin-superseded": gettext("another copy of this outbox file has delivered since"),
        "projection": gettext("a projection failed: correct its code or its tables"),
        "invalid": gettext("the event cannot be what was appended"),
        "unclassified damaged": gettext("the data of the history store is damaged"),
        "tls-file": gettext("a TLS file is missing"),
        "schema-missing": gettext("the history store has no tables: run `letopis db upgrade`"),
        "schema-older": gettext(
            "the tables of the history store are older than this release: run `letopis db upgrade`"
        ),
        "schema-newer": gettext("the tables of the history store are newer than this release: upgrade Letopis"),
        "schema-foreign": gettext("the database holds something else than a history store: check its URL"),
    }


Style = Literal["plain", "seed"]
"""``plain`` says that the reply is kept and still being saved. ``seed`` says that saving failed, and to try later: the
sentence that users of older bots know."""

STYLES: Final[tuple[Style, ...]] = ("plain", "seed")


def user_stuck(*, needs_operator: bool, promise: bool = True, style: Style = "plain", locale: str | None = None) -> str:
    """Return what to tell a user whose messages are not in the history yet."""
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
    """Return what to tell a user who was notified before."""
    gettext = catalogue(language_of(locale)).gettext
    if skipped:
        return gettext("⚠️ The reply could not be saved: the chat history has a mark in its place.")
    return gettext("✅ The reply is saved in the chat history.")
