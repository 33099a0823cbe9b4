"""Say things to history stores and outboxes, and look at what became of them."""

import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import sqlalchemy as sa

from letopis.ops.verify import find_problems as problems_of_file
from letopis.outbox import History, Relay
from letopis.store import ApplyResult, Body, ConversationStore, EncodedEvent, Event, FaultClass, Message, StoreFault
from letopis.store.database.schema import metadata
from letopis.store.ops.rebuild import rebuild
from letopis.store.ops.verify import find_problems
from letopis.store.testing.outbox import Outbox
from tests.support.relays import until

T = TypeVar("T")
Item = TypeVar("Item", covariant=True)
Bots = tuple[History, History]
"""Two outboxes that feed one store."""
NewStore = Callable[[str], str]
"""From a kind of store to the URL of a fresh database."""


class Pages(Protocol[Item]):
    @property
    def items(self) -> tuple[Item, ...]: ...

    @property
    def next(self) -> str | None: ...


async def send(store: ConversationStore, outbox: Outbox, lane: str, *what: Message | Body | Event) -> ApplyResult:
    """Append to an outbox in memory, and deliver all that is pending there."""
    outbox.append(lane, *what)
    return await outbox.deliver(store)


async def send_encoded(store: ConversationStore, outbox: Outbox, lane: str, *events: EncodedEvent) -> ApplyResult:
    """Do the same with events that are encoded already, as those of records are."""
    outbox.append_encoded(lane, events)
    return await outbox.deliver(store)


async def new_outbox(
    store: ConversationStore, lane: str, *what: Message | Body | Event, name: str = "bot.outbox.db"
) -> Outbox:
    """Return a new outbox in memory that has delivered this."""
    outbox = Outbox(name)
    await send(store, outbox, lane, *what)
    return outbox


async def drain(*histories: History) -> None:
    for history in histories:
        await Relay(history.outbox, history.store).drain()


def present(value: T | None) -> T:
    assert value is not None
    return value


async def all_pages(read: Callable[..., Awaitable[Pages[T]]], *, by: str = "after", most: int = 10_000) -> list[T]:
    """Read page after page to the end, none of them longer than ``most``; by ``before``, the newest come first."""
    found: list[T] = []
    place: dict[str, str] = {}
    for _ in range(10_000):
        page = await read(**place)
        assert len(page.items) <= most
        found = [*page.items, *found] if by == "before" else [*found, *page.items]
        if page.next is None:
            return found
        place = {by: page.next}
    raise AssertionError("the pages do not end")


@contextmanager
def raises_fault(fault_class: FaultClass, code: str, *, match: str | None = None) -> Iterator[None]:
    with pytest.raises(StoreFault, match=match) as caught:
        yield
    assert (caught.value.fault_class, caught.value.code) == (fault_class, code)


async def problems(store: ConversationStore) -> list[str]:
    """Return what `db verify` finds."""
    return [problem async for problem in find_problems(store.runtime.callers_engine)]


async def change(store: ConversationStore, *statements: sa.Executable | str) -> None:
    """Change the rows of a store behind its back, in one transaction."""
    async with store.runtime.callers_engine.begin() as connection:
        for statement in statements:
            await connection.execute(sa.text(statement) if isinstance(statement, str) else statement)


async def rows_of(store: ConversationStore, query: sa.Executable) -> list[Any]:
    async with store.runtime.callers_engine.connect() as connection:
        return list((await connection.execute(query)).all())


async def finish_tasks(store: ConversationStore) -> None:
    while await store.run_pending_tasks():
        pass


async def catch_up_index(store: ConversationStore) -> None:
    while await store.catch_up_search():
        pass


async def differences(store: ConversationStore) -> set[str]:
    """Return in what any conversation's rows differ from its log; nothing is written."""
    return {one async for rebuilt in rebuild(store, check=True, every=True) for one in rebuilt.differences}


def tables_of(store: ConversationStore) -> list[sa.Table]:
    dialect = store.runtime.callers_engine.dialect.name
    return [table for table in metadata.sorted_tables if table.info.get("not_on") != dialect]


async def dump(store: ConversationStore) -> str:
    return repr([await rows_of(store, sa.select(table)) for table in tables_of(store)])


Backup = dict[sa.Table, list[dict[str, Any]]]


async def back_up(store: ConversationStore) -> Backup:
    """Return all rows of a store."""
    return {table: [dict(row._mapping) for row in await rows_of(store, sa.select(table))] for table in tables_of(store)}


async def restore(store: ConversationStore, backup: Backup) -> None:
    """Put all rows of a store back as they were, as the restore of a backup does."""
    inserts = [sa.insert(table).values(row) for table, rows in backup.items() for row in rows]
    await change(store, *map(sa.delete, reversed(backup)), *inserts)


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
        assert list(problems_of_file(path)) == []
    assert await problems(store) == []
