"""Deliver from outboxes, and search a history store and outbox files for words that are to be gone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import sqlalchemy as sa

from letopis.outbox import History
from letopis.outbox.diagnostics.integrity import find_problems
from letopis.outbox.relay.relay import Relay
from letopis.store import ConversationStore
from letopis.store.database.schema import metadata
from letopis.store.maintenance.integrity import find_problems as store_problems
from tests.support.relays import until


async def deliver(*histories: History) -> None:
    for history in histories:
        await Relay(history.outbox, history.store).drain()


async def dump(store: ConversationStore) -> str:
    """Return all rows of a history store as text."""
    rows = list[str]()
    async with store._runtime.callers_engine.connect() as connection:
        for table in metadata.sorted_tables:
            if table.info.get("not_on") != connection.dialect.name:
                rows += [repr(tuple(row)) for row in await connection.execute(sa.select(table))]
    return "\n".join(rows)


def occurs(words: str, path: Path) -> bool:
    """Search the files of an open database: in a process of its own, as closing a descriptor here drops its locks."""
    files = [str(file) for file in path.parent.glob(f"{path.name}*")]
    return subprocess.run(["grep", "-lF", words, *files], check=False, stdout=subprocess.PIPE).returncode == 0


async def assert_nowhere(words: str, store: ConversationStore, *histories: History) -> None:
    """Check that words are in no row of the store, and in no byte of its file or the outbox files, WAL included.

    The outboxes are closed.
    """
    assert words not in await dump(store)
    if store.url.get_backend_name() == "sqlite":
        await until(lambda: not occurs(words, Path(str(store.url.database))))
    for history in histories:
        path = history.outbox.path
        await until(lambda path=path: not occurs(words, path))  # type: ignore[misc]
        await history.close()
        assert not occurs(words, path)
        assert list(find_problems(path)) == []
    assert [problem async for problem in store_problems(store._runtime.callers_engine)] == []
