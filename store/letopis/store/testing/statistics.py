"""Prove that messages and tokens are counted as the contract says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from letopis.store import (
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    Event,
    Figures,
    InvalidInput,
    Message,
    MessageRedacted,
    Statistics,
)
from letopis.store.model.codec import encode
from letopis.store.rules.preconditions import PRECONDITION_KEY, Precondition
from letopis.store.testing.capabilities import Capability, requires
from letopis.store.testing.conformance import StoreConformance
from letopis.store.testing.destination_store import DestinationStore
from letopis.store.testing.outbox import Outbox

DAY = datetime(2026, 3, 1, tzinfo=UTC)


def said(conversation_id: str, message: Message, moment: datetime = DAY, **metadata: Any) -> Event:
    return replace(Event.of(message, conversation_id=conversation_id), occurred_at=moment, metadata=metadata)


@requires(Capability.STATISTICS)
class StatisticsConformance(StoreConformance):
    """Count over owners, periods and keys, also what was taken back."""

    async def test_questions_answers_and_tokens_are_counted(self, store: DestinationStore) -> None:
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

    async def test_a_period_holds_its_first_moment_and_not_its_last(self, store: DestinationStore) -> None:
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
        # The same moment in another time zone.
        assert await tokens(DAY.astimezone(tz=datetime.now(UTC).astimezone().tzinfo), None) == 110

    async def test_messages_taken_back_still_count(self, store: DestinationStore) -> None:
        """Rewound, redacted and deleted messages count; their metadata is gone with their content."""
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

    async def test_a_superseded_message_counts_its_tokens_only(self, store: DestinationStore) -> None:
        first, late = Outbox(), Outbox()
        first.append("c1", Message.user("q"))
        await first.deliver(store)
        seen = Precondition(sequence=0, version=1, types=None).to_data()
        first.append("c1", Message.assistant("first", tokens=2))
        await first.deliver(store)
        answer = replace(
            Event.of(Message.assistant("late", tokens=3), conversation_id="c1"), metadata={PRECONDITION_KEY: seen}
        )
        late.append_encoded("c1", [encode(answer, conversation_id="c1")])
        await late.deliver(store)

        assert [one.superseded for one in await store.messages("c1", every=True)] == [False, False, True]
        assert await store.statistics() == Statistics(questions=1, answers=1, messages=2, tokens=5, conversations=1)

    async def test_values_of_a_key_are_told_apart_as_json(self, store: DestinationStore) -> None:
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
    async def test_wrong_arguments_are_refused(
        self, store: DestinationStore, field: str, arguments: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidInput) as caught:
            await store.statistics(**arguments)

        assert caught.value.field == field
