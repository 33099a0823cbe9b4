"""A store whose tables Citus spreads over hosts; needs LETOPIS_TEST_CITUS."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from letopis import History, migrations
from letopis.ops.doctor.check_spread import check_spread
from letopis.ops.doctor.finding import Severity
from letopis.store import ConversationStarted, ConversationStore, Held, Message, Page
from letopis.store.database.migrations import STORE, Migrations, upgrade
from letopis.store.database.schema import lanes, owners
from letopis.store.model.identifiers import partition_of
from letopis.store.ops.move import move
from letopis.store.ops.rebuild import rebuild
from letopis.store.read.reader import Reader
from letopis.store.testing import DestinationStoreConformance
from letopis.store.testing.outbox import Outbox
from tests.conformance.tables import LooksIntoTables
from tests.support.moves import Writer, dump, fill, held, sound
from tests.support.sayings import NewStore, problems
from tests.support.servers import CitusServer
from tests.support.servers.citus import PARTITIONS, CitusPool, make_spread_store
from tests.support.servers.store_pool import StorePool
from tests.support.statements import OWNER, Statement, hot_statements, over, statements_of


@pytest.fixture(scope="module")
def spread_stores(citus_server: CitusServer) -> Iterator[StorePool]:
    with closing(CitusPool(citus_server, make_spread_store)) as pool:
        yield pool


@pytest.fixture
def spread_store_url(spread_stores: StorePool) -> Iterator[str]:
    url = spread_stores.take()
    yield url
    spread_stores.give_back(url)


@pytest.fixture
async def spread_store(spread_store_url: str) -> AsyncIterator[ConversationStore]:
    async with ConversationStore.open(spread_store_url) as opened:
        assert await opened.partitions() == PARTITIONS
        yield opened


@pytest.fixture
def own_spread_url(citus_server: CitusServer) -> Iterator[str]:
    """A database whose tables a test may change."""
    url = citus_server.create_database()
    yield url
    citus_server.drop_database(url)


@pytest.mark.slow
class TestSpreadStore(LooksIntoTables, DestinationStoreConformance):
    """The published contract."""

    @pytest.fixture
    def store(self, spread_store: ConversationStore) -> ConversationStore:
        return spread_store


def tasks_of(plan: object) -> Iterator[int]:
    match plan:
        case dict():
            if "Task Count" in plan:
                yield plan["Task Count"]
            for part in plan.values():
                yield from tasks_of(part)
        case list():
            for part in plan:
                yield from tasks_of(part)


async def tasks(store: ConversationStore, statement: Statement) -> int:
    """Return in how many parts Citus runs a statement."""
    async with store.runtime.engine.connect() as connection:
        plan = await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement.text}", statement.parameters)
        return sum(tasks_of(plan.scalar_one()))


async def test_each_hot_statement_is_one_task_of_one_host(spread_store: ConversationStore) -> None:
    statements = {one.text: one for one in await hot_statements(spread_store)}
    planned = [one for one in statements.values() if one.text.startswith(("SELECT", "UPDATE", "INSERT", "DELETE"))]

    assert len(planned) > 20
    assert {one.text: count for one in planned if (count := await tasks(spread_store, one)) != 1} == {}


async def test_a_list_of_an_owner_is_a_task_of_each_shard(spread_store: ConversationStore) -> None:
    """The control."""
    with statements_of(spread_store) as statements:
        await spread_store.conversations(owner=OWNER)
    (statement,) = [one for one in statements if "letopis_conversations" in one.text]

    assert await tasks(spread_store, statement) > 1


@pytest.mark.parametrize(("messages", "prepares"), [(2, False), (60, True)])
async def test_a_delivery_reaches_one_host(spread_store: ConversationStore, messages: int, prepares: bool) -> None:
    """And a small one is one COMMIT there. The COPY of a large one has it prepared first."""
    outbox = Outbox()
    outbox.append("chat", Message.user("the first"))
    await outbox.deliver(spread_store)
    sent: list[tuple[str, str]] = []
    engine = spread_store.runtime.engine
    await engine.dispose()

    def listen(connection: Any, _: Any) -> None:
        connection.driver_connection.add_log_listener(
            lambda _, message: sent.append((message.message, message.detail or ""))
        )

    event.listen(engine.sync_engine, "connect", listen)
    async with engine.connect() as connection:
        await connection.exec_driver_sql("SET citus.log_remote_commands = on")
        await connection.commit()
    outbox.append("chat", *(Message.user(f"message {number}") for number in range(messages)))
    await outbox.deliver(spread_store)

    assert len({host for _, host in sent if host}) == 1
    assert any("INSERT INTO" in text or "COPY" in text for text, _ in sent)
    assert any("PREPARE TRANSACTION" in text for text, _ in sent) is prepares


async def test_what_spans_conversations_is_found(spread_store: ConversationStore) -> None:
    outbox = Outbox()
    for number in range(20):
        said = [Message.user(f"tea {text}", id=f"{text}", author="ann") for text in ("one", "two")]
        outbox.append(f"chat-{number}", ConversationStarted(owner_id=f"owner-{number % 3}"), *said)
    await outbox.deliver(spread_store)
    await spread_store.catch_up_search()

    assert len(await spread_store.search("tea", limit=100)) == 40
    assert len(await spread_store.search("two", owner="owner-1", limit=100)) == 7
    found = await spread_store.runtime.read(Reader.authored, "ann", after=None, limit=100)
    assert len({(message.conversation_id, message.id) for message in found}) == 40
    assert await problems(spread_store) == []


async def test_each_host_takes_deliveries(spread_store: ConversationStore, citus_server: CitusServer) -> None:
    outbox = Outbox()
    for number, (host, port) in enumerate(citus_server.hosts()):
        url = spread_store.url.set(host=host, port=port)
        async with ConversationStore.open(url) as store:
            outbox.append("chat", Message.user(f"through {number}"))
            await outbox.deliver(store)
            messages = await store.messages("chat")

            assert [message.text for message in messages] == [f"through {earlier}" for earlier in range(number + 1)]


@pytest.mark.parametrize("count", [1, 60])
async def test_a_row_that_is_there_is_refused_as_such(spread_store: ConversationStore, count: int) -> None:
    """Also in a COPY, where a host's code does not come through: an apply that lost a race is run again."""
    rows = [(0, f"owner-{number}", None, None, 1, None, None) for number in range(count)]
    dialect = spread_store.runtime.dialect
    await over(spread_store, lambda connection: dialect.insert(connection, owners, rows))
    with pytest.raises(IntegrityError):
        await over(spread_store, lambda connection: dialect.insert(connection, owners, rows))


