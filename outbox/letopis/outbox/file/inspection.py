"""Check and read an outbox file without SQLAlchemy, for programs that look at it and end."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from letopis.outbox.file.limits import release_reserve
from letopis.outbox.file.sqlite_errors import code_of, is_full, translate
from letopis.store.database import open_files
from letopis.store.database.faults import StoreFault
from letopis.store.database.migrations import STORE, Migrations, Revision, SchemaState, revision_of
from letopis.store.errors import ConfigurationError, OutboxUnavailable
from letopis.store.private_files import create_private_file

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

T = TypeVar("T")

OUTBOX_MIGRATIONS: Final = Migrations(
    location="letopis.migrations:outbox", version_table="letopis_outbox_version", head="0001"
)
"""The outbox file's migrations."""
TABLES: Final = "SELECT name FROM sqlite_schema WHERE type = 'table'"
BUSY_TIMEOUT_SECONDS: Final = 1.5
"""How long SQLite itself waits for a lock; longer waits are made above it, where they can be cancelled."""


def outbox_path(given: str | os.PathLike[str]) -> Path:
    """Return the absolute path of an outbox file, given as a path or as an SQLite URL; reads no disk."""
    text = os.fspath(given)
    if isinstance(text, str) and "://" in text:
        from letopis.store.database.urls import normalise_url

        url = normalise_url(text)
        if url.get_backend_name() != "sqlite":
            raise ConfigurationError("an outbox is a local SQLite file: give its path, the server belongs in store=")
        text = url.database or ""
    if not text or text == ":memory:" or "\0" in text:
        raise ConfigurationError("an outbox is a file on a local disk: give its path, for example bot.outbox.db")
    return Path(text).absolute()


def read_file(path: Path, work: Callable[[sqlite3.Cursor], T]) -> T:
    """Return the result of ``work`` over one snapshot of an outbox file, without changing the file."""
    check_file(path, create=False)

    def read() -> T:
        with (
            closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)) as connection,
            closing(connection.cursor()) as cursor,
        ):
            # It may be the last one to close the file, which writes the WAL back into it.
            cursor.execute("PRAGMA checkpoint_fullfsync=ON")
            cursor.execute("BEGIN")
            tables = [row[0] for row in cursor.execute(TABLES)]
            rows = cursor.execute(OUTBOX_MIGRATIONS.query) if OUTBOX_MIGRATIONS.version_table in tables else ()
            check_revision(revision_of([row[0] for row in rows], OUTBOX_MIGRATIONS), path, tables)
            return work(cursor)

    return with_reserve(path, read)


def with_reserve(path: Path, read: Callable[[], T]) -> T:
    """Return what ``read`` returns, with the disk reserve's space if needed, and raise SQLite's errors as ours."""
    while True:
        try:
            return read()
        except Exception as error:  # whatever failed: SQLite, the disk, or what was asked of the file
            if not (is_full(error) and release_reserve(path)):
                raise explained(error, path) or error from error


def check_file(path: Path, *, create: bool) -> None:
    """Make sure that there is a file, without opening one that is there."""
    if path.is_dir():
        raise ConfigurationError(f"{str(path)!r} is a folder: give the path of a file in it")
    if not path.parent.is_dir():
        raise ConfigurationError(
            f"the folder {str(path.parent)!r} does not exist: create it (mkdir -p), then try again"
        )
    if path.exists():
        if not path.is_file():
            raise ConfigurationError(f"{str(path)!r} is no regular file")
        return
    if not create:
        raise ConfigurationError(
            f"there is no outbox at {str(path)!r}: check the path, or create it with `letopis init`"
        )
    try:
        create_private_file(path)
    except OSError as error:
        if open_files.is_exhausted(error):
            raise OutboxUnavailable(open_files.describe_exhaustion()) from error
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(f"{str(path)!r} cannot be created ({reason}): check the folder's mode") from error


def check_revision(found: Revision, path: Path, tables: Iterable[str]) -> None:
    """Check that an outbox file is at this release's revision."""
    if found.state is SchemaState.MISSING:
        raise ConfigurationError(": ".join(describe_missing_outbox(path, tables)))
    if found.state is not SchemaState.CURRENT:
        raise ConfigurationError(f"{path.name!r}: {found.advice(OUTBOX_MIGRATIONS, command='letopis init')}")


def describe_missing_outbox(path: Path, tables: Iterable[str]) -> tuple[str, str]:
    """Return what an SQLite file without an outbox is, and what to do."""
    if not (tables := set(tables)):
        # A program that is killed while it creates its outbox leaves this.
        return f"{path.name!r} is a new file without tables", "the bot or `letopis init` makes it an outbox"
    if STORE.version_table in tables:
        return f"{path.name!r} is a history store, and holds no outbox", "give the path of the outbox"
    return f"{path.name!r} is another program's database, and holds no outbox", "check the path"


def explained(error: BaseException, path: Path) -> Exception | None:
    """Return our error for one that came of opening an outbox file; ``None`` if it is none of ours."""
    code = code_of(error)
    if code.startswith("SQLITE_NOTADB"):
        return ConfigurationError(f"{path.name!r} is no SQLite database: give another path")
    if code.startswith("SQLITE_CANTOPEN") and open_files.is_exhausted():
        return OutboxUnavailable(f"{open_files.describe_exhaustion()} [{code}]")
    if code.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        return ConfigurationError(
            f"{path.name!r} may not be written: check the owner and the mode of the file and of its folder [{code}]"
        )
    if isinstance(error, StoreFault):
        return ConfigurationError(f"{path.name!r}: {error.reason}")
    if isinstance(error, OSError):
        if open_files.is_exhausted(error):
            return OutboxUnavailable(f"{open_files.describe_exhaustion()} [{error.errno}]")
        return OutboxUnavailable(f"{path.name!r} cannot be reached [{error.errno}]")
    if isinstance(error, UnicodeDecodeError):  # SQLite quotes the file in its errors
        return OutboxUnavailable(f"{path.name!r} is damaged: `letopis outbox verify` says where")
    return translate(error)


def store_beside(path: str | os.PathLike[str]) -> Path:
    """Return the default history store of an outbox: ``bot.history.db`` beside ``bot.outbox.db``."""
    where = outbox_path(path)
    stem = where.name.removesuffix(".db").removesuffix(".outbox")
    return where.with_name("history.db" if stem in ("outbox", "") else f"{stem}.history.db")


def check_apart(outbox: Path, url: URL) -> None:
    """Check that an outbox does not deliver into itself."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    if os.path.realpath(url.database) == os.path.realpath(outbox):
        raise ConfigurationError("the outbox and the history store are the same file: give each a file of its own")
