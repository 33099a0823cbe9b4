"""The synchronous API: the same methods, from any thread, and never an endless wait."""

import asyncio
import contextvars
import inspect
import random
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest.mock import create_autospec

import pytest
import sqlalchemy as sa

from letopis import BlockingHistory, BlockingReceipt, ConfigurationError, ConversationStore, OutboxUnavailable, outbox
from letopis.outbox import History, RecordPut, Unconfirmed
from letopis.outbox.concurrency.fair_lock import current_caller
from letopis.outbox.file.committer import Committer
from letopis.outbox.history.sharing import REGISTRY
from letopis.outbox.sync.portal import Block, InEventLoop, Portal
from letopis.store import ABSENT, Closed, IdReused, InvalidInput, Message, Saved
from tests.support.platforms import open_descriptors, own_threads, posix_only
from tests.support.sayings import present

POSIX = posix_only("Windows has no POSIX signals and no fork")
SOON = 20.0


@pytest.fixture
def history(tmp_path: Path) -> Iterator[BlockingHistory]:
    with BlockingHistory(tmp_path / "bot.outbox.db") as opened:
        yield opened


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < deadline, inspect.getsource(true)
        time.sleep(0.005)


def texts(history: BlockingHistory, conversation_id: str) -> list[str]:
    return [one.text for one in history.messages(conversation_id, last=None)]


BESIDE = {"append_in", "close", "connection", "outbox", "prepare", "relay", "session", "store"}
"""What has no twin, because it belongs to an event loop, or is done when the twin is made and closed."""


def methods(subject: type[Any]) -> dict[str, Any]:
    """What a class has that is public, but for what has no twin; attributes without a definition are not in it."""
    parts = (vars(part).items() for part in reversed(subject.__mro__[:-1]))
    found = {name: value for part in parts for name, value in part if name == "__call__" or name[0] != "_"}
    return {name: value for name, value in found.items() if name not in BESIDE}


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(one.name, one.kind, one.default) for one in inspect.signature(function).parameters.values()]


def differences(subject: type[Any], face: type[Any]) -> set[str]:
    """The methods and properties that the two do not have in common, or that take or return something else."""
    theirs, ours = methods(subject), methods(face)
    # The fields of a dataclass, and what is set in `__init__`, are properties here.
    attributes = {*getattr(subject, "__slots__", ()), "conversation_id", "message_id", "event_id"}
    different = (theirs.keys() ^ ours.keys()) - (attributes - theirs.keys())
    for name in theirs.keys() & ours.keys():
        if not isinstance(theirs[name], FunctionType):
            continue
        given = str(inspect.signature(theirs[name]).return_annotation)
        narrowed = re.search(r"\b(\w*Receipt|Reply|Transaction|\w*Records|Chat)\b", given) is not None
        twin = "Blocking" in str(inspect.signature(ours[name]).return_annotation)
        if parameters(theirs[name]) != parameters(ours[name]) or narrowed != twin:
            different.add(name)
        if getattr(ours[name], "__wrapped__", theirs[name]) is not theirs[name]:
            different.add(name)
    return different


@pytest.mark.parametrize(
    "name", ["History", "Chat", "AllRecords", "Records", "Receipt", "RecordReceipt", "Transaction", "Reply"]
)
def test_every_method_has_its_twin_with_the_same_parameters(name: str) -> None:
    assert differences(getattr(outbox, name), getattr(outbox, f"Blocking{name}")) == set()


def test_the_constructors_take_the_same_options() -> None:
    theirs, ours = (inspect.signature(cls).parameters for cls in (History, BlockingHistory))
    assert {**ours, "store": theirs["store"], "inside_loop": None} == {**theirs, "inside_loop": None}


def test_a_method_without_a_twin_is_noticed() -> None:
    class Grown(History):
        async def hum(self) -> None: ...

        async def drained(self, timeout: float | None = None, *, loudly: bool = False) -> bool:  # noqa: ASYNC109
            raise NotImplementedError

    assert differences(Grown, BlockingHistory) == {"drained", "hum"}


