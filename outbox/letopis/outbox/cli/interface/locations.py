"""Locate and open the outbox and the history store that a command works on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from letopis.outbox.cli.interface.exit_codes import CommandExit, Exit, name_store
from letopis.outbox.cli.interface.output import printable

if TYPE_CHECKING:
    import sqlalchemy as sa

    from letopis.outbox.config.settings import Settings
    from letopis.outbox.file.outbox_file import OutboxFile

T = TypeVar("T")


def store_of(found: Settings) -> str | Path:
    """Return the URL or path of the history store: as given, otherwise the SQLite file beside the outbox."""
    from letopis.outbox.history.store_location import store_beside
    from letopis.store.database.urls import normalise_url, safe_url

    store = found.store if found.store is not None else store_beside(found.outbox)
    name_store(safe_url(normalise_url(store)))
    return store


def existing_outbox(found: Settings) -> Path:
    """Return the path of the outbox, which must exist.

    :raises CommandExit: it does not, with what to do.
    """
    if not found.outbox.is_file():
        source = "" if found.outbox_from == "--outbox" else f" (from {found.outbox_from})"
        raise CommandExit(
            Exit.CONFIGURATION,
            f"there is no outbox {printable(str(found.outbox))!r}{printable(source)}: name the bot's with --outbox, "
            "LETOPIS_OUTBOX or letopis.toml, or create one with `letopis init`",
        )
    return found.outbox


@asynccontextmanager
async def open_source(found: Settings, *, read_timeout: float = 3.0) -> AsyncIterator[Any]:
    """Open the outbox with its store for reading, or without an outbox the store that was named.

    Nothing is created, and no relay runs.

    :param read_timeout: seconds that one read waits for the store before it is answered from the outbox.
    :raises CommandExit: there is neither.
    """
    if found.outbox.is_file() or found.store is None:
        from letopis.outbox.history.history import History

        path = existing_outbox(found)
        async with History(
            path, store=found.store, relay=False, watch=False, create=False, read_timeout=read_timeout
        ) as history:
            yield history
        return
    from letopis.store.conversation_store import ConversationStore

    async with ConversationStore.open(found.store, migrate=False) as store:
        yield store


def read_outbox(found: Settings, work: Callable[[sa.Connection], T]) -> tuple[Path, T]:
    """Run ``work`` over one snapshot of the outbox file, which must exist; return its path and the result.

    :raises CommandExit: there is no outbox.
    """
    import asyncio

    from letopis.outbox.file.opening import read_snapshot

    path = existing_outbox(found)
    return path, asyncio.run(read_snapshot(path, work))


async def with_outbox(found: Settings, work: Callable[[OutboxFile], Awaitable[T]]) -> T:
    """Open the outbox file, which must exist, run ``work`` on it, and close it.

    A bot and a relay may have it open at the same time.

    :raises CommandExit: there is no outbox.
    """
    from letopis.outbox.file.outbox_file import OutboxFile

    file = await OutboxFile.open(existing_outbox(found), create=False)
    try:
        return await work(file)
    finally:
        await file.close()
