"""Classify SQLite's errors by their code, and translate them into Letopis' own."""

from __future__ import annotations

import sqlite3
from typing import Final

from letopis.store.database import open_files
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
    """Return the driver's error in or under ``error``; ``None`` if there is none."""
    if isinstance(error, sqlite3.Error):
        return error
    # Only SQLAlchemy's errors have an original: it is not imported here, so that `letopis status` starts without it.
    under = (original, error.__cause__) if (original := getattr(error, "orig", None)) is not None else ()
    return next((error for error in under if isinstance(error, sqlite3.Error)), None)


def code_of(error: BaseException) -> str:
    """Return SQLite's name of the error, for example ``SQLITE_BUSY_SNAPSHOT``; empty if it has none."""
    under = sqlite_error(error)
    return "" if under is None else getattr(under, "sqlite_errorname", None) or ""


def error_name(error: BaseException) -> str:
    """Return SQLite's name of an error, otherwise its type; never its text."""
    return code_of(error) or type(sqlite_error(error) or error).__name__


def is_busy(error: BaseException) -> bool:
    """Return True if another connection holds a lock that was needed, so that a retry may help."""
    return code_of(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def is_conflict(error: BaseException) -> bool:
    return code_of(error).startswith("SQLITE_CONSTRAINT")


def is_full(error: BaseException) -> bool:
    """Return True if the disk has no space left; opening a file on such a disk has a code of its own."""
    return code_of(error) in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")


def translate(error: BaseException) -> LetopisError | None:
    """Return our error for an error of SQLite's, without its text; ``None`` if it is not SQLite's."""
    if sqlite_error(error) is None:
        return None
    code = code_of(error)
    if is_full(error):
        return OutboxFull(f"the disk is full: nothing was written and nothing was dropped, free some space [{code}]")
    if code == "SQLITE_BUSY_SNAPSHOT":
        return OutboxUnavailable(
            "the transaction read before it wrote, and another writer committed in between: begin it with BEGIN"
            f" IMMEDIATE, or use history.transaction(), and run it again [{code}]"
        )
    if is_busy(error):
        return OutboxUnavailable(f"another writer has held the outbox file for too long: try again [{code}]")
    if code.startswith("SQLITE_CANTOPEN") and open_files.is_exhausted():
        return OutboxUnavailable(f"{open_files.describe_exhaustion()} [{code}]")
    primary = "_".join(code.split("_")[:2])
    reason = _REASONS.get(primary, "SQLite reports an error on the outbox file")
    return OutboxUnavailable(f"{reason} [{code or type(error).__name__}]")
