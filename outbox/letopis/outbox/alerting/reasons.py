"""Describe faults in another language than English, by their class and code."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from letopis.outbox.alerting.language import catalogue, language_of
from letopis.store.database.faults import FaultClass

_REASON: Final = re.compile(r"\[([^\[\]]*)\]\s*$")
"""The class and the code at the end of a sentence of ours."""
_REFUSED: Final = re.compile(r"\((constraint|column|type) ([\w.$() ]+)\)")
"""What refused an event, as the schema calls it; see :mod:`letopis.store.database.fault_classification`."""


def reason_in(reason: str, locale: str | None) -> str:
    """Return the reason of an incident in a language: English unchanged, others by the fault's class and code.

    An unknown code is described by its class, so that a text in another language holds no English sentence. The class,
    the code and what refused (a constraint, a column, a setting) are the same in every language.
    """
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
