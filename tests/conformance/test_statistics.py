"""Statistics: the same figures on every store, whatever was said, taken back or read in how many pages."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from letopis.store import (
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    ConversationStore,
    Event,
    Figures,
    InvalidInput,
    Message,
    MessageRedacted,
    Statistics,
)
from letopis.store import statistics as counting
from letopis.store.codec import encode
from letopis.store.turns import EXPECTS, Expects
from tests.conformance.outboxes import Outbox

DAY = datetime(2026, 3, 1, tzinfo=UTC)


def said(conversation_id: str, message: Message, moment: datetime = DAY, **metadata: Any) -> Event:
    return replace(Event.of(message, conversation_id=conversation_id), occurred_at=moment, metadata=metadata)


async def test_questions_answers_and_tokens_are_counted(store: ConversationStore) -> None:
    outbox = Outbox()
    outbox.append("c1", ConversationStarted(owner_id="42"))
    outbox.append(
        "c1",
        Message.system("be kind", tokens=1),
        Message.user("hi", tokens=2),
        Message.assistant("hello", tokens=4, metadata={"model": "small"}),
        Message.tool("x", metadata={"model": "small"}),
    )
    outbox.append("c2", ConversationStarted(owner_id="42"), Message.assistant("hm", metadata={"model": "large"}))
    outbox.append("c3", ConversationStarted(owner_id="7"), Message.user("mine", tokens=100))
    outbox.append("empty", ConversationStarted(owner_id="42"))
    await outbox.deliver(store)

    assert await store.statistics(owner="42") == Statistics(
        questions=1, answers=2, messages=5, tokens=7, conversations=2
    )
    assert await store.statistics() == Statistics(questions=2, answers=2, messages=6, tokens=107, conversations=3)
    assert (await store.statistics(owner="42", by="model")).by == {
        "small": Figures(answers=1, messages=2, tokens=4),
        None: Figures(questions=1, messages=2, tokens=3),
        "large": Figures(answers=1, messages=1),
    }
    assert await store.statistics(owner="nobody") == Statistics()


async def test_a_period_holds_its_first_moment_and_not_its_last(store: ConversationStore) -> None:
    outbox = Outbox()
    tick = timedelta(microseconds=1)
    moments = [DAY - tick, DAY, DAY + tick]
    for number, moment in enumerate(moments):
        outbox.append("c1", said("c1", Message.user("hi", tokens=10**number), moment))
    await outbox.deliver(store)

    async def tokens(since: datetime | None, until: datetime | None) -> int:
        return (await store.statistics(since=since, until=until)).tokens

    assert await tokens(DAY, None) == 110
    assert await tokens(None, DAY) == 1
    assert await tokens(DAY, DAY + tick) == 10
    assert await tokens(DAY, DAY) == 0
    # The same moment, told in another zone.
    assert await tokens(DAY.astimezone(tz=datetime.now(UTC).astimezone().tzinfo), None) == 110


async def test_what_was_taken_back_was_paid_for(store: ConversationStore) -> None:
    """Rewound, redacted and deleted messages count; what metadata they had is gone with the words."""
    outbox = Outbox()
    for name in ("rewound", "redacted", "deleted"):
        outbox.append(
            name,
            ConversationStarted(owner_id="42"),
            Message.user("q", id="q", metadata={"kind": "deep"}),
            Message.assistant("a", id="a", tokens=5, metadata={"kind": "deep"}),
        )
    await outbox.deliver(store)
    whole = await store.statistics(owner="42", by="kind")
    outbox.append("rewound", ConversationRewound())
    outbox.append("redacted", MessageRedacted(message_id="a"))
    outbox.append("deleted", ConversationDeleted())
    await outbox.deliver(store)

    found = await store.statistics(owner="42", by="kind")

    assert (found.questions, found.answers, found.tokens, found.conversations) == (3, 3, 15, 3)
    assert replace(found, by={}) == replace(whole, by={})
    assert whole.by == {"deep": Figures(questions=3, answers=3, messages=6, tokens=15)}
    assert found.by == {
        "deep": Figures(questions=2, answers=1, messages=3, tokens=5),
        None: Figures(questions=1, answers=2, messages=3, tokens=10),
    }


async def test_of_a_superseded_message_only_the_tokens_count(store: ConversationStore) -> None:
    first, late = Outbox(), Outbox()
    first.append("c1", Message.user("q"))
    await first.deliver(store)
    seen = Expects(sequence=0, version=1, types=None).to_data()
    first.append("c1", Message.assistant("first", tokens=2))
    await first.deliver(store)
    answer = replace(Event.of(Message.assistant("late", tokens=3), conversation_id="c1"), metadata={EXPECTS: seen})
    late.append_encoded("c1", [encode(answer, conversation_id="c1")])
    await late.deliver(store)

    assert [one.superseded for one in await store.messages("c1", every=True)] == [False, False, True]
    assert await store.statistics() == Statistics(questions=1, answers=1, messages=2, tokens=5, conversations=1)


async def test_values_of_a_key_are_told_apart_as_json(store: ConversationStore) -> None:
    outbox = Outbox()
    for value in ("1", 1, 1.0, True, None, "", [1, {"b": 2, "a": 1}], "Ё 'quoted\" \\ $.x"):
        outbox.append("c1", Message.user("hi", metadata={"k": value}))
    outbox.append("c1", Message.user("hi"))
    await outbox.deliver(store)

    by = (await store.statistics(by="k")).by

    assert {label: one.messages for label, one in by.items()} == {
        "1": 2,
        None: 2,
        "1.0": 1,
        "true": 1,
        "": 1,
        '[1,{"a":1,"b":2}]': 1,
        "Ё 'quoted\" \\ $.x": 1,
    }


async def test_any_number_of_pages_come_to_the_same(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small conversations and one that is longer than a page, counted by hand beside."""
    monkeypatch.setattr(counting, "_PAGE", 7)
    chance = random.Random(5)
    outbox = Outbox()
    expected: dict[str | None, dict[str, int]] = {}
    names = [f"c{number}" for number in range(20)] + ["long"] * 5
    for name in names:
        outbox.append(name, ConversationStarted(owner_id=chance.choice("12") if name != "long" else "1"))
    owners = {name: outbox.lanes[name][0].data.split('"')[3] for name in names}
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
            sums = expected.setdefault(name, {"questions": 0, "answers": 0, "messages": 0, "tokens": 0})
            sums["questions"] += message.role == "user"
            sums["answers"] += message.role == "assistant"
            sums["messages"] += 1
            sums["tokens"] += message.tokens or 0
    await outbox.deliver(store)

    found = await store.statistics(owner="1", since=DAY + timedelta(hours=24), by="m")

    assert found.by == {name: Figures(**sums) for name, sums in expected.items()}
    assert len(expected) > 5
    assert found.conversations == len(expected)
    assert found.messages == sum(sums["messages"] for sums in expected.values())


