"""A graph of LangGraph with a checkpointer, and a node that answers without a network."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
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