def test_a_bot_without_asyncio_says_and_reads(history: BlockingHistory) -> None:
    first = history.append("c1", Message.user("What is tea?", id="m-1"), owner="42")
    with history.reply("c1") as reply:
        reply.add("A leaf.")
        with history.transaction() as tx:
            receipt = tx.finish(reply, tokens=4)
        reply.sent()
    history.append("c1", Message.user("enough", id="m-4"))
    assert present(history.chat("c1").pop()).text == "enough"
    started = history.start("42", title="Coffee")

    assert first == BlockingReceipt(history._portal, first._inner) != receipt
    assert first.saved(SOON) and not first.superseded(SOON) and first.state() is Saved.SAVED
    assert (reply.text, reply.receipt, reply.interrupted) == ("A leaf.", receipt, False)
    assert texts(history, "c1") == ["What is tea?", "A leaf."]
    assert present(history.active("42")).conversation_id == started.conversation_id


def test_records_are_put_read_and_deleted(history: BlockingHistory) -> None:
    records = history.records(conversation="chat-1")
    receipt = records.put(("form",), "step", {"at": 3}, expected=ABSENT)
    assert receipt.saved(15) and receipt.revision is not None
    with history.transaction() as tx:
        assert tx.put(records, ("form",), "step", 4, expected=ABSENT, on_exists="keep").kept
        tx.put(records, ("form",), "other", b"bytes", tags={"run": "r"})
        tx.delete_record(records, ("form",), "step", expected=receipt.revision)
    several = records.put_many([RecordPut(("a",), "1", 1), RecordPut(("b",), "1", 2)])
    assert [one.saved(15) for one in several] == [True, True]
    assert [one.key for one in records.list(("form",))] == ["other"]
    assert [one.key for one in history.records.find({"run": "r"})] == ["other"]


