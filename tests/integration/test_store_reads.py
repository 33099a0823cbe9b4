"""Reads find their rows by an index in the order of the answer, however much the store holds."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks.backlogs import Backlog
from letopis.outbox import History
from letopis.store import (
    ConversationRewound,
    ConversationStarted,
    ConversationStore,
    Message,
    MessageSent,
    ReactionAdded,
)
from letopis.store.read.paging import Window
from letopis.store.read.reader import StoreView, ViewQuery
from letopis.store.testing.outbox import Outbox
from tests.conftest import STORES
from tests.support.platforms import open_descriptors, own_threads
from tests.support.sayings import new_outbox, present, send
from tests.support.servers.postgresql import in_own_loop
from tests.support.statements import over, statements_of

MANY = 2_000
Filled = tuple[ConversationStore, Outbox]


@pytest.fixture(scope="module", params=STORES)
def filled_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Outbox]]:
    """Four thousand conversations, and one of four thousand events; the planner has seen them."""
    outbox = Outbox()
    for number in range(MANY):
        outbox.append(f"chat-{number}", ConversationStarted(owner_id=f"owner-{number % 2}"))
        # Of two owners alone, every planner would rather read both.
        outbox.append(f"only-{number}", ConversationStarted(owner_id=f"of-one-{number}"))
    for number in range(MANY):
        outbox.append("long", Message.user("x" * 500, id=f"m-{number}"), MessageSent(message_id=f"m-{number}"))

    async def fill(url: str) -> None:
        async with ConversationStore.open(url, migrate=True) as store:
            await send(store, outbox, "plain", *(Message.user("x") for _ in range(60)))
            await over(store, analyse)

    pool = None if request.param == "sqlite" else request.getfixturevalue(f"{request.param}_stores")
    url = f"sqlite:///{tmp_path_factory.mktemp('reads') / 'store.db'}" if pool is None else pool.take()
    in_own_loop(fill(url))
    yield url, outbox
    if pool is not None:
        pool.give_back(url)


@pytest.fixture
async def filled(filled_url: tuple[str, Outbox]) -> AsyncIterator[Filled]:
    url, outbox = filled_url
    async with ConversationStore.open(url) as store:
        yield store, outbox


async def analyse(connection: AsyncConnection) -> None:
    names = "letopis_events, letopis_messages, letopis_conversations, letopis_lanes, letopis_owners"
    await connection.exec_driver_sql(
        f"ANALYZE TABLE {names}" if connection.dialect.name in ("mysql", "mariadb") else "ANALYZE"
    )


Explained = list[str]


async def explained(store: ConversationStore, read: Callable[[], Awaitable[object]]) -> list[tuple[str, Explained]]:
    """The statements of a read, each with how the database runs it."""
    with statements_of(store) as ran:
        await read()

    async def explain(connection: AsyncConnection) -> list[tuple[str, Explained]]:
        told = []
        prefix = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        for statement, parameters in ran:
            if statement.startswith(("SELECT", "WITH")):
                rows = await connection.exec_driver_sql(f"{prefix} {statement}", parameters)
                told.append((statement, [" ".join(str(value) for value in row) for row in rows]))
        return told

    return await over(store, explain)


def complaints(kind: str, plan: Explained) -> list[str]:
    """What of a plan reads more rows than it gives back, or sorts them."""
    bad = {
        "sqlite": ("SCAN", "TEMP B-TREE", "AUTOMATIC"),
        "postgresql": ("Seq Scan", "Sort", "Materialize"),
        "mariadb": (" ALL ", "filesort", "temporary", " index "),
    }
    # The page that was cut out of the index is then read whole; one row that is kept at hand is no list of them.
    # A list that was bound is looked up one by one.
    # The marks of long work are looked up a row, in a table that is all but empty.
    fine = ("SCAN m", "<derived2>", "<derived3>", "VIRTUAL TABLE", "Seq Scan on letopis_tasks")
    return [
        line
        for line in plan
        if any(word in line.replace("Using index condition", "") for word in bad[kind])
        and not any(word in line for word in fine)
        and not ("Materialize" in line and "rows=1 " in line)
    ]


def query_of(name: str, outbox: Outbox, window: Window) -> ViewQuery:
    return ViewQuery(conversation_id=name, origin_id=outbox.origin.origin_id, window=window)


async def in_one(store: ConversationStore, query: ViewQuery) -> StoreView | None:
    """Return a view as a server is asked for it."""
    return await store.runtime.read(lambda reader, connection: reader.view_in_one(connection, query))


def reads(store: ConversationStore, outbox: Outbox) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every read of which there may be many in a second, at the awkward place."""
    origin_id = outbox.origin.origin_id
    return {
        "conversation": lambda: store.conversation("chat-77"),
        "newest messages": lambda: store.messages("long", last=50),
        "messages before": lambda: store.messages("long", last=50, before=2_000),
        "messages after": lambda: store.messages("long", first=50, after=2_000),
        "view": lambda: store.runtime.view(query_of("long", outbox, Window(last=50))),
        "view by place": lambda: store.runtime.view(
            replace(query_of("long", outbox, Window(last=50)), names=("m-1", "m-2"))
        ),
        "events": lambda: store.events("long", after=2_000, first=50),
        "lane heads": lambda: store.lane_heads(origin_id, ["chat-1", "chat-2", "long"]),
        "own conversations": lambda: store.conversations(owner="owner-1", limit=10),
        "conversations": lambda: store.conversations(limit=10),
    }


