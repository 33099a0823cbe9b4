"""A graph of LangGraph with a checkpointer, and a node that answers without a network."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import Checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, MessagesState, StateGraph

from letopis.adapters.langgraph import LetopisSaver
from letopis.outbox import History
from tests.support.story import Bot, Thinks, answer_to

AT: Any = {"configurable": {"thread_id": "chat-1"}}
_PATIENCE_SECONDS = 2.0


def _bot(saver: Any, thinks: Thinks) -> Bot:
    async def answer(state: MessagesState) -> dict[str, Any]:
        asked = str(state["messages"][-1].content)
        await thinks(asked)
        return {"messages": [AIMessage(answer_to(asked))]}

    graph = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile(checkpointer=saver)

    async def ask(question: str) -> str:
        # By default, a finished step may be lost with the process.
        state = await graph.ainvoke({"messages": [HumanMessage(question)]}, AT, durability="sync")
        return str(state["messages"][-1].content)

    async def read() -> list[str]:
        return [str(one.content) for one in (await graph.aget_state(AT)).values["messages"]]

    return Bot(ask, read)


def letopis(history: History, thinks: Thinks) -> Bot:
    return _bot(LetopisSaver(history), thinks)


@asynccontextmanager
async def default(url: str, thinks: Thinks) -> AsyncIterator[Bot]:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from psycopg.rows import dict_row
    from psycopg_pool import AsyncConnectionPool

    pool: Any = AsyncConnectionPool(
        url,
        min_size=1,
        open=False,
        timeout=_PATIENCE_SECONDS,
        check=AsyncConnectionPool.check_connection,
        kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
    )
    await pool.open()
    saver = AsyncPostgresSaver(pool)
    if await _is_there(pool):
        await saver.setup()
    yield _bot(saver, thinks)
    await pool.close()


async def _is_there(pool: Any) -> bool:
    from psycopg_pool import PoolTimeout

    try:
        async with pool.connection():
            return True
    except PoolTimeout:  # it was set up before
        return False


class Salted(JsonPlusSerializer):
    """Gives other bytes each time, as encryption does, which no other serializer reads."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        kind, body = super().dumps_typed(obj)
        return f"salted {kind}", os.urandom(16) + body

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return super().loads_typed((data[0].removeprefix("salted "), data[1][16:]))


def config(thread_id: object = "chat-1", *, ns: str | None = "", checkpoint_id: str | None = None) -> Any:
    given = {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}
    return {"configurable": {name: value for name, value in given.items() if value is not None}}


def checkpoint(values: dict[str, Any], *, version: Any = 1, checkpoint_id: str | None = None) -> Checkpoint:
    return Checkpoint(
        v=4,
        id=checkpoint_id or str(uuid6(clock_seq=-1)),
        ts="2026-11-27T00:00:00+00:00",
        channel_values=dict(values),
        channel_versions=dict.fromkeys(values, version),
        versions_seen={},
        updated_channels=None,
    )


async def put(
    saver: Any,
    values: dict[str, Any],
    at: Any = None,
    *,
    version: Any = 1,
    new: Any = None,
    checkpoint_id: str | None = None,
    **metadata: Any,
) -> Any:
    made = checkpoint(values, version=version, checkpoint_id=checkpoint_id)
    told = {"source": "loop", "step": 1, "parents": {}, **metadata}
    return await saver.aput(at or config(), made, told, made["channel_versions"] if new is None else new)


async def values_of(saver: Any, at: Any = None) -> Any:
    found = await saver.aget_tuple(at or config())
    return None if found is None else found.checkpoint["channel_values"]
