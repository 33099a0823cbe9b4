"""Fifty turns of a graph: the store is away for the middle third, and the bot is killed twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import History
from letopis.store import StoreUnavailable
from tests.support.child import command, promising
from tests.support.peers import refused_port
from tests.support.relays import until

pytest.importorskip("langgraph.graph", reason="needs langgraph: pip install --group adapters")

from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph

from letopis.adapters.langgraph import LetopisSaver

TURNS = 50
AT: Any = {"configurable": {"thread_id": "chat-1"}}
MODEL = ParrotFakeChatModel()


async def answer(state: MessagesState) -> dict[str, Any]:
    heard = await MODEL.ainvoke(state["messages"])
    return {"messages": [AIMessage(f"You said: {heard.content}")]}


def graph_on(saver: Any) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


async def chat(path: str, store: str, promises: str) -> None:
    """Continue the conversation where it stands, and note each turn that the user was told."""
    told = Path(promises)
    async with History(path, store=store) as history:
        graph = graph_on(LetopisSaver(history))
        while True:
            state = await graph.aget_state(AT)
            texts = [one.content for one in state.values.get("messages", ())]
            number = told.read_text(encoding="utf-8").count("\n") if told.exists() else 0
            if state.next:  # killed between a question and its answer
                await graph.ainvoke(None, AT)
            elif number < len(texts) // 2:
                with told.open("a", encoding="utf-8") as file:
                    file.write("|".join(texts[2 * number : 2 * number + 2]) + "\n")
            elif number == TURNS:
                await asyncio.sleep(60)  # until it is killed
            else:
                await graph.ainvoke({"messages": [HumanMessage(f"question {number}")]}, AT)


def lines(number: int) -> str:
    return "".join(f"question {one}|You said: question {one}\n" for one in range(number))


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
async def test_a_conversation_survives_an_outage_and_two_kills(store_url: str, tmp_path: Path) -> None:
    path, promises = tmp_path / "bot.outbox.db", tmp_path / "promises.txt"
    away = f"postgresql://nobody@127.0.0.1:{await refused_port()}/nowhere"
    # Two lives end in the middle of whatever they do, once they have told their share of the answers.
    for store, turns in ((store_url, TURNS // 3), (away, 2 * TURNS // 3), (store_url, TURNS)):
        with promising(command(chat, path, store, promises), promises, size=len(lines(turns)) - 1, patience=90):
            pass
        told = promises.read_text(encoding="utf-8")
        assert told == lines(told.count("\n"))

    async with History(path, store=store_url) as history:
        await until(lambda: history.drained(0), patience=60)
        graph = graph_on(LetopisSaver(history))
        values = (await graph.aget_state(AT)).values["messages"]
        said = [text for line in told.splitlines() for text in line.split("|")]
        assert [one.content for one in values] == said
        assert len(said) == 2 * TURNS
    # Another machine, which knows nothing but the store, reads the same.
    async with History(tmp_path / "other.outbox.db", store=store_url) as other:
        assert (await graph_on(LetopisSaver(other)).aget_state(AT)).values["messages"] == values


async def test_an_unknown_thread_is_not_begun_anew(alone: History) -> None:
    with pytest.raises(StoreUnavailable):
        await graph_on(LetopisSaver(alone)).ainvoke({"messages": [HumanMessage("hello")]}, AT)
