"""What tests of erasures ask of stores and outbox files: that words are nowhere."""

import subprocess
from pathlib import Path

import sqlalchemy as sa

from letopis import ConversationStore, History
from letopis.outbox.diagnostics.integrity import find_problems
from letopis.store.database.schema import metadata
from tests.support.relays import until
from tests.support.sayings import problems, rows_of


async def dump(store: ConversationStore) -> str:
    dialect = store._runtime.callers_engine.dialect.name
    tables = [table for table in metadata.sorted_tables if table.info.get("not_on") != dialect]
    return repr([await rows_of(store, sa.select(table)) for table in tables])


def occurs(words: str, path: Path) -> bool:
    """Search the files of an open database: in a process of its own, as closing a descriptor here drops its locks."""
    files = [str(file) for file in path.parent.glob(f"{path.name}*")]
    return subprocess.run(["grep", "-lF", words, *files], check=False, stdout=subprocess.PIPE).returncode == 0


async def assert_nowhere(words: str, store: ConversationStore, *histories: History) -> None:
    """Close the histories, and check that no file and no table has the words, and that all of them are sound."""
    assert words not in await dump(store)
    if store.url.get_backend_name() == "sqlite":
        await until(lambda: not occurs(words, Path(str(store.url.database))))
    for history in histories:
        path = history.outbox.path
        await until(lambda path=path: not occurs(words, path))  # type: ignore[misc]
        await history.close()
        assert not occurs(words, path)
        assert list(find_problems(path)) == []
    assert await problems(store) == []
