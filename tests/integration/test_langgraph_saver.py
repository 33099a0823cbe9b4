"""LangGraph's own suite, and what it does not test: first writes, outages, forks, deletions in between, sync."""

import asyncio
import copy
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from letopis import ConversationStore, History, InvalidInput, Message, RecordPut, RetentionRule, StoreUnavailable
from letopis.outbox import AllRecords
from tests.support.relays import deliver_all

pytest.importorskip("langgraph.checkpoint.base", reason="needs langgraph: pip install --group adapters")

from langgraph.checkpoint.base import ERROR
from langgraph.graph import START, StateGraph

from letopis.adapters.langgraph import CheckpointIncomplete, LetopisSaver
from letopis.adapters.langgraph.keys import VALUES
from letopis.adapters.langgraph.retention import DueCheckpoints, prune_by_rule
from tests.support.bots.langgraph import Salted, checkpoint, config, put, values_of
from tests.support.sayings import present

SAID = [{"role": "user", "content": f"{number}: " + "word " * 40} for number in range(80)]


SUITE_TESTS = 81
"""What version 0.0.2 of LangGraph's suite holds: one that is skipped is noticed."""


@pytest.mark.parametrize("relay", [True, False], ids=["delivering", "pending"])
async def test_the_whole_suite_of_langgraph_passes(store_url: str, tmp_path: Path, relay: bool) -> None:
    """Extended capabilities included."""
    conformance = pytest.importorskip("langgraph.checkpoint.conformance", reason="needs pip install --group adapters")
    from langgraph.checkpoint.conformance.capabilities import ALL_CAPABILITIES

    async with History(tmp_path / "bot.outbox.db", store=store_url, relay=relay) as history:

        @conformance.checkpointer_test(name="LetopisSaver")
        async def saver() -> AsyncIterator[LetopisSaver]:
            yield LetopisSaver(history)

        report = await conformance.validate(saver)
    failures = [failure for result in report.results.values() for failure in result.failures]
    assert failures == []
    assert set(report.results) == {one.value for one in ALL_CAPABILITIES}
    assert sum(result.tests_passed for result in report.results.values()) >= SUITE_TESTS


async def pending(saver: LetopisSaver, at: Any = None) -> list[tuple[str, Any]]:
    found = present(await saver.aget_tuple(at or config()))
    return [(channel, value) for _, channel, value in present(found.pending_writes)]


@pytest.mark.parametrize("delivered", [True, False])
async def test_the_first_write_of_a_task_stays(bot: History, delivered: bool) -> None:
    saver = LetopisSaver(bot)
    at = await put(saver, {"n": 1})
    await saver.aput_writes(at, [("a", "first"), ("b", 1)], "task")
    if delivered:
        await deliver_all(bot)
    await saver.aput_writes(at, [("a", "second"), ("b", 2), ("c", 3)], "task")
    await deliver_all(bot)
    assert await pending(saver) == [("a", "first"), ("b", 1), ("c", 3)]


@pytest.mark.parametrize("delivered", [True, False])
async def test_the_last_error_counts_if_it_comes_alone(bot: History, delivered: bool) -> None:
    """As in the official savers: a batch that holds another channel too replaces nothing."""
    saver = LetopisSaver(bot)
    at = await put(saver, {"n": 1})
    await saver.aput_writes(at, [(ERROR, "e1")], "task")
    if delivered:
        await deliver_all(bot)
    await saver.aput_writes(at, [(ERROR, "e2")], "task")
    await saver.aput_writes(at, [("a", 1), (ERROR, "e3")], "task")
    await deliver_all(bot)
    assert sorted(await pending(saver)) == [(ERROR, "e2"), ("a", 1)]


