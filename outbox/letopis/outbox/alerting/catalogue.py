"""Find the catalogue of a language."""

from __future__ import annotations

import gettext as gettext_module
from functools import cache
from pathlib import Path
from typing import Final

LOCALES: Final = Path(__file__).parent / "locales"
DOMAIN: Final = "letopis"
LANGUAGES: Final = ("en", "ru")


def language_of(locale: str | None) -> str:
    """Return the language of a locale as platforms give it (``ru``, ``ru-RU``, ``ru_RU.UTF-8``); ``en`` if unknown."""
    language = (locale or "").replace("_", "-").split("-")[0].split(".")[0].strip().lower()
    return language if language in LANGUAGES else "en"


@cache
def catalogue(language: str) -> gettext_module.NullTranslations:
    """Return the catalogue of a language; texts that it lacks stay English."""
    return gettext_module.translation(DOMAIN, LOCALES, languages=[language], fallback=True)
