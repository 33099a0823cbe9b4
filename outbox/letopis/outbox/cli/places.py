"""Where things lie: the store of an outbox, and an outbox that has to exist."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.output import clean

if TYPE_CHECKING:
    from letopis.outbox.config import Settings


def store_of(found: Settings) -> str | Path:
    """Return what names the history store: as given, else the SQLite file beside the outbox."""
    from letopis.outbox.history import store_beside

    return found.store if found.store is not None else store_beside(found.outbox)


def existing_outbox(found: Settings) -> Path:
    """Return the outbox file if it is there.

    :raises Ended: it is not, with what to do.
    """
    if not found.outbox.is_file():
        source = "" if found.outbox_from == "--outbox" else f" (from {found.outbox_from})"
        raise Ended(
            Exit.CONFIGURATION,
            f"there is no outbox {clean(str(found.outbox))!r}{clean(source)}: name the bot's with --outbox, "
            "LETOPIS_OUTBOX or letopis.toml, or make one with `letopis init`",
        )
    return found.outbox


@asynccontextmanager
async def opened_source(found: Settings, *, patience: float = 3.0) -> AsyncIterator[Any]:
    """Open what conversations are read from: the outbox with its store, or a store that was named, alone.

    Nothing is created, and no relay runs.

    :param patience: seconds that one read waits for the store before the outbox alone answers.
    :raises Ended: there is neither.
    """
    if found.outbox.is_file() or found.store is None:
        from letopis.outbox.history import History

        path = existing_outbox(found)
        async with History.open(
            path, store=found.store, relay=False, watch=False, create=False, read_timeout=patience
        ) as history:
            yield history
        return
    from letopis.store.history import ConversationStore

    async with ConversationStore.open(found.store, migrate=False) as store:
        yield store