async def test_two_outboxes_agree_on_the_first_write(store: ConversationStore, tmp_path: Path) -> None:
    """Each writes what it computed; the history store decides, and both read the same."""
    async with (
        History(tmp_path / "one.outbox.db", store=store, relay=False) as one,
        History(tmp_path / "two.outbox.db", store=store, relay=False) as two,
    ):
        at = await put(LetopisSaver(one), {"n": 1})
        await deliver_all(one)
        await LetopisSaver(one).aput_writes(at, [("a", "one")], "task")
        await LetopisSaver(two).aput_writes(at, [("a", "two")], "task")
        await deliver_all(two)
        await deliver_all(one)
        assert await pending(LetopisSaver(one)) == [("a", "two")]
        assert await pending(LetopisSaver(two)) == [("a", "two")]


async def test_writes_are_in_the_order_in_which_a_run_applies_them(history: History) -> None:
    saver = LetopisSaver(history)
    at = config(checkpoint_id="1f0-before")
    await saver.aput_writes(at, [("a", "pull-2")], "0-task", "~__pregel_pull, b")
    await saver.aput_writes(at, [("a", number) for number in range(12)], "9-task", "~__pregel_pull, a")
    await saver.aput_writes(at, [("a", "input")], "5-task")
    await put(saver, {"n": 1}, checkpoint_id="1f0-before")  # the writes were there first
    assert [value for _, value in await pending(saver)] == ["input", *range(12), "pull-2"]


async def test_a_run_goes_on_while_the_store_is_away(alone: History) -> None:
    saver = LetopisSaver(alone)
    with pytest.raises(StoreUnavailable):
        await saver.aget_tuple(config())  # not None: the thread would be begun anew
    at = await put(saver, {"said": SAID[:40]})
    await saver.aput_writes(at, [("said", SAID[40])], "task")
    at = await put(saver, {"said": SAID[:41]}, at, version=2)
    await saver.aput_writes(at, [("said", SAID[41])], "task")
    fresh = LetopisSaver(alone)
    assert await values_of(fresh) == {"said": SAID[:41]}
    assert await pending(fresh) == [("said", SAID[41])]
    with pytest.raises(StoreUnavailable):
        [one async for one in fresh.alist(config())]
    with pytest.raises(StoreUnavailable):
        await fresh.aprune(["chat-1"])
    await fresh.adelete_thread("chat-1")  # known, whatever the store holds
    assert await values_of(fresh, config("chat-1", checkpoint_id=at["configurable"]["checkpoint_id"])) is None


async def test_a_thread_that_is_said_to_be_new_begins_while_the_store_is_away(alone: History) -> None:
    saver, new = LetopisSaver(alone), {"configurable": {"thread_id": "chat-1", "letopis_new": True}}
    assert await saver.aget_tuple(new) is None
    for value in (False, "yes", 1):
        with pytest.raises(StoreUnavailable):
            await saver.aget_tuple({"configurable": {"thread_id": "chat-1", "letopis_new": value}})
    graph = StateGraph(dict).add_node("answer", lambda said: {"n": (said or {}).get("n", 0) + 1})
    graph = graph.add_edge(START, "answer").compile(checkpointer=saver)
    await graph.ainvoke({"n": 1}, new)
    # The key may stay: the thread is known by now.
    assert await graph.ainvoke({"n": 5}, new) == {"n": 6}
    assert (await graph.aget_state(new)).values == {"n": 6}
    assert len([one async for one in graph.aget_state_history(new)]) == 6


