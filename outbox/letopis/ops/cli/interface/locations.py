"""Locate and open the outbox and the history store that a command works on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from letopis.ops.cli.interface.exit_codes import CommandExit, Exit, name_store
from letopis.ops.cli.interface.output import printable

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

    from letopis.ops.config.settings import Settings
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.store.database.migrations import Revision

T = TypeVar("T")


def store_of(config: Settings) -> str | Path:
    """Return the URL or path of the history store: as given, otherwise the SQLite file beside the outbox."""
    from letopis.outbox.file.inspection import store_beside
    from letopis.store.database.urls import normalise_url, safe_url

    store = config.store if config.store is not None else store_beside(config.outbox)
    name_store(safe_url(normalise_url(store)))
    return store


def store_url(config: Settings, *, missing: str | None = None) -> tuple[URL, str]:
    """Return the URL of the history store, which may not be the outbox, and its printable name."""
    from letopis.outbox.file.inspection import check_apart
    from letopis.store.database.urls import normalise_url, safe_url

    url = normalise_url(store_of(config))
    check_apart(config.outbox, url)
    name = printable(safe_url(url))
    if missing is not None and url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise CommandExit(Exit.CONFIGURATION, f"{name}: {missing}")
    return url, name


@asynccontextmanager
async def store_engine(url: URL, *, statement: float = 86_400.0, lock: float = 10.0) -> AsyncIterator[AsyncEngine]:
    """Open a history store for statements that may take long, and translate their errors."""
    from letopis.store.database.engines import create_store_engine
    from letopis.store.database.fault_classification import translated
    from letopis.store.database.timeouts import Timeouts

    engine = create_store_engine(url, timeouts=Timeouts(statement=statement, lock=lock), pool_size=1)
    try:
        with translated():
            yield engine
    finally:
        await engine.dispose()


async def store_revision(engine: AsyncEngine) -> Revision:
    """Return the revision of a store's tables; creates nothing."""
    from letopis.store.database.migrations import STORE, revision_state

    async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
        return await connection.run_sync(revision_state, STORE)


def existing_outbox(config: Settings) -> Path:
    if not config.outbox.is_file():
        source = "" if config.outbox_from == "--outbox" else f" (from {config.outbox_from})"
        raise CommandExit(
            Exit.CONFIGURATION,
            f"there is no outbox {printable(str(config.outbox))!r}{printable(source)}: name the bot's with --outbox, "
            "LETOPIS_OUTBOX or letopis.toml, or create one with `letopis init`",
        )
    return config.outbox


@asynccontextmanager
async def open_source(config: Settings, *, read_timeout: float = 3.0) -> AsyncIterator[Any]:
    """Open the outbox with its store for reading, or without an outbox the store that was named."""
    if config.outbox.is_file() or config.store is None:
        from letopis.outbox.history.history import History

        path = existing_outbox(config)
        async with History(
            path, store=config.store, relay=False, watch=False, create=False, read_timeout=read_timeout
        ) as history:
            yield history
        return
    from letopis.store.conversation_store import ConversationStore

    async with ConversationStore.open(config.store, migrate=False) as store:
        yield store


def read_outbox(config: Settings, work: Callable[[sa.Connection], T]) -> tuple[Path, T]:
    """Run ``work`` over one snapshot of the outbox file, which must exist; return its path and the result."""
    import asyncio

    from letopis.outbox.file.opening import read_snapshot

    path = existing_outbox(config)
    return path, asyncio.run(read_snapshot(path, work))


async def with_outbox(config: Settings, work: Callable[[OutboxFile], Awaitable[T]]) -> T:
    """Open the outbox file, which must exist, run ``work`` on it, and close it."""
    from letopis.outbox.file.outbox_file import OutboxFile

    file = await OutboxFile.open(existing_outbox(config), create=False)
    try:
        return await work(file)
    finally:
        await file.close()
