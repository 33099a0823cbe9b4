"""Statistics: the same figures on every store, whatever was appended or rewound, and in however many pages."""

import asyncio
import random
from datetime import timedelta
from typing import Any

import pytest

from letopis.store import ConversationStarted, ConversationStore, Message, Statistics
from letopis.store.read import statistics as reading
from letopis.store.rules import statistics as counting
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.statistics import DAY, StatisticsConformance, said


class TestStatistics(StatisticsConformance):
    """The published contract."""


async def test_any_number_of_pages_come_to_the_same(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small conversations, and one that is longer than a page."""
    chance = random.Random(5)
    outbox = Outbox()
    names = [f"c{number}" for number in range(20)] + ["long"] * 5
    for name in dict.fromkeys(names):
        outbox.append(name, ConversationStarted(owner_id=chance.choice("12") if name != "long" else "1"))
    for _ in range(200):
        name, role, tokens = chance.choice(names), chance.choice(["user", "assistant"]), chance.choice([None, 3])
        message = Message(role=role, content="x", tokens=tokens, metadata={"m": name})
        outbox.append(name, said(name, message, DAY + timedelta(hours=chance.randrange(48))))
    await outbox.deliver(store)

    asked: dict[str, Any] = {"owner": "1", "since": DAY + timedelta(hours=24), "by": "m"}
    whole = await store.statistics(**asked)
    monkeypatch.setattr(reading, "MAX_EVENTS_PER_PAGE", 7)
    assert await store.statistics(**asked) == whole
    assert len(whole.by) == whole.conversations > 5
    assert 20 < whole.messages < 100


async def test_a_count_is_of_one_moment(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is delivered while pages are read is in none of them, nor in the heads of the lanes."""
    monkeypatch.setattr(reading, "MAX_EVENTS_PER_PAGE", 2)
    outbox = Outbox()
    for name in "abcd":
        outbox.append(name, Message.user("hi", tokens=1))
    await outbox.deliver(store)
    for name in "abcd":
        outbox.append(name, Message.user("more", tokens=100))

    pages, loop = reading.StatisticsReader._conversation_pages, asyncio.get_running_loop()
    delivered = []

    async def interrupted(self: Any, *arguments: Any) -> Any:
        async for page in pages(self, *arguments):
            if not delivered:
                # A store on SQLite reads in a thread, which no loop runs in.
                delivering = asyncio.run_coroutine_threadsafe(outbox.deliver(store), loop)
                sqlite = store.url.get_backend_name() == "sqlite"
                delivered.append(delivering.result(60) if sqlite else await asyncio.wrap_future(delivering))
            yield page

    monkeypatch.setattr(reading.StatisticsReader, "_conversation_pages", interrupted)
    reader, lanes = (await store.runtime.prepared()).statistics, {"a": (), "d": (), "nowhere": ()}
    found = await store.runtime.connected(
        lambda connection: reader.count(connection, counting.Period(), origin_id=outbox.origin.origin_id, lanes=lanes)
    )

    assert delivered
    assert found.counting.result() == Statistics(questions=4, messages=4, tokens=4, conversations=4)
    assert (found.heads, found.there) == ({"a": 1, "d": 1}, {"a", "d"})
    assert (await store.statistics()).tokens == 404
