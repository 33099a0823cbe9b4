"""See the statements of a store, and run some over its own connections."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store import ConversationStore
from letopis.store.database.engines import run_whole
from letopis.store.database.sqlite_file import FileConnection

T = TypeVar("T")


class Statement(NamedTuple):
    """A statement as the driver gets it."""

    text: str
    parameters: Any


@contextmanager
def statements_of(store: ConversationStore) -> Iterator[list[Statement]]:
    """The statements that a store runs meanwhile."""
    ran: list[Statement] = []
    engine = store._runtime.engine
    if engine.dialect.name == "sqlite":
        real = FileConnection.run

        def run(self: FileConnection, text: str, values: Any = (), **named: Any) -> Any:
            if text != "COMMIT":
                ran.append(Statement(text, values))
            return real(self, text, values, **named)

        with patch.object(FileConnection, "run", run):
            yield ran
        return

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        ran.append(Statement(statement, parameters))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield ran
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


async def over(store: ConversationStore, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Return what ``work`` returns over a connection of the store, in a transaction of its own."""
    engine = store._runtime.engine

    async def transaction() -> T:
        async with engine.begin() as connection:
            return await work(connection)

    return await run_whole(engine, transaction())
