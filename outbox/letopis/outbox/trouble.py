"""What went wrong with the outbox file: SQLite's errors, by their code, turned into ours."""

from __future__ import annotations

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError

from letopis.store.errors import LetopisError, OutboxFull, OutboxUnavailable

_REASONS: Final = {
    "SQLITE_IOERR": "the disk reports an input/output error: check the disk",
    "SQLITE_CORRUPT": "the outbox file is damaged: stop writing, copy it together with its -wal, restore a backup",
    "SQLITE_NOTADB": "the outbox file is no SQLite database",
    "SQLITE_READONLY": "the outbox file, or its folder, may not be written: check owner and mode",
    "SQLITE_CANTOPEN": "the outbox file cannot be opened: check its folder, owner and mode",
    "SQLITE_PERM": "the outbox file may not be opened: check owner and mode",
    "SQLITE_AUTH": "the outbox file may not be opened: check owner and mode",
    "SQLITE_NOLFS": "the outbox file is too large for this file system",
    "SQLITE_PROTOCOL": "locks on the outbox file do not work here: a network file system cannot hold an outbox",
    "SQLITE_NOMEM": "there is not enough memory",
    "SQLITE_TOOBIG": "a value is too large for SQLite",
}


def sqlite_error(error: BaseException) -> sqlite3.Error | None:
    """Return the driver's error in or under ``error``, if there is one."""
    if isinstance(error, sqlite3.Error):
        return error
    if isinstance(error, DBAPIError):
        for under in (error.orig, error.__cause__):
            if isinstance(under, sqlite3.Error):
                return under
    return None


def code_of(error: BaseException) -> str:
    """Return SQLite's name of the error, for example ``SQLITE_BUSY_SNAPSHOT``; empty where there is none."""
    under = sqlite_error(error)
    return "" if under is None else getattr(under, "sqlite_errorname", None) or ""


def is_busy(error: BaseException) -> bool:
    """Whether another connection holds what was needed, so that trying again may help."""
    return code_of(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def is_conflict(error: BaseException) -> bool:
    """Whether a row was refused by a constraint."""
    return code_of(error).startswith("SQLITE_CONSTRAINT")


def is_full(error: BaseException) -> bool:
    """Whether the disk has no space left; opening a file on such a disk has a code of its own."""
    return code_of(error) in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")


def is_stale(error: BaseException) -> bool:
    """Whether a transaction read before it wrote, and another one committed in between."""
    return code_of(error) == "SQLITE_BUSY_SNAPSHOT"


def translate(error: BaseException) -> LetopisError | None:
    """Return our error for what SQLite reports, without its text; ``None`` where SQLite is not the cause."""
    if sqlite_error(error) is None:
        return None
    code = code_of(error)
    if is_full(error):
        return OutboxFull(f"the disk is full: nothing was written and nothing was dropped, free some space [{code}]")
    if is_stale(error):
        return OutboxUnavailable(
            "the transaction read before it wrote, and another writer committed in between: begin it with BEGIN"
            f" IMMEDIATE, or use history.transaction(), and run it again [{code}]"
        )
    if is_busy(error):
        return OutboxUnavailable(f"another writer holds the outbox file for too long: try again [{code}]")
    primary = "_".join(code.split("_")[:2])
    reason = _REASONS.get(primary, "the outbox file does not work as it should")
    return OutboxUnavailable(f"{reason} [{code or type(error).__name__}]")
