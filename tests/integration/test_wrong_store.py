"""An outbox is bound to one history store: any other gets nothing, is not read as its own, and is reported."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from letopis.outbox.event_log.bound_store import StoreBinding, bind_store, read_binding
from letopis.outbox.file.inspection import store_beside
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.history.history import History
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.outbox.relay.store_binding import destination_of
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.store_identity import expect_store
from letopis.store.model.codec import encode
from letopis.store.model.event_types import ConversationStarted
from letopis.store.model.events import Event
from letopis.store.model.messages import Message
from letopis.store.rules.apply_plan import LaneBatch, Origin, SequencedEvent
from tests.support.moves import run_sql
from tests.support.platforms import posix_only
from tests.support.relays import QUICK, drained, end, figures, relay_on, running, say, sql, until
from tests.support.sayings import NewStore, raises_fault

KINDS = ("sqlite", "postgresql", "mariadb")
Urls = tuple[str, str]


@pytest.fixture(params=KINDS)
def urls(request: pytest.FixtureRequest, new_store_url: NewStore) -> tuple[str, str]:
    """Two databases of one kind."""
    return new_store_url(request.param), new_store_url(request.param)


@asynccontextmanager
async def two_stores(first: str, second: str) -> AsyncIterator[tuple[ConversationStore, ConversationStore]]:
    async with ConversationStore.open(first, migrate=True) as one, ConversationStore.open(second, migrate=True) as two:
        yield one, two


async def bound(outbox: OutboxFile) -> StoreBinding:
    return await outbox.read(read_binding)


async def texts(url: str, conversation_id: str = "c") -> list[str]:
    async with ConversationStore.open(url, migrate=True) as store:
        return [one.text for one in await store.messages(conversation_id, last=200)]


async def exchange(url: str, store_id: UUID) -> UUID:
    """Give the database another identity beneath all who have it open, and return the one that it had."""
    async with ConversationStore.open(url) as store:
        before = (await store.identity()).store_id
    table = sa.table("letopis_store", sa.column("store_id", sa.Uuid if "postgres" in url else sa.LargeBinary))
    await run_sql(url, sa.update(table).values(store_id=store_id if "postgres" in url else store_id.bytes))
    return before


async def deliver(outbox: OutboxFile, store: ConversationStore, count: int = 1) -> None:
    await say(outbox, "c", count)
    await relay_on(outbox, store).drain()


async def refused(outbox: OutboxFile, store: ConversationStore, reason: str) -> str:
    """Check that a relay delivers nothing and why; return what it tells of it."""
    relay = relay_on(outbox, store)
    assert await relay.drain() == 0
    assert relay.breaker.reason == reason
    return str(relay.breaker.outage)


class TestBinding:
    """Which store an outbox is bound to, and when."""

    async def test_the_first_delivery_binds(self, outbox: OutboxFile, urls: Urls) -> None:
        assert await bound(outbox) == StoreBinding()
        async with two_stores(*urls) as (store, other):
            await deliver(outbox, store)
            found = StoreBinding(store_id=(await store.identity()).store_id, destination=destination_of(urls[0]))
            assert await bound(outbox) == found
            await say(outbox, "c", 2)
            await refused(outbox, other, "wrong_store identity")
            assert (await figures(outbox)).lanes["ready"] == 1
            assert await other.conversation("c") is None
            assert await bound(outbox) == found
            assert await relay_on(outbox, store).drain() == 2

    async def test_the_store_itself_refuses_in_the_transaction(self, urls: Urls) -> None:
        """Whatever the relay believes: the exchange may come between its look and its delivery."""
        event = encode(Event.of(ConversationStarted(), conversation_id="c"), conversation_id="c")
        batch = [LaneBatch(conversation_id="c", deliveries=(SequencedEvent(sequence=1, event=event),))]
        async with ConversationStore.open(urls[0], migrate=True) as store:
            mine = (await store.identity()).store_id
            origin = Origin(origin_id=uuid4(), epoch=1, name="bot", store_id=uuid4())
            with raises_fault(FaultClass.WRONG_STORE, "identity"):
                await store.apply(origin, batch)
            assert await store.conversation("c") is None
            for store_id in (mine, None):  # None: a caller that delivers without an outbox is bound to nothing
                origin = Origin(origin_id=origin.origin_id, epoch=1, name="bot", store_id=store_id)
                assert (await store.apply(origin, batch)).refused == ()

    async def test_the_one_with_the_right_store_takes_over(self, outbox: OutboxFile, urls: Urls) -> None:
        """The wrong one was first, and would keep the right one standing by for ever."""
        async with two_stores(*urls) as (right, wrong):
            await deliver(outbox, right)
            other = await OutboxFile.open(outbox.path)
            first, second = relay_on(other, wrong), relay_on(outbox, right)
            tasks = [asyncio.create_task(first.run())]
            await until(lambda: first.wrong_store_reason is not None)
            tasks.append(asyncio.create_task(second.run()))
            await say(outbox, "c", 3)
            await drained(outbox)
            await until(lambda: first.wrong_store_reason is None, patience=90)  # it stands by
            for task in tasks:
                await end(task)
            await other.close()
        assert len(await texts(urls[0])) == 4
        assert await texts(urls[1]) == []

    async def test_a_stranger_binds_nothing(self, outbox: OutboxFile) -> None:
        """A relay that was fenced, and one that comes second."""
        first, second = uuid4(), uuid4()
        bind = partial(bind_store, destination="sqlite:////a", erasures=())
        await sql(outbox, "UPDATE letopis_outbox_relay SET incarnation = 3")
        assert await outbox.write(partial(bind, store_id=first, incarnation=99)) == StoreBinding()
        for store_id in (first, second):
            assert (await outbox.write(partial(bind, store_id=store_id, incarnation=0))).store_id == first

    async def test_the_address_follows_the_store(self, outbox: OutboxFile, tmp_path: Path) -> None:
        async with ConversationStore.open(tmp_path / "a.db") as store:
            await deliver(outbox, store)
        (tmp_path / "a.db").rename(tmp_path / "b.db")
        async with ConversationStore.open(tmp_path / "b.db") as store:
            await say(outbox, "c", 1)
            assert await relay_on(outbox, store).drain() == 1
        assert (await bound(outbox)).destination == destination_of(tmp_path / "b.db")


class TestExchange:
    """Another database behind the same address."""

    async def test_readers_do_not_take_another_history_for_theirs(self, tmp_path: Path, urls: Urls) -> None:
        """Reads, search and statistics are answered from the outbox alone; what is pending is not saved."""
        right, wrong = urls
        async with ConversationStore.open(right, migrate=True), ConversationStore.open(wrong, migrate=True):
            pass
        async with History(tmp_path / "theirs.outbox.db", store=wrong) as theirs:
            await (await theirs.append("c", Message.user("foreign words"), owner="42")).saved(20)
        async with History(tmp_path / "bot.outbox.db", store=right) as mine:
            receipt = await mine.append("c", Message.user("my own words"), owner="42")
            assert await receipt.saved(20)

        async with History(tmp_path / "bot.outbox.db", store=wrong, policy=QUICK) as mine:
            receipt = await mine.append("c", Message.user("more of mine"), owner="42")
            assert not await receipt.saved(1.0)
            assert str(await receipt.state()) == "pending"
            page = await mine.messages("c", last=50)
            assert [one.text for one in page] == ["my own words", "more of mine"]
            assert not page.complete
            found = await mine.search("words")
            assert [one.message.text for one in found] == ["my own words"]
            assert not found.complete
            assert not (await mine.statistics()).complete
            assert not (await mine.conversations(owner="42")).complete
            assert (await mine.status()).wrong_store
        assert await texts(wrong) == ["foreign words"]
        async with History(tmp_path / "bot.outbox.db", store=right) as mine:
            assert await mine.drained(20)
        assert await texts(right) == ["my own words", "more of mine"]

    async def test_connection_is_checked_when_new_and_later(self, urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
        async with ConversationStore.open(urls[0], migrate=True) as store:
            mine = (await store.identity()).store_id
            reads = (
                lambda: store.conversation("c"),
                lambda: store.messages("c", last=5),
                lambda: store.messages("c", last=5, as_of=1),
                lambda: store.search("word"),
                lambda: store.statistics(),
                lambda: store.lane_heads(uuid4(), ["c"]),
            )
            with expect_store(mine):
                for read in reads:
                    await read()
            with expect_store(uuid4()):
                for read in reads:
                    with pytest.raises(StoreFault) as found:
                        await read()
                    assert found.value.fault_class is FaultClass.WRONG_STORE
            await exchange(urls[0], uuid4())
            monkeypatch.setattr("letopis.store.database.store_identity.RECHECK_SECONDS", 0.0)
            with expect_store(mine):
                for read in reads:
                    with pytest.raises(StoreFault):
                        await read()


class TestDestination:
    async def test_the_bot_is_the_authority(self, tmp_path: Path) -> None:
        path = tmp_path / "bot.outbox.db"
        for store in (tmp_path / "a.db", tmp_path / "b.db", None):
            async with History(path, store=store, relay=False) as history:
                wanted = destination_of(store_beside(path) if store is None else store)
                assert (await bound(history.outbox)) == StoreBinding(destination=wanted)
        async with History(path, store=tmp_path / "c.db", relay=False, watch=False) as history:
            assert (await bound(history.outbox)).destination == wanted  # who only reads decides nothing

    async def test_a_reader_makes_no_store_where_one_was_named(self, tmp_path: Path) -> None:
        path = tmp_path / "bot.outbox.db"
        async with History(path, store=tmp_path / "elsewhere.db", relay=False) as history:
            await history.append("c", Message.user("hello"))
        async with History(path, relay=False, watch=False) as history:
            page = await history.messages("c", last=5)
            assert [one.text for one in page] == ["hello"]
            assert not page.complete
        assert not store_beside(path).exists()

    async def test_a_store_that_is_gone_is_not_made_anew(self, outbox: OutboxFile, tmp_path: Path) -> None:
        async with ConversationStore.open(tmp_path / "a.db") as store:
            await deliver(outbox, store)
        (tmp_path / "a.db").unlink()
        async with ConversationStore.open(tmp_path / "b.db"):
            pass
        await say(outbox, "c", 1)
        store = ConversationStore(tmp_path / "a.db")
        assert "letopis outbox rebind" in await refused(outbox, store, "misconfigured schema-missing")
        assert not (tmp_path / "a.db").exists()
        await store.close()

    @pytest.mark.parametrize(
        ("place", "spellings"),
        [
            ("postgresql://localhost/x", "postgresql://u:p@LOCALHOST:5432/x postgres://127.0.0.1/x postgresql:///x"),
            ("postgresql://db.example.com:6432/x", "postgresql+psycopg://u@/x?host=DB.example.com&port=6432"),
            ("postgresql://a:5433,b/x", "postgresql://u@/x?host=b:5432&host=a:5433 postgresql://u@a:5433,b/x"),
            ("mariadb://localhost/a", "mysql://root:s%40t@127.0.0.1:3306/a mysql://h/a?unix_socket=/run/m.sock"),
        ],
    )
    def test_spellings_of_one_place(self, place: str, spellings: str) -> None:
        assert {destination_of(one) for one in spellings.split()} == {place}

    @posix_only("file names are text on Windows")
    async def test_a_name_that_is_no_text_is_a_place_too(self, tmp_path: Path) -> None:
        store = os.fsdecode(os.fsencode(tmp_path) + b"/h\xff.db")
        async with History(tmp_path / "bot.outbox.db", store=store) as history:
            assert await (await history.append("c", Message.user("hello"))).saved(20)
            assert str((await history.status()).store.destination).endswith("/h\\udcff.db")

    @posix_only("links take rights on Windows")
    def test_a_link_is_the_file_that_it_names(self, tmp_path: Path) -> None:
        (tmp_path / "real.db").touch()
        (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
        assert destination_of(tmp_path / "link.db") == destination_of(f"sqlite:///{tmp_path}/real.db")
        assert destination_of(tmp_path / "real.db") != destination_of(tmp_path / "other.db")


class TestVerbs:
    """What an operator does about it."""

    async def test_rebinding_fences_what_a_running_relay_has_under_way(self, outbox: OutboxFile, urls: Urls) -> None:
        async with two_stores(*urls) as (old, new):
            relay = relay_on(outbox, old)
            async with running(relay):
                await say(outbox, "c", 2)
                await drained(outbox)
                await OutboxAdmin(outbox).rebind(new)
                await say(outbox, "c", 1)
                await until(lambda: relay.wrong_store_reason is not None)
                assert len(await texts(urls[0])) == 2
            await relay_on(outbox, new).drain()
        assert len(await texts(urls[1])) == 3

    async def test_missing_events_are_not_given_up_for_another_store(self, outbox: OutboxFile, urls: Urls) -> None:
        async with two_stores(*urls) as (right, wrong):
            await deliver(outbox, right, 3)
            await say(outbox, "c", 1)
            await sql(outbox, "UPDATE letopis_outbox_lanes SET state = 'blocked', fault_class = 'lost'")
            with pytest.raises(StoreFault, match="bound to"):
                await OutboxAdmin(outbox).skip_missing(wrong, "c", reason="no")