def test_threads_share_flushes_and_keep_order(history: BlockingHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    each, threads = 10, 20
    transact = create_autospec(Committer._transact, side_effect=Committer._transact)
    monkeypatch.setattr(Committer, "_transact", transact)
    start = threading.Barrier(threads)

    def speak(name: int) -> None:
        start.wait()
        for number in range(each):
            history.append("shared", Message.user(f"{name}:{number}"))

    with ThreadPoolExecutor(threads) as speakers:
        list(speakers.map(speak, range(threads)))

    said = [text.split(":") for text in texts(history, "shared")]
    for name in range(threads):
        assert [int(number) for one, number in said if one == str(name)] == list(range(each))
    assert transact.call_count < each * threads / 2


def test_errors_come_as_they_are_and_tell_where(history: BlockingHistory) -> None:
    history.append("c1", Message.user("one", id="m"))

    with pytest.raises(IdReused) as reused:
        history.append("c1", Message.user("two", id="m"))
    with pytest.raises(InvalidInput, match="conversation_id"):
        history.append("", Message.user("x"))
    with pytest.raises(TimeoutError), history.transaction():
        raise TimeoutError("the caller's own")

    assert traceback.extract_tb(reused.tb)[0].name == "test_errors_come_as_they_are_and_tell_where"


def test_blocks_may_be_left_in_any_order(history: BlockingHistory) -> None:
    outer, inner = history.reply("c1"), history.reply("c2")
    outer.__enter__().add("outer")
    inner.__enter__().add("inner")
    outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    found = [(one.text, one.interrupted) for name in ("c1", "c2") for one in history.messages(name)]
    assert found == [("outer", False), ("inner", False)]


def test_a_block_may_be_left_by_another_thread(history: BlockingHistory) -> None:
    block = history.transaction()
    block.__enter__().append("c1", Message.user("hi"))
    with ThreadPoolExecutor() as leaver:
        leaver.submit(block.__exit__, None, None, None).result(SOON)
    history.append("c1", Message.user("there"))
    with history.transaction() as tx:
        tx.append("c1", Message.user("again"))
    assert texts(history, "c1") == ["hi", "there", "again"]


def test_callbacks_are_plain_functions_that_may_be_slow_and_use_the_history(tmp_path: Path) -> None:
    with BlockingHistory(tmp_path / "bot.outbox.db") as history, history.reply("c1", owner="42") as reply:
        reply.add("was it sent?")
    ready, told = threading.Event(), threading.Event()

    def confirm(owed: tuple[Unconfirmed, ...]) -> None:
        ready.wait(SOON)  # as slow as it likes
        for one in owed:
            history.chat(one.conversation_id).failed(one.message_id, reason="not known")
        told.set()

    with BlockingHistory(tmp_path / "bot.outbox.db", on_unconfirmed=confirm) as history:
        history.append("c1", Message.user("not held up"))
        assert history.unconfirmed()
        ready.set()
        assert told.wait(SOON)
        assert history.unconfirmed() == ()


def test_a_thread_with_an_event_loop_is_told_to_use_the_other_one(history: BlockingHistory, tmp_path: Path) -> None:
    receipt = history.append("c1", Message.user("hi"))

    async def within() -> None:
        for wrong in (lambda: history.append("c1", Message.user("x")), receipt.saved, history.transaction().__enter__):
            with pytest.raises(InEventLoop, match="cannot be used inside a running event loop"):
                wrong()
        with pytest.raises(InEventLoop), BlockingHistory(tmp_path / "other.db"):
            pytest.fail("opened in an event loop")

    asyncio.run(within())
    assert texts(history, "c1") == ["hi"]
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize("block", [True, False])
def test_after_its_end_everything_says_closed_and_nothing_is_left(tmp_path: Path, block: bool) -> None:
    threads, descriptors = own_threads(), None
    for _ in range(3):
        history = BlockingHistory(tmp_path / "bot.outbox.db")
        with history if block else nullcontext():
            receipt = history.append("c1", Message.user("hi"))
        for _ in range(2):
            history.close()
        if descriptors is None:
            descriptors = open_descriptors()

    for wrong in (history.status, receipt.saved, receipt.state, history.transaction().__enter__, history.__enter__):
        with pytest.raises(Closed):
            wrong()
    assert own_threads() <= threads
    assert open_descriptors() == descriptors
    with BlockingHistory(tmp_path / "bot.outbox.db") as again:
        assert texts(again, "c1") == ["hi"] * 3


def test_an_opening_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    threads = own_threads()
    with pytest.raises(ConfigurationError), BlockingHistory(tmp_path / "missing.db", create=False):
        pytest.fail("opened")
    store: Any = ConversationStore(tmp_path / "h.db")
    with pytest.raises(ConfigurationError, match="URL or path"):
        BlockingHistory(tmp_path / "bot.db", store=store)
    assert own_threads() <= threads


def test_closing_frees_whoever_waits_in_another_thread(tmp_path: Path) -> None:
    inside, closing, pool = threading.Barrier(4), threading.Event(), ThreadPoolExecutor()

    with BlockingHistory(tmp_path / "bot.outbox.db", relay=False) as history:
        receipt = history.append("c1", Message.user("hi"))

        def wait() -> None:
            inside.wait(SOON)
            receipt.saved()

        def transact() -> None:
            with history.transaction() as tx:
                tx.append("c1", Message.user("half"))
                inside.wait(SOON)
                closing.wait(SOON)

        def answer() -> None:
            with history.reply("c2") as reply:
                reply.add("so far")
                inside.wait(SOON)
                closing.wait(SOON)

        others = [pool.submit(work) for work in (wait, transact, answer)]
        inside.wait(SOON)
        until(lambda: history._portal._calls)
    closing.set()

    assert [type(other.exception(SOON)) for other in others] == [Closed] * 3
    pool.shutdown()
    with BlockingHistory(tmp_path / "bot.outbox.db") as history:
        assert texts(history, "c1") == ["hi"]
        assert [(one.text, one.interrupted) for one in history.messages("c2")] == [("so far", True)]


def interrupt_when(true: Callable[[], bool]) -> threading.Thread:
    """Press Ctrl-C once a condition holds."""

    def press() -> None:
        until(true)
        time.sleep(0.05)  # until the main thread waits; too early is no fault either
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


@POSIX
def test_ctrl_c_cancels_what_is_waited_for(tmp_path: Path) -> None:
    with BlockingHistory(tmp_path / "bot.outbox.db", relay=False) as history:
        receipt = history.append("c1", Message.user("hi"))
        waiters = history._inner._parts.deliveries._waiters
        presser = interrupt_when(lambda: bool(waiters))
        with pytest.raises(KeyboardInterrupt):
            receipt.saved()
        presser.join()
        until(lambda: not waiters)


@POSIX
def test_ctrl_c_at_random_moments_leaves_nothing_half_done(history: BlockingHistory) -> None:
    chance = random.Random(20261125)
    armed = done = False
    rolled_back = 0
    kept = []

    def interrupt(_: int, frame: Any) -> None:
        nonlocal armed
        # The interpreter drops what is raised in the callback of a weak reference.
        if armed and frame.f_globals["__name__"] != "weakref":
            armed = False  # or a second one comes while the first is handled, and ends the run
            raise KeyboardInterrupt

    def press() -> None:
        while not done:
            time.sleep(chance.uniform(0.001, 0.02))
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with history.transaction() as tx:
        tx.execute(sa.text("CREATE TABLE sums (name TEXT)"))
    presser = threading.Thread(target=press)
    before = signal.signal(signal.SIGINT, interrupt)
    presser.start()
    try:
        while rolled_back < 50:
            name = f"m{len(kept) + rolled_back}"
            try:
                armed = True
                with history.transaction() as tx:
                    tx.execute(sa.text("INSERT INTO sums VALUES (:name)"), {"name": name})
                    tx.append("c1", Message.user(name))
                with history.reply("c2") as reply:
                    reply.add(name)
                armed = False
                kept.append(name)
            except KeyboardInterrupt:
                rolled_back += 1
    finally:
        done = True
        presser.join()
        signal.signal(signal.SIGINT, before)

    with history.transaction() as tx:  # the lock is free
        rows = [name for (name,) in tx.execute(sa.text("SELECT name FROM sums"))]
    assert set(kept) <= set(rows)
    assert rows == texts(history, "c1")
    until(lambda: not history._portal._blocks)


def test_a_forked_child_is_told_and_ends_and_the_parent_goes_on(
    history: BlockingHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = history.append("c1", Message.user("hi"))
    with monkeypatch.context() as child, pytest.raises(SystemExit), history.reply("c2") as reply:  # noqa: PT012
        reply.add("x")
        child.setattr(history._portal, "_pid", -1)
        for wrong in (history.status, receipt.saved, reply.finish, history.transaction().__enter__):
            with pytest.raises(Closed, match="forked off"):
                wrong()
        history.close()
        sys.exit(7)
    assert receipt.saved(SOON)
    assert texts(history, "c1") == ["hi"]


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")


@pytest.fixture
def portal(history: BlockingHistory) -> Portal:
    return history._portal


async def current() -> tuple[str, object]:
    return VARIABLE.get(), current_caller()


def test_what_is_called_sees_the_callers_context_and_in_a_block_its_token(portal: Portal) -> None:
    @asynccontextmanager
    async def manager() -> AsyncIterator[object]:
        yield current_caller()

    VARIABLE.set("outside")
    assert portal.call(current)[0] == "outside"
    with Block(portal, manager, lambda token: token) as outer:
        VARIABLE.set("inside")
        assert portal.call(current) == ("inside", outer)
        with Block(portal, manager, lambda token: token) as inner:
            assert inner is outer
    assert portal.call(current)[1] is not outer


@pytest.mark.parametrize("swallows", [True, False])
def test_an_error_goes_through_the_block_as_with_asyncio(portal: Portal, swallows: bool) -> None:
    left_by: list[BaseException] = []

    @asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        try:
            yield
        except KeyboardInterrupt as error:
            left_by.append(error)
            if not swallows:
                raise

    error = KeyboardInterrupt()
    with suppress(KeyboardInterrupt) if not swallows else nullcontext(), Block(portal, manager, lambda _: None):
        raise error
    assert left_by == [error]
    assert portal.call(current)


def test_a_loop_that_died_frees_whoever_waits(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letopis.outbox.concurrency.home_loop.POLL_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    async def forever() -> None:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(3600)

    [outbox] = REGISTRY.outboxes
    with pytest.raises(OutboxUnavailable, match="ended during the call"):
        portal.call(forever)
    outbox.join_thread()
    assert portal.call(current)  # opened again


def test_a_block_ends_after_a_call_inside_it_that_was_interrupted(portal: Portal) -> None:
    steps: list[str] = []
    begun = threading.Event()

    @asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        try:
            yield
        finally:
            steps.append("left")

    async def slow() -> None:
        begun.set()
        try:
            await asyncio.sleep(SOON)
        finally:
            await asyncio.sleep(0.05)
            steps.append("call ended")

    presser = interrupt_when(begun.is_set)
    with suppress(KeyboardInterrupt), Block(portal, manager, lambda _: None):
        portal.call(slow)
    presser.join()

    assert steps == ["call ended", "left"]
