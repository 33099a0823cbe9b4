"""Checkpoints leave by the rules of retention; every one that stays can be read, and its thread goes on."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from letopis.ops.daemon.daemon import Daemon, DaemonSettings
from letopis.outbox import History, Relay, Retention
from letopis.outbox.history.records import Records
from letopis.store import ContentRetention, ConversationStore, Message, RetentionRule
from letopis.store.model.events import utc_now
from tests.support.relays import until

pytest.importorskip("langgraph.graph", reason="needs langgraph: pip install --group adapters")

from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

from letopis.adapters.langgraph import LetopisSaver, pruning
from letopis.adapters.langgraph.retention import prune_due
from tests.integration.test_langgraph_graphs import delta_state
from tests.support.bots.langgraph import Salted, config, put, values_of

LAST_TWO = ContentRetention(checkpoints_last=2)
LONG = "w" * 200


def asking_graph(saver: LetopisSaver) -> Any:
    """A graph with a channel that is made of its writes, which waits for an answer in each run."""

    async def answer(state: Any) -> dict[str, Any]:
        return {"said": [f"{len(state['said'])} {LONG}"], "count": 1}

    async def ask(state: Any) -> dict[str, Any]:
        return {"said": [f"allowed: {interrupt('May I?')}"]}

    builder = StateGraph(delta_state(every=7)).add_node("answer", answer).add_node("ask", ask)
    return builder.add_edge(START, "answer").add_edge("answer", "ask").compile(checkpointer=saver)


@asynccontextmanager
async def opened(url: str, path: Path, *, days: float = 0) -> AsyncIterator[History]:
    """An outbox of a store whose clock is ahead; nothing is delivered by itself."""

    def now() -> Any:
        return utc_now() + timedelta(days=days)

    async with (
        ConversationStore.open(url, now=now) as store,
        History(path, store=store, relay=False, watch=False) as history,
    ):
        yield history


async def retain(history: History, content: ContentRetention) -> int:
    """Let a relay deliver, delete what is due, and deliver that; return how many checkpoints it deleted."""
    relay = Relay(history.outbox, history.store, retention=content)
    await relay.drain()
    return relay.stats.checkpoints


async def would_leave(history: History, content: ContentRetention) -> dict[str, int]:
    counts = dict[str, int]()
    async for pruned in prune_due(history.outbox, history.store, content, dry_run=True):
        if pruned.checkpoints:
            counts[pruned.conversation_id] = counts.get(pruned.conversation_id, 0) + pruned.checkpoints
    return counts


def values(number: int) -> dict[str, Any]:
    return {"big": f"big {number} {LONG}", "said": [f"{one} {LONG}" for one in range(number + 1)]}


async def fill(history: History, thread: str, checkpoints: int) -> None:
    at: Any = config(thread)
    for number in range(checkpoints):
        at = await put(LetopisSaver(history), values(number), at, version=number + 1)
        await LetopisSaver(history).aput_writes(at, [("big", LONG)], f"task-{number}")


async def left(history: History, thread: str) -> int:
    return len([one async for one in LetopisSaver(history).alist(config(thread, ns=None))])


async def test_a_waiting_graph_with_a_delta_channel_is_pruned_and_goes_on(store_url: str, tmp_path: Path) -> None:
    async with opened(store_url, tmp_path / "bot.outbox.db") as bot:
        graph, at = asking_graph(LetopisSaver(bot)), config("chat-1")
        for number in range(9):
            await graph.ainvoke({"said": [f"question {number}"]}, at)
            if number < 8:
                await graph.ainvoke(Command(resume="yes"), at)
        await Relay(bot.outbox, bot.store).drain()
        before = (await graph.aget_state(at)).values
        count = await left(bot, "chat-1")
        expected = (await would_leave(bot, LAST_TWO))["chat-1"]

        assert 0 < expected < count and await left(bot, "chat-1") == count
        assert await retain(bot, LAST_TWO) == expected
        assert await left(bot, "chat-1") == count - expected
        assert await retain(bot, LAST_TWO) == 0
        status = await bot.status()
        assert status.retention.checkpoints == expected and status.retention.last_run_at is not None

    async with opened(store_url, tmp_path / "another.outbox.db") as bot:
        graph = asking_graph(LetopisSaver(bot))
        state = await graph.aget_state(at)
        assert state.values == before and [one.value for one in state.interrupts] == ["May I?"]
        newest = [one.values async for one in graph.aget_state_history(at, limit=2)]
        assert newest[0] == before and newest[1]["said"] == before["said"][: len(newest[1]["said"])]
        done = await graph.ainvoke(Command(resume="no"), at)
        assert done["said"] == [*before["said"], "allowed: no"]


async def test_age_rules_pins_and_holds_decide_what_leaves(store_url: str, tmp_path: Path) -> None:
    few = RetentionRule(tag="few", checkpoints_last=3, checkpoints_max_age_days=100)
    content = ContentRetention(checkpoints_max_age_days=30, rules=(few, RetentionRule(owner="7", max_age_days=1_000)))
    path, threads = tmp_path / "bot.outbox.db", ("bare", "few", "seven", "pinned", "held", "bare-held")
    async with opened(store_url, path) as bot:
        for thread in threads:
            if not thread.startswith("bare"):
                await bot.append(thread, Message.user("hello"), owner="7" if thread == "seven" else "42")
            await fill(bot, thread, 6)
        await bot.chat("few").tag("few")
        await bot.chat("pinned").tag("pinned", "few")
        await Relay(bot.outbox, bot.store).drain()
        for thread in ("held", "bare-held"):
            await bot.store.erasures.hold("conversation", thread, reason="case 17")
        assert await would_leave(bot, content) == {"few": 3}
        assert await retain(bot, content) == 3
        assert [await left(bot, one) for one in threads] == [6, 3, 6, 6, 6, 6]
    async with opened(store_url, path, days=31) as bot:
        assert await retain(bot, content) == 5
        assert [await left(bot, one) for one in threads] == [1, 3, 6, 6, 6, 6]
    async with opened(store_url, path, days=101) as bot:
        await bot.chat("pinned").tag(remove=["pinned"])
        await bot.store.erasures.release("conversation", "bare-held")
        assert await retain(bot, content) == 2 + 5 + 5
        assert [await left(bot, one) for one in threads] == [1, 1, 6, 1, 6, 1]
        assert await values_of(LetopisSaver(bot), config("few")) == values(5)


async def test_a_value_that_another_outbox_puts_again_stays(store_url: str, tmp_path: Path) -> None:
    """It was named by deleted checkpoints alone when it was read, and by a new one when it is deleted."""
    async with (
        opened(store_url, tmp_path / "one.outbox.db") as one,
        History(tmp_path / "two.outbox.db", store=one.store, relay=False, watch=False) as two,
    ):
        old = await put(LetopisSaver(one), {"big": f"old {LONG}"})
        at = await put(LetopisSaver(one), {"big": f"new {LONG}"}, old, version=2)
        await Relay(one.outbox, one.store).drain()
        again = await put(LetopisSaver(two), {"big": f"old {LONG}"}, at, version=3)
        pruning = prune_due(one.outbox, one.store, ContentRetention(checkpoints_last=1))
        assert [pruned.checkpoints async for pruned in pruning] == [1]
        await Relay(two.outbox, two.store).drain()
        await Relay(one.outbox, one.store).drain()
        assert await values_of(LetopisSaver(one), again) == {"big": f"old {LONG}"}


@pytest.mark.parametrize("daemon", [False, True], ids=["bot", "daemon"])
async def test_a_relay_prunes_by_its_settings(tmp_path: Path, daemon: bool) -> None:
    url, path = f"sqlite:///{tmp_path / 'history.db'}", tmp_path / "bot.outbox.db"
    async with opened(url, path) as bot:
        await fill(bot, "chat-1", 5)
    retention = Retention(content=LAST_TWO)
    settings = DaemonSettings(outboxes=(str(path),), store=url, retention=retention)
    serving = Daemon(lambda: settings, scan_interval=0.05)
    task = asyncio.create_task(serving.run()) if daemon else None
    async with History(path, store=url, retention=retention, relay=not daemon, watch=False) as bot:

        async def pruned() -> bool:
            return (await bot.status()).retention.checkpoints == 3 and await bot.drained(0)

        await until(pruned, patience=60)
        assert await left(bot, "chat-1") == 2
    serving.stop()
    if task is not None:
        await task


async def test_without_langgraph_all_else_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(f"sqlite:///{tmp_path / 'history.db'}", tmp_path / "bot.outbox.db", days=40) as bot:
        await fill(bot, "chat-1", 5)
        await bot.append("old", Message.user("hello"))
        monkeypatch.setattr("letopis.outbox.relay.content_retention.entry_points", lambda *, group: {})
        with caplog.at_level(logging.WARNING):
            assert await retain(bot, ContentRetention(checkpoints_last=1, max_messages=1)) == 0
        assert (await bot.status()).pending == 0 and await left(bot, "chat-1") == 5
        assert "pip install 'letopis[langgraph]'" in caplog.text


async def test_encrypted_checkpoints_are_pruned_without_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(f"sqlite:///{tmp_path / 'history.db'}", tmp_path / "bot.outbox.db") as bot:
        saver, at = LetopisSaver(bot, serde=Salted()), {}
        for thread in ("new", "old"):
            if thread == "old":  # as the release before wrote them
                monkeypatch.setattr("letopis.adapters.langgraph.checkpoints.sorted", lambda _: None, raising=False)
            for number in range(4):
                at[thread] = await put(saver, {"big": number}, at.get(thread, config(thread)), version=number)
        monkeypatch.undo()
        await Relay(bot.outbox, bot.store).drain()
        with caplog.at_level(logging.WARNING):
            assert await retain(bot, ContentRetention(checkpoints_last=1)) == 3
        assert "'old' stay" in caplog.text and "'new'" not in caplog.text
        assert await values_of(saver, at["new"]) == {"big": 3}
        assert len([one async for one in saver.alist(config("old"))]) == 4


class _Killed(BaseException):
    """The end of a process, as far as the deletions are concerned."""


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True], ids=["after each", "before the last"])
async def test_deletions_that_a_kill_cut_off_are_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    monkeypatch.setattr(pruning, "_DELETED_AT_ONCE", 3)
    url, path, kills, delete = f"sqlite:///{tmp_path / 'history.db'}", tmp_path / "bot.outbox.db", 0, Records._delete
    threads = ("chat-1", "chat-2")

    async def killed(records: Any, changes: Any, unchanged: Any) -> Any:
        nonlocal kills
        kills += 1
        if last and unchanged and any("checkpoints" in repr(one.change.prefix) for one in changes):
            raise _Killed
        done = await delete(records, changes, unchanged)
        if not last:
            raise _Killed
        return done

    async with opened(url, path) as bot:
        for thread in threads:
            await fill(bot, thread, 7)
        await Relay(bot.outbox, bot.store).drain()
    monkeypatch.setattr(Records, "_delete", killed)
    ended = False
    while not ended:
        async with opened(url, path) as bot:
            with suppress(_Killed):
                await retain(bot, LAST_TWO)
                ended = True
            await Relay(bot.outbox, bot.store).drain()
            assert all([await left(bot, thread) >= 2 for thread in threads])
        if last:
            monkeypatch.setattr(Records, "_delete", delete)
    assert kills >= (1 if last else 4)
    async with opened(url, path) as bot:
        for thread in threads:
            assert await left(bot, thread) == 2
            before = len(await bot.records(conversation=thread).list(limit=1_000))
            await LetopisSaver(bot).aprune([thread], keep_last=2)
            assert len(await bot.records(conversation=thread).list(limit=1_000)) == before
