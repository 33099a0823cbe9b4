"""Run every check of an installation, and suggest fixes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from letopis.outbox.config.settings import Settings
from letopis.outbox.diagnostics.check_location import check_location, check_open_files
from letopis.outbox.diagnostics.check_settings import check_settings
from letopis.outbox.diagnostics.check_sqlite import check_libraries, check_outbox, check_version
from letopis.outbox.diagnostics.check_store import check_store
from letopis.outbox.diagnostics.finding import Finding, Level, fail
from letopis.outbox.diagnostics.reference import read_reference
from letopis.outbox.history.store_location import store_beside
from letopis.store.errors import LetopisError

MAX_COMPARED_CONVERSATIONS: Final = 10_000
"""Conversations, those begun last, whose delivery is compared with the store."""


async def examine(found: Settings) -> list[Finding]:
    """Run every check and return its findings, in reading order.

    Nothing is created, migrated or changed, in the outbox or in the store; only SQLite opens the live outbox file. A
    check that cannot be made is a finding too. Takes at most about half a minute.
    """
    findings = _guarded("configuration", lambda: check_settings(found))
    findings += [check_version(), check_libraries(), check_open_files()]
    place = await asyncio.to_thread(_guarded, "outbox_file", lambda: check_location(found.outbox))
    findings += place
    reference = None
    if found.outbox.is_file():
        findings += await asyncio.to_thread(_guarded, "outbox_migrations", lambda: check_outbox(found.outbox))
        # None is reported already, by the checks of the file.
        reference = await asyncio.to_thread(
            read_reference, found.outbox, newest=MAX_COMPARED_CONVERSATIONS, events=False
        )
    store = found.store if found.store is not None else store_beside(found.outbox)
    try:
        findings += [one async for one in check_store(store, reference)]
    except Exception as error:  # a check that breaks must not hide what the others found
        findings.append(_broken("store", error))
    return findings


def healthy(findings: Iterable[Finding]) -> bool:
    """Return True if no check failed; warnings are not failures."""
    return all(one.level is not Level.FAIL for one in findings)


def _guarded(check: str, run: Callable[[], Iterable[Finding]]) -> list[Finding]:
    findings: list[Finding] = []
    try:
        findings.extend(run())
    except Exception as error:  # a check that breaks must not hide what the others found
        findings.append(_broken(check, error))
    return findings


def _broken(check: str, error: Exception) -> Finding:
    # Only the type of an error that is not ours: its text may quote a URL or data.
    said = str(error) if isinstance(error, LetopisError) else f"this could not be checked ({type(error).__name__})"
    return fail(check, said, "check that this user may read the file and its folder")