async def test_all_partitions_are_counted(store_url: str) -> None:
    async with ConversationStore.open(store_url, migrate=True, partitions=3) as store:
        outbox = Outbox()
        for number in range(12):
            outbox.append(f"c{number}", ConversationStarted(owner_id=str(number % 2)), Message.user("hi", tokens=1))
        await outbox.deliver(store)

        assert (await store.statistics()).tokens == 12
        assert (await store.statistics(owner="1")).conversations == 6


async def test_a_count_is_of_one_moment(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is delivered while pages are read is in none of them, nor in the heads of the lanes."""
    monkeypatch.setattr(counting, "_PAGE", 2)
    outbox = Outbox()
    for name in "abcd":
        outbox.append(name, Message.user("hi", tokens=1))
    await outbox.deliver(store)
    for name in "abcd":
        outbox.append(name, Message.user("more", tokens=100))

    pages = counting.Counter._pages
    delivered = []

    async def interrupted(self: Any, *arguments: Any) -> Any:
        async for page in pages(self, *arguments):
            if not delivered:
                delivered.append(await outbox.deliver(store))
            yield page

    monkeypatch.setattr(counting.Counter, "_pages", interrupted)
    found = await store.counted(counting.Period(), origin_id=outbox.origin.origin_id, lanes=["a", "d", "nowhere"])

    assert delivered
    assert found.counting.result() == Statistics(questions=4, messages=4, tokens=4, conversations=4)
    assert found.heads == {"a": 1, "d": 1}
    assert found.there == {"a", "d"}
    assert (await store.statistics()).tokens == 404


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("since", {"since": datetime(2026, 1, 1)}),  # noqa: DTZ001 - that is the fault
        ("until", {"until": "yesterday"}),
        ("by", {"by": ""}),
        ("by", {"by": 5}),
        ("owner", {"owner": ""}),
    ],
)
async def test_wrong_arguments_are_told(store: ConversationStore, field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        await store.statistics(**arguments)

    assert caught.value.field == field


async def test_a_key_of_unique_values_does_not_fill_the_memory(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "GROUPS_MAX", 3)
    outbox = Outbox()
    for number in range(4):
        outbox.append("c1", Message.user("hi", metadata={"request": number}))
    await outbox.deliver(store)

    with pytest.raises(InvalidInput, match="more than 3 values"):
        await store.statistics(by="request")
