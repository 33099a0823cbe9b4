"""Real graphs on the saver: channels made of their writes, and how much a long conversation takes."""

import operator
from pathlib import Path
from typing import Annotated, Any

import pytest
from typing_extensions import TypedDict

from letopis import History, InvalidInput
from tests.support.relays import deliver_all, until

pytest.importorskip("langgraph.graph", reason="needs langgraph: pip install --group adapters")

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, StateGraph

from letopis.adapters.langgraph import LetopisSaver
from tests.support.bots.langgraph import config, put

AT: Any = {"configurable": {"thread_id": "chat-1"}}


def joined(state: list[str], writes: list[list[str]]) -> list[str]:
    return [*state, *(one for write in writes for one in write)]


def delta_state(*, every: int) -> Any:
    delta = pytest.importorskip("langgraph.channels.delta", reason="this release has no DeltaChannel")
    channel = delta.DeltaChannel(joined, snapshot_frequency=every)
    return TypedDict("state", {"said": Annotated[list[str], channel], "count": Annotated[int, operator.add]})


def delta_graph(saver: LetopisSaver, *, every: int) -> Any:
    async def answer(state: Any) -> dict[str, Any]:
        return {"said": [f"answer {len(state['said'])}"], "count": 1}

    state = delta_state(every=every)
    return StateGraph(state).add_node("answer", answer).add_edge(START, "answer").compile(checkpointer=saver)


@pytest.mark.parametrize(("every", "durability"), [(1000, "sync"), (7, "async"), (7, "exit")])
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


LONG_TURNS = 120  # 333 made the table of docs/howto/langgraph.md
MOST_BYTES = 4_000_000


async def converse(saver: Any, turns: int) -> list[Any]:
    """Three checkpoints a turn of 500 bytes, as a graph with one node makes them."""
    said: list[Any] = []
    at: Any = config()
    step = 0
    for turn in range(turns):
        for message in (None, HumanMessage(f"{turn} " + "w" * 245, id=f"h{turn}"), AIMessage("w" * 250, id=f"a{turn}")):
            if message is not None:
                await saver.aput_writes(at, [("messages", [message])], f"task-{step}", "~__pregel_pull, answer")
                said = [*said, message]
            step += 1
            at = await put(saver, {"messages": said}, at, version=f"{step:032}.0.5", step=step, source="loop")
    return said


@pytest.mark.slow
async def test_a_long_thread_is_small_and_its_latest_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small beside that of the official saver; and near: a few questions to the store, however long it is."""
    official_saver = pytest.importorskip("langgraph.checkpoint.sqlite.aio").AsyncSqliteSaver
    async with History(tmp_path / "bot.outbox.db", store=tmp_path / "history.db") as history:
        said = await converse(LetopisSaver(history), LONG_TURNS)
        await until(lambda: history.drained(0), patience=60)
        async with official_saver.from_conn_string(str(tmp_path / "official.db")) as official:
            await converse(official, LONG_TURNS)
        gateway, asked = history._parts.record_reads._gateway, list[None]()
        read = gateway.read

        async def counted(*given: Any, **options: Any) -> Any:
            asked.append(None)
            return await read(*given, **options)

        monkeypatch.setattr(gateway, "read", counted)
        found = await LetopisSaver(history).aget_tuple(config())
        assert found is not None and found.checkpoint["channel_values"]["messages"] == said
        assert len(asked) <= 3
        assert len([one async for one in LetopisSaver(history).alist(config(), limit=30)]) == 30

    sizes = {name: (tmp_path / name).stat().st_size for name in ("history.db", "bot.outbox.db", "official.db")}
    assert sizes["history.db"] < MOST_BYTES / 2
    assert sizes["history.db"] + sizes["bot.outbox.db"] < MOST_BYTES < sizes["official.db"] / 4
