"""Prove that events are stored as they are, and that damaged ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from letopis.store import (
    NULL,
    ConversationAnnotated,
    ConversationRenamed,
    ConversationStarted,
    CustomEvent,
    Event,
    FaultClass,
    Message,
    MessageAppended,
    MessageSent,
    StoreFault,
    ToolCall,
)
from letopis.store.rules.apply_plan import ApplyResult
from letopis.store.testing.conformance import StoreConformance
from letopis.store.testing.delivery import ONLY, applied, said, texts
from letopis.store.testing.destination_store import DestinationStore
from letopis.store.testing.outbox import Outbox, log_size, with_text


class ContentConformance(StoreConformance):
    """Store what events hold, and refuse what no encoder made."""

    async def test_what_is_applied_is_read_back_as_it_was_said(self, store: DestinationStore) -> None:
        outbox = Outbox()
        message = Message.user("Приве́т 👋", id="m-1", name="Аня", author="7", tokens=3, metadata={"a": [1, 2.5, None]})
        outbox.append(ONLY, ConversationStarted(owner_id="42", title="Tea"), message)

        result = await outbox.deliver(store)

        assert result == ApplyResult(applied=(applied(2, 2, 0),), refused=())
        page = await store.messages(ONLY)
        assert [recorded.message for recorded in page] == [message]
        assert (page[0].version, page[0].sequence, page[0].origin_id) == (2, 2, outbox.origin.origin_id)
        conversation = await store.conversation(ONLY)
        assert conversation is not None
        assert (conversation.owner_id, conversation.number, conversation.title) == ("42", 1, "Tea")
        assert (conversation.version, conversation.message_count, conversation.tokens) == (2, 1, 3)

    async def test_json_is_kept_as_given_and_a_retry_in_another_order_changes_nothing(
        self, store: DestinationStore
    ) -> None:
        given = {"zone": {"b": 1, "a": [{"y": None, "x": 2.50}]}, "Ключ": 1, "a": 2}
        turned = {"a": 2, "Ключ": 1, "zone": {"a": [{"x": 2.5, "y": None}], "b": 1}}
        outbox = Outbox()
        first, again = (
            Message.assistant([ToolCall("c", "weather", arguments)], id="m-1", metadata=arguments)
            for arguments in (given, turned)
        )
        outbox.append(ONLY, first, Message(role="developer", content="Be brief.", id="m-2"))
        outbox.append(ONLY, Message.assistant(None, id="m-3"))
        await outbox.deliver(store)
        outbox.append(ONLY, again)
        result = await outbox.deliver(store)

        assert [one.head for one in result.applied] == [4]
        called, instructed, silent = await store.messages(ONLY)
        assert isinstance(called.content, tuple)
        [call] = called.content
        assert isinstance(call, ToolCall)
        for kept in (call.arguments, called.message.metadata):
            assert json.dumps(kept) == json.dumps(given) != json.dumps(turned)
        assert (instructed.role, instructed.text) == ("developer", "Be brief.")
        assert (silent.content, silent.text) == (None, "")
        for event in await store.events(ONLY):
            assert list(event.data)[:3] == ["content", "message_id", "role"]

    async def test_annotations_keep_their_order_and_store_a_null_that_is_named(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, ConversationAnnotated(metadata={"z": {"b": 1, "a": 2}, "reviewer": NULL, "a": 1}))
        outbox.append(ONLY, ConversationAnnotated(metadata={"a": None, "z": 2, "m": NULL, "gone": None}))
        await outbox.deliver(store)

        conversation = await store.conversation(ONLY)
        assert conversation is not None
        assert list(conversation.metadata.items()) == [("z", 2), ("reviewer", None), ("m", None)]
        assert (await store.events(ONLY))[0].data == {
            "metadata": {"z": {"b": 1, "a": 2}, "reviewer": None, "a": 1},
            "nulls": ["reviewer"],
        }

    async def test_a_damaged_event_is_poison_and_nothing_of_its_batch_is_written(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("good", *said(2))
        [event] = outbox.append("bad", Message.user("whole"))
        outbox.lanes["bad"] = [replace(event, data=event.data.replace("whole", "wh0le"))]

        with pytest.raises(StoreFault) as caught:
            await outbox.deliver(store)

        assert caught.value.fault_class is FaultClass.POISON
        assert "wh0le" not in str(caught.value)
        assert await log_size(store) == 0
        assert await store.conversation("good") is None

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param('{"owner_id":"' + "x" * 256 + '"}', id="long owner"),
            pytest.param('{"owner_id":"a\\u0000b"}', id="NUL in the owner"),
            pytest.param("[1]", id="no object"),
            pytest.param("{", id="no JSON"),
        ],
    )
    async def test_an_event_that_no_codec_made_is_poison_on_every_store(
        self, store: DestinationStore, data: str
    ) -> None:
        outbox = Outbox()
        [event] = outbox.append(ONLY, ConversationStarted(owner_id="42"))
        outbox.lanes[ONLY] = [with_text(event, data)]

        with pytest.raises(StoreFault) as caught:
            await outbox.deliver(store)

        assert caught.value.fault_class is FaultClass.POISON
        assert await log_size(store) == 0

    async def test_a_message_that_no_codec_made_is_carried_but_is_no_message(self, store: DestinationStore) -> None:
        outbox = Outbox()
        for message_id in ("x" * 256, "a\\u0000b", ""):
            [event] = outbox.append(ONLY, Message.user("x"))
            outbox.lanes[ONLY][-1] = with_text(event, f'{{"content":"x","message_id":"{message_id}","role":"user"}}')

        await outbox.deliver(store)

        assert len(await store.events(ONLY)) == 3
        assert len(await store.messages(ONLY)) == 0
        conversation = await store.conversation(ONLY)
        assert conversation is not None and (conversation.version, conversation.message_count) == (3, 0)

    async def test_messages_of_old_batches_are_edited_sent_and_failed(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, Message.assistant("draft", id="m-1"), Message.assistant("second", id="m-2"))
        outbox.append("chat-2", Message.assistant("of another conversation", id="m-1"))
        await outbox.deliver(store)
        outbox.append(
            ONLY,
            Event(type="message.edited", data={"message_id": "m-1", "content": "final"}),
            MessageSent(message_id="m-1", platform_ids={"telegram": 17}, sent_as="message"),
            Event(type="message.failed", data={"message_id": "m-2", "reason": "blocked by user"}),
            MessageSent(message_id="nobody"),
        )
        await outbox.deliver(store)

        [first, second] = await store.messages(ONLY)

        assert (first.text, first.edited, first.delivery) == ("final", True, "sent")
        assert first.delivery_data == {"platform_ids": {"telegram": 17}, "sent_as": "message"}
        assert (second.text, second.edited, second.delivery) == ("second", False, "failed")
        assert second.delivery_data == {"reason": "blocked by user"}
        [other] = await store.messages("chat-2")
        assert (other.text, other.edited, other.delivery) == ("of another conversation", False, "appended")

    async def test_unknown_custom_and_newer_events_are_kept_as_they_are(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(
            ONLY,
            CustomEvent(name="payment_taken", data={"amount": "9.99", "message_id": 5}),
            Event(type="weather.changed", data={"to": ["rain", None]}, metadata={"by": "sky"}),
            Event(type="message.appended", schema_version=2, data={"shape": "of tomorrow"}),
            ConversationRenamed(title="Ж" * 3000),
            Message.user("after"),
        )
        await outbox.deliver(store)

        page = await store.events(ONLY)

        assert [event.type for event in page] == [
            "custom.payment_taken",
            "weather.changed",
            "message.appended",
            "conversation.renamed",
            "message.appended",
        ]
        assert page[0].data == {"amount": "9.99", "message_id": 5}
        assert (page[1].data, page[1].metadata) == ({"to": ["rain", None]}, {"by": "sky"})
        assert (page[2].schema_version, page[2].data) == (2, {"shape": "of tomorrow"})
        assert await texts(store) == ["after"]
        conversation = await store.conversation(ONLY)
        assert conversation is not None
        assert (conversation.title, conversation.message_count, conversation.version) == ("Ж" * 3000, 1, 5)

    async def test_a_large_event_is_stored(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *(Message.user("Ж" * 500_000) for _ in range(3)))
        await outbox.deliver(store)

        assert [len(text) for text in await texts(store)] == [500_000] * 3

    async def test_the_tokens_of_a_conversation_stop_at_what_a_store_holds(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *(Message.user("x", tokens=2**62) for _ in range(3)))
        await outbox.deliver(store)

        conversation = await store.conversation(ONLY)
        assert conversation is not None and conversation.tokens == 2**63 - 1

    async def test_the_earliest_and_the_latest_moment_are_kept(self, store: DestinationStore) -> None:
        moments = [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)]
        outbox = Outbox()
        body = MessageAppended(message=Message.user("x"))
        outbox.append(
            ONLY, *(Event(type="message.appended", data=body.to_data(), occurred_at=moment) for moment in moments)
        )
        await outbox.deliver(store)

        assert [event.occurred_at for event in await store.events(ONLY)] == moments
