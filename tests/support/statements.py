"""See the statements of a store, above all of the ways that a message takes, and run some over its own connections."""

import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar
from unittest.mock import patch

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store import (
    ConversationActivated,
    ConversationStarted,
    ConversationStore,
    Message,
    MessageEdited,
    MessageRedacted,
)
from letopis.store.database.engines import run_whole
from letopis.store.database.schema import metadata
from letopis.store.database.sqlite_file import FileConnection
from letopis.store.model.records import Scope
from letopis.store.read.paging import Window
from letopis.store.read.reader import Reader, ViewQuery
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.record_changes import CP, put

T = TypeVar("T")


class Statement(NamedTuple):
    text: str
    parameters: Any


@contextmanager
def statements_of(store: ConversationStore) -> Iterator[list[Statement]]:
    ran: list[Statement] = []
    engine = store.runtime.engine
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
    engine = store.runtime.engine

    async def transaction() -> T:
        async with engine.begin() as connection:
            return await work(connection)

    return await run_whole(engine, transaction())


CHAT, OWNER = "chat-1", "anna"
DIVIDED: Final = frozenset(table.name for table in metadata.tables.values() if "partition" in table.columns)
HARMLESS: Final = frozenset(
    {"min", "max", "count", "coalesce", "unnest", "json_each", "any"}  # functions without a state of the server
    | {"set_config"}  # of the transaction
    | {"in", "values", "and", "or", "not", "exists", "from", "join", "when", "as", "v", "varchar", "cast"}
)
"""What may stand before a parenthesis."""
PARTITION_OF: Final = r"(?:\b{0}\.partition (?:=|IN )|= {0}\.partition\b)"
BOUND: Final = r"(?:ANY ?\()?\$"
"""What Citus needs as the partition: it infers none from that of another table."""


async def hot_statements(store: ConversationStore) -> list[Statement]:
    outbox = Outbox()
    scope = Scope.conversation(CHAT).name
    outbox.append(
        CHAT,
        ConversationStarted(owner_id=OWNER),
        ConversationActivated(),
        *(Message.user(f"m {n}", id=f"m-{n}") for n in range(3)),
    )
    outbox.append_encoded(scope, [put(scope, "a", b"1")])
    await outbox.deliver(store)
    with statements_of(store) as statements:
        for bodies in (
            [Message.user("a turn", id="m-9"), Message.assistant("its answer")],
            [MessageEdited(message_id="m-1", content="corrected")],
            [MessageRedacted(message_id="m-2")],
        ):
            outbox.append(CHAT, *bodies)
            await outbox.deliver(store)
        outbox.append_encoded(scope, [put(scope, "a", b"2")])
        await outbox.deliver(store)
        origin = outbox.origin.origin_id
        window = Window(last=50)
        await store.messages(CHAT, last=50)
        await store.messages(CHAT, first=50)
        await store.messages(CHAT, last=5, every=True)
        await store.events(CHAT)
        await store.conversation(CHAT)
        await store.active(OWNER)
        await store.runtime.view(ViewQuery(conversation_id=CHAT, origin_id=origin, window=window))
        await store.runtime.view(ViewQuery(conversation_id=CHAT, origin_id=origin, names=("m-1",)))
        await store.runtime.read(Reader.active_view, OWNER, origin_id=origin)
        await store.lane_heads(origin, [CHAT])
        await store.log(partition=0)
        await store.runtime.snapshot(
            lambda lineage, connection: lineage.reader.records.get(
                connection, Scope.conversation(CHAT), [(CP, b"a")], origin_id=origin
            )
        )
    return statements


def faults_of(statement: Statement, *, bound: bool = False) -> list[str]:
    """Return what keeps an engine from sending a statement to one partition."""
    partition_of = rf"\b{{0}}\.partition = {BOUND}" if bound else PARTITION_OF
    text = re.sub(r"'[^']*'", "", re.sub(r'["`]', "", statement.text))
    if text.startswith("PRAGMA"):
        return []
    called = {name.lower() for name in re.findall(r"\b(\w+)\s*\(", text)} - HARMLESS - metadata.tables.keys()
    found = [f"calls {name}()" for name in sorted(called)]
    if text.startswith("INSERT"):
        return found
    if text.startswith("UPDATE"):
        (table,) = re.findall(r"^UPDATE (letopis_\w+)", text)
        named = re.search(rf"\bWHERE .*\bpartition = {BOUND if bound else ''}", text, re.DOTALL)
        return found if table not in DIVIDED or named else [*found, f"names no partition of {table}"]
    for table, alias in re.findall(r"\b(?:FROM|JOIN)\s+(letopis_\w+)(?:\s+AS\s+(\w+))?", text):
        if table in DIVIDED and not re.search(partition_of.format(alias or table), text):
            found.append(f"names no partition of {alias or table}")
    return found