async def test_every_read_goes_by_an_index(filled: Filled) -> None:
    store, outbox = filled
    kind = store.runtime.engine.dialect.name
    every, wrong = reads(store, outbox), {}
    for owner in (None, "owner-1"):
        page = await store.conversations(owner=owner, limit=10)
        every[f"the next page of {owner}"] = partial(store.conversations, owner=owner, after=page.next, limit=10)
    for name, read in every.items():
        plans = await explained(store, read)
        assert plans, name
        assert not name.startswith("the next page") or len(plans) == 2  # the page, and which of it are active
        for statement, plan in plans:
            if found := complaints(kind, plan):
                # A whole list, newest first, is read from its end: that is an index scan without a condition.
                backward = name == "conversations" and any("ix_letopis_conversations_updated" in line for line in found)
                if not backward:
                    wrong[name] = statement, found
            assert "OFFSET" not in statement.upper().split("LIMIT")[0]
    assert wrong == {}

    # The control: a condition on a column without an index.
    titles = sa.text("SELECT title FROM letopis_conversations ORDER BY title")
    [(_, plan)] = await explained(store, lambda: over(store, lambda connection: connection.execute(titles)))
    assert complaints(kind, plan) != []


async def test_messages_and_views_take_one_and_two_round_trips(filled: Filled) -> None:
    store, outbox = filled

    # One statement more for messages that are more than appended: in a file, which is read in one hop, each time;
    # on a server the first time, after which the conversation is read whole at once.
    more = 1 if store.runtime.embedded else 0
    assert len(await explained(store, lambda: store.messages("long", last=50))) == 2
    assert len(await explained(store, lambda: store.messages("long", last=50))) == 1 + more
    view = await explained(store, lambda: store.runtime.view(query_of("long", outbox, Window(last=50))))
    assert len(view) == (1 if not store.runtime.embedded else 2 + more)
    # Where a page shows that there is no more to them, the few columns do again.
    plain = [await explained(store, lambda: store.messages("plain", last=50)) for _ in range(2)]
    assert [len(one) for one in plain] == [1, 1]


async def test_an_everyday_read_is_one_statement_and_says_what_a_view_says(filled: Filled) -> None:
    store, outbox = filled
    windows = [Window(last=5), Window(first=5), Window(last=5, before=9), Window(first=3, after=50), Window()]
    for window in windows:
        query = query_of("plain", outbox, window)
        found = await in_one(store, query)
        view = await store.runtime.view(replace(query, whole=True))

        assert found is not None, window
        assert found.plain and view.conversation is not None
        assert found == replace(view, conversation=None, plain=True), window
        assert (found.sequence, found.version) == (60, 60)
    other = present(await in_one(store, query_of("plain", Outbox(), Window(last=5))))
    assert other.sequence == 0  # of an outbox that delivered nothing of it
    if not store.runtime.embedded:
        [(statement, plan)] = await explained(store, lambda: in_one(store, query_of("plain", outbox, Window(last=5))))
        assert complaints(store.runtime.engine.dialect.name, plan) == [], statement