@pytest.mark.slow
async def test_a_history_moves_there_and_back_while_bots_go_on(own_spread_url: str, new_store_url: NewStore) -> None:
    source, back = new_store_url("sqlite"), new_store_url("postgresql")
    await fill(source, talks=3, each=15)
    await make_spread_store(own_spread_url)
    async with Writer(source, own_spread_url).running() as writer:
        await move(source, own_spread_url)
    assert await held(own_spread_url, *writer.said()) == writer.said()
    assert await sound(own_spread_url) == []

    before = await dump(own_spread_url)
    await move(own_spread_url, back)
    assert await dump(back) == before
    assert await sound(back) == []


@pytest.mark.parametrize("held", [True, False])
async def test_a_partition_stays_on_its_host_until_the_end_of_a_transaction(
    spread_store: ConversationStore, citus_server: CitusServer, held: bool
) -> None:
    """Without it, a transaction that has locked a row would write to a host that has handed the partition over."""
    outbox = Outbox()
    outbox.append("chat", Message.user("here"))
    await outbox.deliver(spread_store)
    partition = partition_of("chat", PARTITIONS)
    move = partial(citus_server.move_partition, spread_store.url.database, partition)
    host, port = citus_server.hosts()[1]
    async with ConversationStore.open(spread_store.url.set(host=host, port=port)) as store:
        await store.partitions()
        dialect = store.runtime.dialect
        locked = dialect.locked(sa.select(lanes).where(lanes.c.partition == partition))
        async with store.runtime.engine.begin() as connection:
            if held:
                await dialect.hold(connection, [partition])
            await connection.execute(locked)
            moving = asyncio.create_task(asyncio.to_thread(move))
            done, _ = await asyncio.wait({moving}, timeout=5)
            assert bool(done) is not held
        await moving

    assert len(await spread_store.messages("chat")) == 1


async def test_a_later_revision_changes_spread_tables(own_spread_url: str, tmp_path: Path) -> None:
    await make_spread_store(own_spread_url)
    location = tmp_path / "store"
    shutil.copytree(Path(migrations.__path__[0]) / "store", location)
    (location / "versions/0002_later.py").write_text(LATER)
    later = Migrations(location=f"{location}", version_table=STORE.version_table, head="0002")
    async with ConversationStore.open(own_spread_url) as store:
        outbox = Outbox()
        outbox.append("chat", Message.user("before"))
        await outbox.deliver(store)
        async with store.runtime.engine.begin() as connection:
            await connection.run_sync(upgrade, later)
        async with store.runtime.engine.begin() as connection:
            added = sa.text("SELECT mood FROM letopis_messages WHERE partition = 0 OR mood = 1")
            indexes = sa.text("SELECT result FROM run_command_on_shards('letopis_events', $$ " + _COUNT + " $$)")

            assert list((await connection.execute(added)).scalars()) == [1]
            assert {row[0] for row in await connection.execute(indexes)} == {"1"}
            assert (await connection.exec_driver_sql(STORE.query)).scalars().all() == ["0002"]


