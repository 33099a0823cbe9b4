"""Real graphs on the saver: channels made of their writes, and how much a long conversation takes."""

from __future__ import annotations

import asyncio
import operator
from pathlib import Path
from typing import Annotated, Any

import pytest
from typing_extensions import TypedDict

from letopis.outbox import History
from letopis.store import ConversationStore, InvalidInput
from tests.support.relays import deliver_all, until

pytest.importorskip("langgraph.graph", reason="the framework is not installed: pip install --group adapters")

from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, MessagesState, StateGraph

from letopis.adapters.langgraph import LetopisSaver

AT: Any = {"configurable": {"thread_id": "chat-1"}}


def joined(state: list[str], writes: list[list[str]]) -> list[str]:
    return [*state, *(one for write in writes for one in write)]


def delta_graph(saver: LetopisSaver, *, every: int) -> Any:
    channel = DeltaChannel(joined, snapshot_frequency=every)
    state = TypedDict("state", {"said": Annotated[list[str], channel], "count": Annotated[int, operator.add]})  # noqa: UP013 - evaluated in this scope

    async def answer(state: Any) -> dict[str, Any]:
        return {"said": [f"answer {len(state['said'])}"], "count": 1}

    builder = StateGraph(state)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


def answering_graph(saver: LetopisSaver) -> Any:
    model = FakeListChatModel(responses=["yes"])

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
@pytest.mark.parametrize("every", [1000, 7])
async def test_prune_keeps_what_a_delta_channel_is_made_of(history: History, every: int, durability: str) -> None:
    graph = delta_graph(LetopisSaver(history), every=every)
    for number in range(12):
        await graph.ainvoke({"said": [f"question {number}"]}, AT, durability=durability)
    await deliver_all(history)
    before = (await graph.aget_state(AT)).values
    assert len(before["said"]) == 24 and before["count"] == 12
    checkpoints = len([one async for one in LetopisSaver(history).alist(AT)])

    await LetopisSaver(history).aprune(["chat-1"])
    pruned = delta_graph(LetopisSaver(history), every=every)
    assert (await pruned.aget_state(AT)).values == before
    await pruned.ainvoke({"said": ["and now?"]}, AT, durability=durability)
    assert (await pruned.aget_state(AT)).values["said"][:25] == [*before["said"], "and now?"]
    if every == 7:
        assert len([one async for one in LetopisSaver(history).alist(AT)]) < checkpoints


async def test_the_history_of_a_delta_channel_is_that_of_the_framework(bot: History) -> None:
    """Read in two calls instead of one for each ancestor."""
    saver = LetopisSaver(bot)
    graph = delta_graph(saver, every=5)
    for number in range(9):
        await graph.ainvoke({"said": [f"question {number}"]}, AT)
        if number == 5:
            await deliver_all(bot)
    base = super(LetopisSaver, saver)
    compared = 0
    async for one in saver.alist(AT):
        expected = await base.aget_delta_channel_history(config=one.config, channels=["said", "count", "none"])
        found = await saver.aget_delta_channel_history(config=one.config, channels=["said", "count", "none"])
        assert found == expected
        compared += any(entry["writes"] for entry in expected.values())
    assert compared > 9
    assert await saver.aget_delta_channel_history(config=AT, channels=[]) == {}


async def test_a_run_that_a_delta_channel_needs_is_not_deleted_from_under_it(history: History) -> None:
    saver = LetopisSaver(history)
    graph = delta_graph(saver, every=1000)
    for run in ("one", "two"):
        await graph.ainvoke({"said": [run]}, {**AT, "metadata": {"run_id": run}})
    before = (await graph.aget_state(AT)).values

    with pytest.raises(InvalidInput, match="DeltaChannel"):
        await saver.adelete_for_runs(["one"])
    assert (await graph.aget_state(AT)).values == before
    await saver.adelete_for_runs(["one", "two"])
    assert await saver.aget_tuple(AT) is None


async def test_a_copied_delta_thread_is_whole(bot: History) -> None:
    graph = delta_graph(LetopisSaver(bot), every=1000)
    for number in range(4):
        await graph.ainvoke({"said": [f"question {number}"]}, AT)
    await deliver_all(bot)
    await LetopisSaver(bot).acopy_thread("chat-1", "chat-2")
    await LetopisSaver(bot).adelete_thread("chat-1")

    copied = await graph.aget_state({"configurable": {"thread_id": "chat-2"}})
    assert len(copied.values["said"]) == 8


def test_a_graph_runs_synchronously(tmp_path: Path) -> None:
    history = History(tmp_path / "bot.outbox.db")

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [FakeListChatModel(responses=["yes"]).invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    graph = builder.compile(checkpointer=LetopisSaver(history))
    for text in ("one", "two"):
        graph.invoke({"messages": [HumanMessage(text)]}, AT)

    assert [one.content for one in graph.get_state(AT).values["messages"]] == ["one", "yes", "two", "yes"]
    assert len(list(graph.get_state_history(AT))) == 6
    asyncio.run(history.close())


async def test_time_travel_and_forks_of_a_graph(store: ConversationStore, tmp_path: Path) -> None:
    async with History.open(tmp_path / "bot.outbox.db", store=store) as history:
        graph = answering_graph(LetopisSaver(history))
        for text in ("one", "two"):
            await graph.ainvoke({"messages": [HumanMessage(text)]}, AT)
        [past, *_] = [one async for one in graph.aget_state_history(AT) if len(one.values.get("messages", ())) == 2]
        await graph.ainvoke({"messages": [HumanMessage("other")]}, past.config)
        await until(lambda: history.drained(0))

        values = (await graph.aget_state(AT)).values["messages"]
        assert [one.content for one in values] == ["one", "yes", "other", "yes"]
        assert len([one async for one in graph.aget_state_history(AT)]) == 9
