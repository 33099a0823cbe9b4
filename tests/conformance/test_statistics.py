"""Statistics: the same figures on every store, whatever was appended or rewound, and in however many pages."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from datetime import timedelta
from typing import Any

import pytest

from letopis.store import ConversationStarted, ConversationStore, Figures, Message, Statistics
from letopis.store.read import statistics as reading
from letopis.store.rules import statistics as counting
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.statistics import DAY, StatisticsConformance, said


class TestStatistics(StatisticsConformance):
    """The published contract."""


async def test_any_number_of_pages_come_to_the_same(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small conversations and one that is longer than a page, counted by hand beside."""
    monkeypatch.setattr(reading, "MAX_EVENTS_PER_PAGE", 7)
    chance = random.Random(5)
    outbox = Outbox()
    counted: defaultdict[str, list[Message]] = defaultdict(list)
    names = [f"c{number}" for number in range(20)] + ["long"] * 5
    owners = {name: chance.choice("12") if name != "long" else "1" for name in names}
    for name, owner in owners.items():
        outbox.append(name, ConversationStarted(owner_id=owner))
    for _ in range(200):
        name = chance.choice(names)
        moment = DAY + timedelta(hours=chance.randrange(48))
        message = Message(
            role=chance.choice(["user", "assistant"]),
            content="x",
            tokens=chance.choice([None, 3]),
            metadata={"m": name},
        )
        outbox.append(name, said(name, message, moment))
        if moment >= DAY + timedelta(hours=24) and owners[name] == "1":
            counted[name].append(message)
    await outbox.deliver(store)

    found = await store.statistics(owner="1", since=DAY + timedelta(hours=24), by="m")

    for name, messages in counted.items():
        asked = sum(message.role == "user" for message in messages)
        tokens = sum(message.tokens or 0 for message in messages)
        expected = Figures(questions=asked, answers=len(messages) - asked, messages=len(messages), tokens=tokens)
        assert found.by[name] == expected
    assert len(found.by) == found.conversations == len(counted) > 5
    assert found.messages == sum(map(len, counted.values()))


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
    found = await store.outbox_access.statistics(
        counting.Period(), origin_id=outbox.origin.origin_id, lanes={"a": (), "d": (), "nowhere": ()}
    )

    assert delivered
    assert found.counting.result() == Statistics(questions=4, messages=4, tokens=4, conversations=4)
    assert (found.heads, found.there) == ({"a": 1, "d": 1}, {"a", "d"})
    assert (await store.statistics()).tokens == 404