_COUNT = "SELECT count(*) FROM pg_indexes WHERE tablename = '%s' AND indexname LIKE 'ix_letopis_events_later%%'"
LATER = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade():
    op.add_column("letopis_messages", sa.Column("mood", sa.SmallInteger, nullable=False, server_default="1"))
    op.add_column("letopis_origins", sa.Column("mood", sa.SmallInteger))
    op.create_index("ix_letopis_events_later", "letopis_events", ["type"])
"""


@pytest.mark.parametrize(
    ("change", "level", "said"),
    [
        (None, Severity.OK, r"spread over \d hosts: 16 partitions in 4 shards"),
        ("SELECT undistribute_table('letopis_tasks')", Severity.FAIL, "not spread as the others are: letopis_tasks"),
        ("SET citus.max_adaptive_executor_pool_size = 16", Severity.WARN, r"pool_size is 16, not 1"),
        ("DELETE FROM letopis_log_heads WHERE partition > 2", Severity.WARN, "some of which stay empty"),
    ],
)
async def test_doctor_tells_how_it_is_spread(
    own_spread_url: str, change: str | None, level: Severity, said: str
) -> None:
    await make_spread_store(own_spread_url)
    async with ConversationStore.open(own_spread_url) as store:
        await store.partitions()

        async def look(connection: Any) -> Any:
            if change is not None:
                await connection.exec_driver_sql(change)
            return await check_spread(connection)

        finding = await over(store, look)

    assert finding.level is level
    assert re.search(said, finding.said)


@pytest.mark.slow
async def test_the_work_of_a_bot(spread_store: ConversationStore, tmp_path: Path) -> None:
    """All that a bot and its operator do, whatever the hosts that it concerns."""
    async with History(tmp_path / "bot.outbox.db", store=spread_store, watch=False) as history:
        for number in range(12):
            said = [
                Message.user(f"tea {number}", id=f"u{number}"),
                Message.assistant(f"answer {number}", id=f"a{number}"),
            ]
            await history.append(f"chat-{number}", *said, owner=f"owner-{number % 3}")
        chat = history.chat("chat-1")
        await chat.edit("a1", "a better answer")
        await chat.react("a1", "+1")
        await chat.redact("u1", reason="private")
        await history.append("chat-1", Message.user("once more"), Message.assistant("a third answer"))
        await chat.fork("branch")
        await history.append("branch", Message.user("in the branch"))
        await chat.undo()
        await history.chat("chat-2").rename("Two")
        await history.chat("chat-2").archive()
        await history.chat("chat-4").activate(owner="owner-1")
        records = history.records(conversation="chat-5")
        await records.put(("checkpoints",), "a", {"step": 1}, tags={"kind": "checkpoint"})
        assert await history.drained(30)

        assert [message.text for message in await history.messages("chat-1")][-1] == "a better answer"
        assert [message.text for message in await history.messages("branch")][-1] == "in the branch"
        assert len(await history.messages("branch")) == 5
        assert len(await history.conversations(owner="owner-2", states=("active", "archived"))) == 4
        assert (await history.active("owner-1", create=False)).conversation_id == "chat-4"
        found = await records.get(("checkpoints",), "a")
        assert found is not None and found.value == {"step": 1}
        assert len((await history.records.find({"kind": "checkpoint"})).items) == 1
        await spread_store.catch_up_search()
        assert {hit.message.id for hit in await history.search("tea", owner="owner-0")} == {"u0", "u3", "u6", "u9"}
        assert (await history.statistics()).messages > 20
        await spread_store.erasures.hold("conversation", "chat-0", reason="a case")
        with pytest.raises(Held):
            await history.erase(owner="owner-0", how="delete")
        assert await spread_store.erasures.release("conversation", "chat-0")
        await history.erase(owner="owner-0", how="delete")
        assert await history.drained(30)
        while await spread_store.run_pending_tasks():
            pass
        assert await history.conversations(owner="owner-0") == Page(())
    assert await problems(spread_store) == []
    assert [one async for one in rebuild(spread_store, check=True) if one.difference_count] == []
