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
def catalogue(locale: str | None) -> gettext_module.NullTranslations:
    """Return the catalogue of a locale's language; texts that it lacks stay English."""
    return gettext_module.translation(DOMAIN, LOCALES, languages=[language_of(locale)], fallback=True)


def duration(seconds: float, locale: str | None = None) -> str:
    """Return a rounded duration: ``45 seconds``, ``1 hour 5 minutes``; in Russian the accusative, as after "for"."""
    translations = catalogue(locale)
    ngettext = translations.ngettext
    if seconds < 1:
        return translations.gettext("less than a second")
    whole = rounded(seconds)
    if whole < MINUTE:
        return ngettext("%(count)d second", "%(count)d seconds", whole) % {"count": whole}
    days, hours, minutes = whole // DAY, whole % DAY // HOUR, whole % HOUR // MINUTE
    words = (
        (days, ngettext("%(count)d day", "%(count)d days", days)),
        (hours, ngettext("%(count)d hour", "%(count)d hours", hours)),
        (minutes, ngettext("%(count)d minute", "%(count)d minutes", minutes)),
    )
    return " ".join(text % {"count": count} for count, text in words if count)


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
    gettext = catalogue(locale).gettext
    months = (
        gettext("January"), gettext("February"), gettext("March"), gettext("April"), gettext("May"), gettext("June"),
        gettext("July"), gettext("August"), gettext("September"), gettext("October"), gettext("November"),
        gettext("December"),
    )  # fmt: skip
    day = f"{then.day} {months[then.month - 1]}" + ("" if then.year == now.year else f" {then.year}")
    return f"{day}, {time}"


_REASON: Final = re.compile(r"\[([^\[\]]*)\]\s*$")  # the class and the code at the end of a sentence of ours
_REFUSED: Final = re.compile(r"\((constraint|column|type) ([\w.$() ]+)\)")  # what refused an event


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
        text = f"{text} ({_phrase(refused[1], language)} {refused[2]})"
    return f"{text} [{match[1]}]" if match else text


def _described(name: str, code: str, language: str) -> str:
    # Imported here: commands that read settings only, and end, may not take the time that SQLAlchemy takes.
    from letopis.store.database.fault_rules import rule_of_code

    if text := _phrase(f"{name} {code}", language) or _phrase(code, language):
        return text
    rule = rule_of_code(code)
    # A lost connection has another meaning while a commit is under way: then the class says more than the code.
    if rule is not None and (rule.fault_class == name or name not in tuple(FaultClass)):
        return catalogue(language).gettext(rule.reason)
    return _phrase(name, language) or _phrase("unclassified", language)


def _phrase(key: str, language: str) -> str:
    """Return what a code of ours, a fault's class, or both, mean; empty if the catalogue does not say."""
    text = catalogue(language).pgettext("fault", key)
    return "" if text == key else text


Style = Literal["retrying", "failed"]
"""What users are told of a stuck reply: that saving goes on, or, in the sentence of older bots, that it failed."""
STYLES: Final[tuple[Style, ...]] = ("retrying", "failed")
