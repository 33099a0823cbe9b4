"""Doctor: look at everything that a working outbox rests on, and say what is wrong and how to mend it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from uuid import UUID

from letopis.outbox.checks.finding import Finding, Level, fail
from letopis.outbox.checks.peek import SQLITE_ERRORS, peek
from letopis.outbox.checks.place import check_place
from letopis.outbox.checks.settings import check_settings
from letopis.outbox.checks.sqlite import check_libraries, check_outbox, check_version
from letopis.outbox.checks.store import check_store
from letopis.outbox.config import Settings
from letopis.outbox.file import OUTBOX
from letopis.outbox.history import store_beside
from letopis.store.errors import LetopisError
from letopis.store.migration import State, revision_state


async def examine(found: Settings) -> list[Finding]:
    """Run every check and return what each found, in an order that a person may read.

    Nothing is created, migrated or changed, in the outbox or in the store; the live outbox file is never opened but by
    SQLite. A check that cannot be made is a finding too. Takes at most about half a minute.
    """
    findings = _guarded("configuration", lambda: check_settings(found))
    findings += [check_version(), check_libraries()]
    place = await asyncio.to_thread(_guarded, "outbox_file", lambda: check_place(found.outbox))
    findings += place
    origin = None
    if found.outbox.is_file():
        findings += await asyncio.to_thread(_guarded, "outbox_migrations", lambda: check_outbox(found.outbox))
        origin = await asyncio.to_thread(_origin, found.outbox)
    store = found.store if found.store is not None else store_beside(found.outbox)
    try:
        findings += [one async for one in check_store(store, origin=origin)]
    except Exception as error:  # a check that breaks must not hide what the others found
        findings.append(_broken("store", error))
    return findings


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether no check failed; warnings are no failure."""
    return all(one.level is not Level.FAIL for one in findings)


def _guarded(check: str, run: Callable[[], Iterable[Finding]]) -> list[Finding]:
    findings: list[Finding] = []
    try:
        findings.extend(run())
    except Exception as error:  # a check that breaks must not hide what the others found
        findings.append(_broken(check, error))
    return findings


def _broken(check: str, error: Exception) -> Finding:
    # Of an error that is not ours only the type: its text may quote a URL or data.
    said = str(error) if isinstance(error, LetopisError) else f"this could not be looked at ({type(error).__name__})"
    return fail(check, said, "see whether this user may read the file and its folder")


def _origin(path: Path) -> tuple[UUID, int] | None:
    try:
        with peek(path) as connection:
            if revision_state(connection, OUTBOX).state is not State.CURRENT:
                return None
            row = connection.exec_driver_sql("SELECT origin_id, epoch FROM letopis_outbox_origin").one_or_none()
            return None if row is None else (UUID(bytes=row[0]), int(row[1]))
    except (*SQLITE_ERRORS, ValueError, TypeError):  # what is in a damaged file may not even be text
        return None  # said already, by the checks of the file
