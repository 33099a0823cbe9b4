"""How much a long thread takes, and how long its latest checkpoint; the official saver beside it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import History
from tests.support.relays import until

pytest.importorskip("langgraph.checkpoint.sqlite.aio", reason="needs langgraph: pip install --group adapters")

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from letopis.adapters.langgraph import LetopisSaver
from tests.support.langgraph_turns import config, put

TURNS = 333
MOST_BYTES = 10_000_000
SLOWER_AT_MOST = 3.0


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


async def seconds(saver: Any) -> float:
    start = time.perf_counter()
    found = await saver.aget_tuple(config())
    assert len(found.checkpoint["channel_values"]["messages"]) == 2 * TURNS
    return time.perf_counter() - start


@pytest.mark.slow
async def test_long_thread_is_small_and_its_latest_near(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with History(tmp_path / "bot.outbox.db", store=tmp_path / "history.db") as history:
        said = await converse(LetopisSaver(history), TURNS)
        await until(lambda: history.drained(0), patience=60)
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "official.db")) as official:
            await converse(official, TURNS)
            # The quickest of many, in turns and in rounds: what the machine does besides meets both.
            for _ in range(6):
                ours, theirs = [], []
                for _ in range(15):
                    ours.append(await seconds(LetopisSaver(history)))
                    theirs.append(await seconds(official))
                if min(ours) < SLOWER_AT_MOST * min(theirs):
                    break
        found = await LetopisSaver(history).aget_tuple(config())
        assert found is not None and found.checkpoint["channel_values"]["messages"] == said
        assert len([one async for one in LetopisSaver(history).alist(config(), limit=30)]) == 30
    sizes = {name: (tmp_path / name).stat().st_size for name in ("history.db", "bot.outbox.db", "official.db")}
    with capsys.disabled():
        print(f"\n{TURNS} turns: {sizes}; latest: {min(ours) * 1e3:.1f} ms, official {min(theirs) * 1e3:.1f} ms")

    assert sizes["history.db"] < MOST_BYTES / 2
    assert sizes["history.db"] + sizes["bot.outbox.db"] < MOST_BYTES < sizes["official.db"] / 10
    assert min(ours) < SLOWER_AT_MOST * min(theirs)
