"""Opening anywhere: on first use, from any loop and thread, once for all histories on a file."""

import asyncio
import gc
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from letopis.outbox import BlockingHistory, Bounds, History, Retention
from letopis.outbox.concurrency.home_loop import LoopEnded
from letopis.outbox.history.options import Options
from letopis.outbox.history.sharing import REGISTRY
from letopis.outbox.sync.portal import InEventLoop
from letopis.store import (
    Closed,
    ConfigurationError,
    ConversationStore,
    InvalidInput,
    Message,
    OutboxUnavailable,
    components,
)
from letopis.store.database.migrations import ALEMBIC_LOCK
from tests.support.platforms import open_descriptors, own_threads

T = TypeVar("T")
SOON = 20.0


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    yield
    assert REGISTRY.outboxes == []


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    """A history that nothing has opened yet."""
    unopened = History(tmp_path / "bot.outbox.db", relay=False)
    yield unopened
    await unopened.close()


@contextmanager
def another_loop() -> Iterator[Callable[[Awaitable[Any]], Any]]:
    """An event loop in a thread of its own; what is given runs coroutines in it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(SOON)

    try:
        yield run
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(SOON)
        loop.close()


async def elsewhere(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return await asyncio.to_thread(lambda: asyncio.run(work()))


async def texts(history: History, conversation_id: str = "c1") -> list[str]:
    return [one.text for one in await history.messages(conversation_id, last=None)]


async def last_texts(history: History) -> list[str]:
    async with history:
        return await texts(history)


@pytest.mark.parametrize("first", ["read", "reply"])
async def test_whatever_comes_first_opens_it(history: History, first: str) -> None:
    if first == "reply":
        async with history.reply("c1") as reply:
            await reply.add("tea")
    assert await texts(history) == ["tea"] * (first == "reply")


async def test_what_belongs_to_the_loop_is_there_once_it_is_open(history: History, tmp_path: Path) -> None:
    for name in ("outbox", "store", "relay"):
        with pytest.raises(Closed, match=r"not open yet: await history.prepare\(\)"):
            getattr(history, name)
    await history.prepare()
    assert history.outbox.path == tmp_path / "bot.outbox.db"
    assert history.relay is None


async def test_a_failure_is_raised_by_each_use_until_the_cause_is_gone(tmp_path: Path) -> None:
    threads, descriptors = own_threads(), open_descriptors()
    history = History(tmp_path / "missing" / "bot.outbox.db", relay=False)
    errors = await asyncio.gather(*(history.append("c1", Message.user("x")) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in errors] == [ConfigurationError] * 3
    with pytest.raises(ConfigurationError, match="folder"):
        await history.messages("c1")
    gc.collect()
    # What other tests have left may be closed meanwhile.
    assert own_threads() <= threads and open_descriptors() <= descriptors

    (tmp_path / "missing").mkdir()

    await history.append("c1", Message.user("now"))
    assert await texts(history) == ["now"]
    await history.close()


async def test_a_first_use_that_is_cancelled_leaves_nothing_open(tmp_path: Path) -> None:
    threads = own_threads()
    for pause in (0, 0, 0.001, 0.01, 0.05):
        history = History(tmp_path / "bot.outbox.db", relay=False)
        task = asyncio.create_task(history.append("c1", Message.user("x")))
        await asyncio.sleep(pause)
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled() or (history._home._outbox is not None and history._home.loop is not None):
            await history.close()  # it is open, or was, and the append was cancelled
        assert REGISTRY.outboxes == []
    assert own_threads() <= threads


async def test_an_option_or_keyword_that_is_none_is_refused(history: History) -> None:
    assert list(inspect.signature(History).parameters) == [option.name for option in fields(Options)]
    with pytest.raises(TypeError, match="ralay"):
        History("bot.outbox.db", ralay=False)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="ownr"):
        await history.append("c1", Message.user("hi"), ownr=42)  # type: ignore[call-arg]
    assert (await history.status()).pending == 0


@pytest.mark.parametrize("where", ["another task", "another loop and thread"])
async def test_it_is_closed_from_anywhere_and_any_number_of_times(tmp_path: Path, where: str) -> None:
    history = History(tmp_path / "bot.outbox.db")
    await history.append("c1", Message.user("hi"))
    await (asyncio.create_task(history.close()) if where == "another task" else elsewhere(history.close))

    assert REGISTRY.outboxes == []
    await asyncio.gather(history.close(), history.close())
    for use in (history.messages("c1"), history.append("c1", Message.user("x")), history.prepare()):
        with pytest.raises(Closed, match="the history is closed"):
            await use
    with pytest.raises(Closed):
        await history.transaction().__aenter__()


@pytest.mark.parametrize("opening", [False, True])
async def test_closing_waits_for_an_opening_and_begins_none(history: History, tmp_path: Path, opening: bool) -> None:
    using = [asyncio.create_task(history.append("c1", Message.user("x")))] if opening else []
    await asyncio.sleep(0)
    await history.close()
    for use in (*using, history.append("c1", Message.user("x"))):
        with pytest.raises(Closed):
            await use
    assert (tmp_path / "bot.outbox.db").exists() is opening


async def test_a_task_in_a_transaction_does_not_close_what_it_waits_for(history: History) -> None:
    async with history.transaction() as tx:
        await tx.append("c1", Message.user("hi"))
        with pytest.raises(OutboxUnavailable, match="end it before closing"):
            await history.close()
    assert await texts(history) == ["hi"]


async def test_every_kind_of_call_works_from_another_loop(tmp_path: Path) -> None:
    history = History(tmp_path / "bot.outbox.db")
    await history.prepare()

    async def foreign() -> list[str]:
        asked = await history.append("c1", Message.user("hi", id="m1"), owner="42")
        await history.chat("c1").edit("m1", "hi!")
        async with history.transaction() as tx:
            await tx.execute(sa.text("CREATE TABLE mine (n INTEGER)"))
            await tx.append("c1", Message.assistant("in it"))
            with pytest.raises(OutboxUnavailable, match=r"tx\.append"):
                await history.append("c1", Message.user("beside it"))
            with pytest.raises(Closed, match=r"tx\.execute"):
                tx.connection  # noqa: B018 - it raises
            assert await tx.scalar(sa.text("SELECT count(*) FROM mine")) == 0
        assert (await history.records(conversation="c1").put(("cp",), "key", 1)).revision is not None
        async with history.reply("c1") as reply:
            for piece in ("a ", "leaf"):
                await reply.add(piece)
            assert reply.text == "a leaf"
        confirmed = await reply.sent()
        assert await asked.saved(timeout=SOON)
        assert await confirmed.state() is not None
        assert await history.drained(timeout=SOON)
        assert len(await history.search("leaf")) == 1
        return await texts(history)

    assert await elsewhere(foreign) == await texts(history) == ["hi!", "in it", "a leaf"]
    await history.close()


async def test_where_it_is_awaited_decides_not_where_it_is_called(history: History) -> None:
    await history.prepare()
    made_here = history.append("c1", Message.user("hi"))
    await elsewhere(lambda: made_here)
    assert await texts(history) == ["hi"]


async def test_errors_and_rollbacks_of_another_loop_are_those_of_one(history: History) -> None:
    await history.prepare()
    mine = RuntimeError("mine")

    async def foreign() -> None:
        with pytest.raises(InvalidInput):
            await history.append("", Message.user("x"))
        with pytest.raises(RuntimeError) as raised:  # noqa: PT012 - the end of the block is part of it
            async with history.transaction() as tx:
                receipt = await tx.append("c1", Message.user("rolled back"))
                raise mine
        assert raised.value is mine
        assert not await receipt.saved(timeout=SOON)
        with pytest.raises(RuntimeError, match="mine"):  # noqa: PT012 - as above
            async with history.reply("c1") as reply:
                await reply.add("cut")
                raise mine
        with pytest.raises(InvalidInput, match="every"):
            await history.reply("c1", every=-1).__aenter__()

    await elsewhere(foreign)

    [cut] = await history.messages("c1")
    assert (cut.text, cut.message.status) == ("cut", "interrupted")


async def test_a_cancellation_in_another_loop_waits_for_the_transaction(history: History) -> None:
    await history.prepare()

    async def write() -> None:
        async with history.transaction() as tx:
            for half in "ab":
                await tx.append("c1", Message.user(half))

    async def foreign() -> None:
        for pause in (0, 0, 0.0005, 0.001, 0.002, 0.005):
            task = asyncio.create_task(write())
            await asyncio.sleep(pause)
            task.cancel()
            await asyncio.wait((task,))
            # Nothing holds the gate: this would wait for 10 seconds, and be refused.
            async with asyncio.timeout(60):
                await history.append("c1", Message.user("next"))
        assert (await texts(history)).count("a") == (await texts(history)).count("b")

    await elsewhere(foreign)


async def test_a_wait_that_is_cancelled_in_another_loop_ends_here(history: History) -> None:
    receipt = await history.append("c1", Message.user("never delivered"))

    async def foreign() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await receipt.saved()
        assert not await receipt.saved(timeout=0.01)

    await elsewhere(foreign)

    assert history._parts.deliveries._waiters == set()


def test_a_connection_of_another_loop_is_refused_at_once(tmp_path: Path) -> None:
    history = History(tmp_path / "bot.outbox.db", relay=False)

    async def use() -> None:
        async with history.outbox.engine.connect() as connection:
            with pytest.raises(InvalidInput, match=r"use history\.transaction"):
                await history.append_in(connection, "c1", Message.user("x"))

    with another_loop() as run:
        run(history.prepare())
        asyncio.run(use())
        run(history.close())


def test_a_receipt_of_a_loop_that_has_ended_says_so(tmp_path: Path) -> None:
    history = History(tmp_path / "bot.outbox.db", relay=False)
    receipt = asyncio.run(history.append("c1", Message.user("hi")))
    with pytest.raises(Closed, match="has ended, and this with it"):
        asyncio.run(receipt.saved(timeout=SOON))


def test_a_loop_that_ends_lets_its_tasks_append_their_last(tmp_path: Path) -> None:
    history = History(tmp_path / "bot.outbox.db", relay=False)

    async def talk(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            for number in range(5):
                await history.append(name, Message.user(str(number)))

    async def main() -> list[asyncio.Task[None]]:
        await history.prepare()
        tasks = [asyncio.create_task(talk(name)) for name in "abc"]
        await asyncio.sleep(0)
        return tasks

    assert all(one.cancelled() for one in asyncio.run(main()))
    assert REGISTRY.outboxes == []  # closed after them, and not opened once more

    async def said() -> list[list[str]]:
        async with history:
            return [await texts(history, name) for name in "abc"]

    assert asyncio.run(said()) == [["0", "1", "2", "3", "4"]] * 3


def test_a_loop_that_ends_before_the_opening_began_is_not_waited_for(tmp_path: Path) -> None:
    history = History(tmp_path / "bot.outbox.db", relay=False)

    async def main() -> asyncio.Task[None]:
        return asyncio.create_task(history.prepare())

    assert asyncio.run(main()).cancelled()
    asyncio.run(history.close())


def test_the_other_loop_opens_again_when_the_first_has_ended(tmp_path: Path) -> None:
    history = History(tmp_path / "bot.outbox.db")
    with another_loop() as run:

        async def first() -> None:
            await history.append("c1", Message.user("first"))
            await asyncio.to_thread(run, history.append("c1", Message.user("carried over")))

        asyncio.run(first())
        receipt = run(history.append("c1", Message.user("on its own")))

        assert run(receipt.saved(timeout=SOON))
        assert run(texts(history)) == ["first", "carried over", "on its own"]
        run(history.close())


def test_a_wait_for_a_loop_that_ends_is_told_so(tmp_path: Path) -> None:
    history = History(tmp_path / "bot.outbox.db", relay=False)
    with another_loop() as run, ThreadPoolExecutor() as pool:

        async def wait() -> None:
            receipt = await history.append("c1", Message.user("never delivered"))
            waiting.set()
            await receipt.saved()

        async def first() -> Future[None]:
            await history.prepare()
            waiter = pool.submit(run, wait())
            await asyncio.to_thread(waiting.wait, SOON)
            return waiter

        waiting = threading.Event()
        assert type(asyncio.run(first()).exception(SOON)) in (LoopEnded, Closed)
        assert run(texts(history)) == ["never delivered"]
        run(history.close())


# A driver's thread may answer to the loop that is closed beneath it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_was_closed_with_its_tasks_is_taken_over(tmp_path: Path) -> None:
    history = History(tmp_path / "bot.outbox.db")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(history.append("c1", Message.user("first")))
    loop.close()  # neither closed nor cancelled

    async def second() -> list[str]:
        receipt = await history.append("c1", Message.user("second"))
        assert await receipt.saved(timeout=SOON)  # by a relay of this loop, which needs the lease
        return await last_texts(history)

    assert asyncio.run(second()) == ["first", "second"]


def test_a_loop_that_stands_still_is_not_waited_for(tmp_path: Path) -> None:
    history = History(tmp_path / "bot.outbox.db", relay=False)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(history.append("c1", Message.user("first")))

    begun = time.monotonic()
    with pytest.raises(OutboxUnavailable, match="does not run, and nothing was done"):
        asyncio.run(history.append("c1", Message.user("from elsewhere")))
    assert time.monotonic() - begun < SOON

    # It was withdrawn: the loop does not write it later on, not even when it closes.
    loop.run_until_complete(history.append("c1", Message.user("second")))
    loop.run_until_complete(history.close())
    loop.close()

    later = History(tmp_path / "bot.outbox.db", relay=False)
    assert asyncio.run(last_texts(later)) == ["first", "second"]


def test_a_loop_that_stands_still_in_a_migration_keeps_no_other_file_from_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, right = asyncio.new_event_loop(), components.upgrade

    def upgrade(*args: Any, **options: Any) -> None:
        loop.call_soon_threadsafe(loop.stop)
        right(*args, **options)

    monkeypatch.setattr(components, "upgrade", upgrade)
    store = ConversationStore(tmp_path / "history.db", migrate=True)
    preparing = loop.create_task(store.prepare())
    loop.run_forever()
    assert not preparing.done()

    assert ALEMBIC_LOCK.acquire(timeout=SOON)
    ALEMBIC_LOCK.release()
    loop.run_until_complete(preparing)
    loop.run_until_complete(store.close())
    loop.close()


async def test_histories_on_one_file_share_one_outbox(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "bot.outbox.db")
    one = History(tmp_path / "bot.outbox.db")
    await one.append("c1", Message.user("hi"))
    two = History(tmp_path / "folder" / ".." / "bot.outbox.db")
    three = History(tmp_path / "link.db")

    for other in (two, three):
        await other.prepare()
        assert other.outbox is one.outbox
        assert other.relay is one.relay
    assert len(REGISTRY.outboxes) == 1

    await one.close()
    await two.close()
    with pytest.raises(Closed):
        await one.append("c1", Message.user("x"))
    await three.append("c1", Message.user("still open"))
    assert await texts(three) == ["hi", "still open"]
    await three.close()
    assert REGISTRY.outboxes == []


async def test_two_that_make_the_file_together_share_it(tmp_path: Path) -> None:
    one, two = (History(tmp_path / "bot.outbox.db", relay=False) for _ in range(2))
    await asyncio.gather(one.append("c1", Message.user("a")), elsewhere(lambda: two.append("c1", Message.user("b"))))
    assert len(REGISTRY.outboxes) == 1
    assert sorted(await texts(one)) == ["a", "b"]
    await asyncio.gather(one.close(), two.close())


async def test_a_file_that_took_the_place_of_another_is_another(tmp_path: Path) -> None:
    one = History(tmp_path / "bot.outbox.db", relay=False, watch=False)
    await one.append("c1", Message.user("old"))
    (tmp_path / "away").mkdir()
    for path in tmp_path.glob("bot.outbox.db*"):
        path.rename(tmp_path / "away" / path.name)

    two = History(tmp_path / "bot.outbox.db", relay=False, watch=False)
    await two.append("c1", Message.user("new"))

    assert two.outbox is not one.outbox
    assert await texts(two) == ["new"]
    await two.close()
    await one.close()


@pytest.mark.parametrize("by", ["its last history", "the end of its loop"])
async def test_a_use_while_the_outbox_is_closed_waits_and_opens_it_anew(tmp_path: Path, by: str) -> None:
    one, two = (History(tmp_path / "bot.outbox.db") for _ in range(2))
    await one.append("c1", Message.user("a"))
    before = one.outbox
    if by == "its last history":
        user, closing = two, asyncio.create_task(one.close())
    else:
        user, [closing] = one, [task for task in asyncio.all_tasks() if task.get_name() == "letopis-outbox"]
        closing.cancel()  # as the end of the loop does
    while not REGISTRY.outboxes[0].ending:  # noqa: ASYNC110 - tells nobody
        await asyncio.sleep(0)

    async with asyncio.timeout(SOON):
        await user.append("c1", Message.user("b"))
    if user is two:
        await closing

    assert user.outbox is not before
    assert await texts(user) == ["a", "b"]
    await user.close()


async def test_other_options_are_refused_and_left_out_ones_are_taken(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "elsewhere.db")
    one = History(tmp_path / "bot.outbox.db", store=tmp_path / "s.db", retention=Retention(keep_last=5))
    await one.append("c1", Message.user("hi"))

    wrong = {
        "retention": Retention(keep_last=6),
        "relay": False,
        "watch": False,
        "on_stuck": print,
        "bounds": Bounds(max_events=7),
    }
    for name, value in (*wrong.items(), ("own_thread", True), ("store", tmp_path / "other.db"), ("store", store)):
        other = History(tmp_path / "bot.outbox.db", **{name: value})  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=f"another value of {name}"):
            await other.append("c1", Message.user("x"))
        await other.close()
    for right in ({}, {"store": tmp_path / "s.db"}, {"retention": Retention(keep_last=5)}, {"create": False}):
        other = History(tmp_path / "bot.outbox.db", **right)  # type: ignore[arg-type]
        assert await texts(other) == ["hi"]
        await other.close()
    await one.close()
    await store.close()


async def test_one_that_was_forgotten_does_not_keep_the_others_from_closing(tmp_path: Path) -> None:
    one, two = (History(tmp_path / "bot.outbox.db") for _ in range(2))
    await one.prepare()
    await two.prepare()
    del two
    gc.collect()
    await one.close()
    assert REGISTRY.outboxes == []


async def test_it_blocks_the_loop_where_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InEventLoop, match='inside_loop="block"'):
        BlockingHistory(tmp_path / "bot.outbox.db")
    with pytest.raises(ConfigurationError, match="inside_loop"):
        BlockingHistory(tmp_path / "bot.outbox.db", inside_loop="perhaps")  # type: ignore[arg-type]

    with BlockingHistory(tmp_path / "bot.outbox.db", inside_loop="block") as history:
        assert history.append("c1", Message.user("hi")).saved(timeout=SOON)


async def test_it_does_not_wait_for_the_loop_that_it_blocks(history: History, tmp_path: Path) -> None:
    await history.append("c1", Message.user("hi"))
    with pytest.raises(InEventLoop, match="own_thread=True"):
        BlockingHistory(tmp_path / "bot.outbox.db", relay=False, inside_loop="block")
    blocking = await asyncio.to_thread(lambda: BlockingHistory(tmp_path / "b.db", relay=False, inside_loop="block"))
    assert blocking.messages("c1").items == ()
    blocking.close()


async def test_both_apis_share_a_loop_that_neither_blocks(tmp_path: Path) -> None:
    history = History(tmp_path / "bot.outbox.db", own_thread=True)
    await history.append("c1", Message.user("a"))
    with BlockingHistory(tmp_path / "bot.outbox.db", inside_loop="block") as blocking:
        assert len(REGISTRY.outboxes) == 1
        with blocking.transaction() as tx:
            tx.append("c1", Message.user("b"))
            with pytest.raises(OutboxUnavailable, match=r"tx\.append"):
                blocking.append("c1", Message.user("beside it"))
        with blocking.reply("c1") as reply:
            reply.add("c")
        assert blocking.drained(timeout=SOON)
    assert await texts(history) == ["a", "b", "c"]
    await history.close()
