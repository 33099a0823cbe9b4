"""Find the catalogue of a language, and format times and durations in it."""

from __future__ import annotations

import gettext as gettext_module
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Final

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
    """Return how long something took, rounded: ``45 seconds``, ``5 minutes``, ``1 hour 5 minutes``, ``2 days 3 hours``.

    In Russian it is the accusative, as after "for" and "after": ``1 минуту``.
    """
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
    """Return when something happened: ``12:00 UTC`` of a day that has not ended, else ``25 November, 12:00 UTC``.

    With the year if that is another one. In Russian it is the genitive, as after "since": ``25 ноября``.
    """
    time = f"{then:%H:%M} UTC"
    if then.date() == now.date() and timedelta(0) <= now - then:
        return time
    gettext = catalogue(language_of(locale)).gettext
    months = (
        gettext("January"),
        gettext("February"),
        gettext("March"),
        gettext("April"),
        gettext("May"),
        gettext("June"),
        gettext("July"),
        gettext("August"),
        gettext("September"),
        gettext("October"),
        gettext("November"),
        gettext("December"),
    )
    day = f"{then.day} {months[then.month - 1]}" + ("" if then.year == now.year else f" {then.year}")
    return f"{day}, {time}"