async def test_a_thread_that_was_delivered_is_continued_while_the_store_is_away(
    tmp_path: Path, store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with History(tmp_path / "bot.outbox.db", store=store, relay=False) as history:
        saver = LetopisSaver(history)
        at = await put(saver, {"said": SAID})
        await saver.aput_writes(at, [("a", 1)], "task")
        await deliver_all(history)
        monkeypatch.setattr(history._parts.record_reads._gateway, "read", AsyncMock(return_value=None))
        assert await values_of(LetopisSaver(history)) == {"said": SAID}
        assert await pending(LetopisSaver(history)) == [("a", 1)]


async def test_an_unchanged_channel_is_not_stored_again(history: History) -> None:
    """Even where equal values have different bytes, as with encryption."""
    saver = LetopisSaver(history, serde=Salted())
    at = await put(saver, {"said": SAID, "n": "x" * 500})
    for _ in range(5):
        at = await put(saver, {"said": SAID, "n": "x" * 500}, at, new={})
    values = history.records(conversation="chat-1")
    assert len(await values.list((*VALUES, "="), limit=1_000)) <= len(SAID) + 10
    assert await values_of(LetopisSaver(history, serde=Salted())) == {"said": SAID, "n": "x" * 500}


async def test_a_list_of_threads_reads_a_page(bot: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the ids of all checkpoints, from wherever it begins."""
    saver, read, find = LetopisSaver(bot), list[str](), bot.records.find
    for number in range(30):
        await put(saver, {"n": number}, config(f"t{number % 7}"), checkpoint_id=f"1f0-{number:02}")
        if number == 20:
            await deliver_all(bot)

    async def counted(*given: Any, **options: Any) -> Any:
        page = await find(*given, **options)
        read.extend(one.key for one in page)
        return page

    monkeypatch.setattr(AllRecords, "find", staticmethod(counted))
    for before in (30, 25, 21, 8):
        read.clear()
        listed = saver.alist(None, limit=3, before=config(checkpoint_id=f"1f0-{before:02}"))
        found = [one.checkpoint["channel_values"]["n"] async for one in listed]
        assert found == [before - 1, before - 2, before - 3]
        assert len(read) == 3


@pytest.mark.parametrize("delivered", [True, False])
async def test_two_threads_in_one_conversation_are_apart(bot: History, delivered: bool) -> None:
    saver = LetopisSaver(bot, conversation=lambda thread: "one")
    for thread in ("a", "one", "b/=1"):
        at = await put(saver, {"said": [*SAID[:4], {"thread": thread}]}, config(thread))
        await saver.aput_writes(at, [("n", thread)], "task")
    if delivered:
        await deliver_all(bot)

    for thread in ("a", "one", "b/=1"):
        assert (await values_of(saver, config(thread)))["said"][-1] == {"thread": thread}
        assert await pending(saver, config(thread)) == [("n", thread)]
        assert len([one async for one in saver.alist(config(thread, ns=None))]) == 1
    await saver.acopy_thread("a", "c")
    await saver.aprune(["a"])
    await saver.adelete_thread("a")

    async def gone() -> list[str]:
        return [one for one in ("a", "b/=1", "one", "c") if await values_of(saver, config(one)) is None]

    assert await gone() == ["a"]
    await saver.adelete_thread("one")
    assert await gone() == ["a", "one"]
    assert {one.config["configurable"]["thread_id"] async for one in saver.alist(None)} == {"b/=1", "c"}


async def test_prune_deletes_the_values_that_nobody_names(bot: History) -> None:
    saver, records = LetopisSaver(bot), bot.records(conversation="chat-1")
    at = None
    for number in range(1, 60):
        at = await put(saver, {"said": SAID[:number], "big": "x" * 1_000 + str(number)}, at, version=number)
        await saver.aput_writes(at, [("said", SAID[number])], "task")
        if number == 40:
            await deliver_all(bot)
    before = len(await records.list(("langgraph",), limit=1_000))
    await saver.aprune(["chat-1"])
    await deliver_all(bot)
    assert before > 59 * 3
    assert len(await records.list(("langgraph",), limit=1_000)) < 80
    assert await values_of(LetopisSaver(bot)) == {"said": SAID[:59], "big": "x" * 1_000 + "59"}
    assert await pending(saver) == [("said", SAID[59])]
    at = await put(saver, {"said": SAID[:60], "big": "y"}, at, version=60)
    assert await values_of(LetopisSaver(bot)) == {"said": SAID[:60], "big": "y"}


async def test_prune_keeps_the_last_ones_and_those_of_an_age_and_always_the_latest(bot: History) -> None:
    saver, at = LetopisSaver(bot), None
    for number in range(1, 7):
        at = await put(saver, {"said": SAID[:number]}, at, version=number)

    async def left() -> int:
        return len([one async for one in saver.alist(config("chat-1"))])

    await saver.aprune(["chat-1"], keep_last=4)
    assert await left() == 4
    await saver.aprune(["chat-1"], keep_last=3, max_age_days=1)
    assert await left() == 3
    await saver.aprune(["chat-1"], keep_last=3, max_age_days=1e-9)
    assert await left() == 1
    assert await values_of(LetopisSaver(bot)) == {"said": SAID[:6]}
    for wrong in ({"keep_last": 0}, {"max_age_days": 0}):
        with pytest.raises(InvalidInput):
            await saver.aprune(["chat-1"], **wrong)


@pytest.mark.parametrize("how", ["prune", "retention", "delete"])
async def test_checkpoint_put_as_its_parent_goes(history: History, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new one relies on values of its parent, and they are deleted before it is written."""
    saver = LetopisSaver(history)
    parent = await put(saver, {"said": SAID[:40]})
    await put(saver, {"said": SAID[50:]}, parent, version=2)
    namespace, rule = ("langgraph", "checkpoints", "="), RetentionRule(checkpoints_last=1)
    due = DueCheckpoints(conversation_id="chat-1", namespace=namespace, rule=rule, put_after=None)
    deletions = {
        "prune": lambda: saver.aprune(["chat-1"]),
        "retention": lambda: prune_by_rule(history.outbox, history.store, due),
        "delete": lambda: saver.adelete_thread("chat-1"),
    }
    records, deleted = type(history.records(conversation="chat-1")), list[Any]()
    put_many = records.put_many

    async def first_delete(self: Any, puts: Any) -> Any:
        if not deleted:
            deleted.append(None)
            deleted[0] = await deletions[how]()
        return await put_many(self, puts)

    monkeypatch.setattr(records, "put_many", first_delete)
    at = await put(saver, {"said": SAID[:41]}, parent, version=3)
    assert deleted == ([1] if how == "retention" else [None])
    assert await values_of(LetopisSaver(history), at) == {"said": SAID[:41]}


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_checkpoint_put_after_its_thread_was_reset_is_whole(bot: History, delivered: bool) -> None:
    """A user begins anew while a run is under way: what the run puts next must not rely on what was erased."""
    saver = LetopisSaver(bot)
    await bot.append("chat-1", Message.user("hello"))
    parent = await put(saver, {"said": SAID[:40]})
    await bot.chat("chat-1").reset()
    if delivered:
        await deliver_all(bot)
    await put(saver, {"said": SAID[:41]}, parent, version=2)
    await deliver_all(bot)
    assert await values_of(LetopisSaver(bot)) == {"said": SAID[:41]}


async def test_a_missing_value_is_an_error_and_not_empty(bot: History) -> None:
    saver, records = LetopisSaver(bot), bot.records(conversation="chat-1")
    await put(saver, {"said": SAID})
    [value, *_] = await records.list((*VALUES, "="))
    await records.delete(value.namespace, value.key)
    with pytest.raises(CheckpointIncomplete, match="chat-1"):
        await saver.aget_tuple(config())


async def test_a_thread_goes_with_its_conversation(bot: History) -> None:
    saver = LetopisSaver(bot)
    await bot.append("chat-1", Message.user("hello"))
    at = await put(saver, {"said": SAID})
    await bot.chat("chat-1").delete()
    assert await values_of(saver, at) is None
    await saver.adelete_thread("chat-1")
    await bot.records(conversation="chat-2").put(("form",), "step", 1)
    await put(saver, {"n": 1}, config("chat-2"))
    await saver.adelete_thread("chat-2")
    assert [one.key for one in await bot.records(conversation="chat-2").list()] == ["step"]


async def test_odd_names_are_told_apart(bot: History) -> None:
    saver = LetopisSaver(bot)
    spaces = ["", "=", "a|b:1", "a/b", "a", "x" * 300, "x" * 301, "é%/"]
    for number, ns in enumerate(spaces):
        at = await put(saver, {"n": number}, config(7, ns=ns), checkpoint_id="id/with/slashes")
        await saver.aput_writes(at, [("n", number)], "task/1")
        await put(saver, {"n": -1}, config(7, ns=ns), checkpoint_id="id/with")
    await deliver_all(bot)
    for number, ns in enumerate(spaces):
        at = config("7", ns=ns, checkpoint_id="id/with/slashes")
        assert await values_of(saver, at) == {"n": number}
        assert await pending(saver, at) == [("n", number)]
        assert await pending(saver, config(7, ns=ns, checkpoint_id="id/with")) == []


async def test_wrong_arguments_are_refused(history: History) -> None:
    saver = LetopisSaver(history)
    assert (saver.get_next_version(None, None), saver.get_next_version(41, None)) == (1, 42)
    text = saver.get_next_version("00000000000000000000000000000009.0.5", None)
    assert text.startswith("0" * 30 + "10.")
    refused = [
        ("thread", saver.aget_tuple({"configurable": {}})),
        ("checkpoint", saver.aput_writes(config(), [("a", 1)], "task")),
        ("strategy", saver.aprune(["chat-1"], strategy="keep_last")),
        ("target_thread_id", saver.acopy_thread("chat-1", "chat-1")),
        ("control character", put(saver, {"n": 1}, config("a\nb"))),
        ("surrogate", put(saver, {"n": 1}, config(ns="\ud800"))),
        ("cannot be stored", saver.aput_writes(config(checkpoint_id="1f0"), [("a", 1)], "task", "\ud800")),
    ]
    for why, call in refused:
        with pytest.raises(InvalidInput, match=why):
            await call
    assert not (await history.records(conversation="chat-1").list()).items


def test_synchronous_calls_work_in_any_thread(tmp_path: Path) -> None:
    saver = LetopisSaver(History(tmp_path / "bot.outbox.db"))
    at = saver.put(config(), checkpoint({"n": 1}), {"source": "loop", "step": 1}, {"n": 1})
    saver.put_writes(at, [("n", 2)], "task")
    with ThreadPoolExecutor(4) as threads:
        found = [present(one) for one in threads.map(saver.get_tuple, [config()] * 4)]
    assert [one.checkpoint["channel_values"] for one in found] == [{"n": 1}] * 4
    saver.copy_thread("chat-1", "chat-2")
    assert sorted(one.config["configurable"]["thread_id"] for one in saver.list(None)) == ["chat-1", "chat-2"]
    assert next(saver.list(None)).checkpoint["channel_values"] == {"n": 1}
    saver.prune(["chat-1"])
    saver.delete_for_runs(["none"])
    saver.delete_thread("chat-1")
    assert [len(list(saver.list(config(name)))) for name in ("chat-1", "chat-2")] == [0, 1]
    assert saver.get_delta_channel_history(config=config("chat-2"), channels=["n"]) == {"n": {"writes": []}}
    asyncio.run(saver.history.close())


async def test_a_clone_with_another_serializer_uses_it(history: History) -> None:
    """As LangGraph makes one, when it compiles a graph with strict types."""
    saver = LetopisSaver(history)
    clone = copy.copy(saver)
    clone.serde = Salted()
    at = await put(clone, {"n": 1})
    assert await values_of(clone, at) == {"n": 1}
    with pytest.raises(Exception, match=r"."):
        await values_of(saver, at)


async def test_a_record_of_somebody_else_among_them_is_told(history: History) -> None:
    records = history.records(conversation="chat-1")
    await records.put_many([RecordPut(("langgraph", "checkpoints", "="), "1f0", {"not": "ours"})])
    with pytest.raises(ValueError, match="not written by this adapter"):
        await LetopisSaver(history).aget_tuple(config())
