"""Translate the console's texts, and format times, numbers and durations for a language.

The English texts are the keys of the catalogues in ``locales/``; a language without a catalogue gets English.
"""

from __future__ import annotations

import gettext as gettext_module
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Final

from letopis.outbox.alerting.language import LANGUAGES, duration, language_of, reason_in

LOCALES: Final = Path(__file__).parent / "locales"
DOMAIN: Final = "letopis_console"
NAMES: Final = {"en": "English", "ru": "Русский"}
_THIN: Final = "\u202f"


class Language:
    """One language.

    :ivar code: ``en`` or ``ru``.
    """

    def __init__(self, code: str) -> None:
        self.code = code
        self._catalogue = gettext_module.translation(DOMAIN, LOCALES, languages=[code], fallback=True)

    def gettext(self, text: str) -> str:
        """Return a text in this language."""
        return self._catalogue.gettext(text)

    def ngettext(self, one: str, many: str, count: int) -> str:
        """Return a text's plural form for a number."""
        return self._catalogue.ngettext(one, many, count)

    def number(self, value: float) -> str:
        """Return a whole number with its digits in groups of three."""
        return f"{round(value):,}".replace(",", _THIN if self.code == "ru" else ",")

    def duration(self, seconds: float | None) -> str:
        """Return a duration in one or two units; a dash for ``None``."""
        return "–" if seconds is None else duration(seconds, self.code)

    def latency(self, seconds: float | None) -> str:
        """Return a short duration, with a decimal where that is informative; a dash for ``None``."""
        if seconds is None:
            return "–"
        if seconds >= 120:
            return duration(seconds, self.code)
        digits = f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"
        return self.gettext("%(seconds)s s") % {"seconds": digits.replace(".", "," if self.code == "ru" else ".")}

    def size(self, count: int) -> str:
        """Return a number of bytes in a suitable unit."""
        units = ((self.gettext("MB"), 1024**2), (self.gettext("kB"), 1024), (self.gettext("bytes"), 1))
        unit, size = next((one for one in units if count >= one[1]), units[-1])
        return f"{self.number(count / size)} {unit}"

    def moment(self, value: datetime, *, seconds: bool = False) -> str:
        """Return a moment in UTC, without the zone, which the pages show once."""
        form = "%d.%m.%Y" if self.code == "ru" else "%Y-%m-%d"
        return f"{value:{form} %H:%M:%S}" if seconds else f"{value:{form} %H:%M}"

    def day(self, value: datetime) -> str:
        """Return a day."""
        return f"{value:%d.%m.%Y}" if self.code == "ru" else f"{value:%Y-%m-%d}"

    def reason(self, text: str | None) -> str:
        """Return a fault in this language."""
        return "" if text is None else reason_in(text, self.code)


@cache
def language(code: str) -> Language:
    """Return a language; English if it is unknown."""
    return Language(code if code in LANGUAGES else "en")


def preferred(accepted: str) -> str:
    """Return the first available language of an ``Accept-Language`` header."""
    for code in _by_weight(accepted):
        if language_of(code) == code.partition("-")[0].lower():
            return language_of(code)
    return "en"


def _by_weight(accepted: str) -> Iterable[str]:
    weighted = []
    for place, part in enumerate(accepted.split(",")[:20]):
        code, _, weight = part.strip().partition(";q=")
        try:
            weighted.append((-float(weight or 1), place, code.strip()))
        except ValueError:
            continue
    return [code for _, _, code in sorted(weighted) if code]