async def test_one_statement_tells_all_that_a_view_does_or_leaves_it_to_a_snapshot(store: ConversationStore) -> None:
    outbox = await new_outbox(store, "plain", *(Message.user("x") for _ in range(60)))
    outbox.append("chat-1", ConversationStarted(owner_id="owner-1"))
    outbox.append("fork", ConversationStarted(forked_from={"conversation_id": "plain", "version": 3}))
    outbox.append("fork", Message.user("its own"))
    outbox.append("marked", Message.user("one", id="m1"), ReactionAdded(message_id="m1", key="+1"))
    outbox.append("cleared", Message.user("one"), ConversationRewound(to_message_id=None))
    await outbox.deliver(store)

    for name, told in {"fork": False, "cleared": False, "marked": True, "chat-1": False, "nowhere": True}.items():
        query = query_of(name, outbox, Window(last=5))
        view = await store.runtime.view(replace(query, whole=True))
        for _ in range(2):  # also when it is known
            found = await in_one(store, query)
            assert (found is not None) == told, name
            if found is not None:
                assert found == replace(view, conversation=None, plain=view.conversation is not None), name


async def test_a_table_that_the_planner_believes_empty_is_read_by_version(store_url: str) -> None:
    """What a server knows of a table, it counts now and then; in between it would read the whole log."""
    async with ConversationStore.open(store_url, migrate=True) as store:
        outbox = await new_outbox(store, "chat", *(Message.user("x") for _ in range(300)))
        kind = store.runtime.engine.dialect.name
        for read in (
            partial(store.messages, "chat", last=50),
            partial(in_one, store, query_of("chat", outbox, Window(last=50))),
        ):
            for statement, plan in await explained(store, read):
                if kind == "mariadb":
                    [looked_up] = [line for line in plan if " e " in line]
                    assert " eq_ref " in looked_up, statement
                if kind == "postgresql" and "letopis_events AS e " in statement:
                    looked_up = plan[
                        next(index for index, line in enumerate(plan) if line.endswith(" e ") or " e  (" in line) + 1
                    ]
                    assert "version = " in looked_up, (statement, plan)


# --- What speed rests on and no machine changes: statements per delivery, rows per read, threads per file ---


CONVERSATIONS = 8


async def test_a_delivery_takes_as_many_statements_for_many_events_as_for_few(store_url: str, tmp_path: Path) -> None:
    backlog = await Backlog.open(tmp_path / "bot.outbox.db", store_url)
    statements = []
    try:
        await backlog.owe(conversations=CONVERSATIONS, each=1, text="hello")  # registers the outbox
        await backlog.drain()
        for each in (1, 12):
            await backlog.owe(conversations=CONVERSATIONS, each=each, text="hello")
            with statements_of(backlog.store) as ran:
                assert (await backlog.drain())[0] == CONVERSATIONS * each
            statements.append(ran)
    finally:
        await backlog.close()

    few, many = statements
    assert len(many) <= len(few), "\n".join(
        text for text, _ in many
    )  # fewer where many rows are copied rather than inserted
    assert len(few) <= 30, "\n".join(text for text, _ in few)


async def test_a_file_costs_few_threads_and_descriptors(tmp_path: Path) -> None:
    files = 6
    async with AsyncExitStack() as stack:
        for number in range(files + 1):
            history = await stack.enter_async_context(
                History(tmp_path / f"{number}.outbox.db", store=f"sqlite:///{tmp_path}/{number}.db", relay=False)
            )
            await history.append("chat", Message.user("hello"))
            if number == 0:  # what the process opens once
                threads, descriptors = own_threads(), open_descriptors()
        each_threads = (own_threads() - threads) / files
        each_descriptors = (open_descriptors() - descriptors) / files
    assert each_threads <= 3, each_threads
    assert each_descriptors <= 12, each_descriptors
