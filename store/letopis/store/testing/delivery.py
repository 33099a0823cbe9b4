"""Prove that every event takes effect once, in the order of its lane, however often it is delivered."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from uuid import UUID, uuid4

import anyio
import pytest

from letopis.store import (
    ConversationStarted,
    Event,
    FaultClass,
    HistoryDiverged,
    InvalidInput,
    Message,
    OriginSuperseded,
    SequenceGap,
    StoreFault,
)
from letopis.store.rules.apply_plan import ApplyResult, LaneApplied
from letopis.store.testing.conformance import StoreConformance
from letopis.store.testing.destination_store import DestinationStore
from letopis.store.testing.outbox import Outbox, assert_no_gaps, log_size, whole_log, with_text

ONLY = "chat-1"


def said(count: int, start: int = 1) -> list[Message]:
    return [Message.user(f"message {number}") for number in range(start, start + count)]


async def texts(store: DestinationStore, conversation_id: str = ONLY) -> list[str]:
    return [message.text for message in await store.messages(conversation_id)]


def applied(head: int, inserted: int, duplicates: int, conversation_id: str = ONLY) -> LaneApplied:
    return LaneApplied(conversation_id=conversation_id, head=head, inserted=inserted, duplicates=duplicates)


class DeliveryConformance(StoreConformance):
    """Deliver once, again, in part, in disorder, through several outboxes and at the same time."""

    async def test_an_empty_batch_changes_nothing(self, store: DestinationStore) -> None:
        assert await store.apply(Outbox().origin, []) == ApplyResult(applied=(), refused=())
        assert await log_size(store) == 0

    async def test_a_whole_lane_delivered_again_is_absorbed(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *said(5))
        await outbox.deliver(store)
        before = await whole_log(store), await store.messages(ONLY), await store.conversation(ONLY)

        result = await store.apply(outbox.origin, [outbox.batch(ONLY)])

        assert result.applied == (applied(5, 0, 5),)
        assert (await whole_log(store), await store.messages(ONLY), await store.conversation(ONLY)) == before

    async def test_a_prefix_delivered_again_is_absorbed_and_reports_the_head(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *said(5))
        await outbox.deliver(store)

        result = await store.apply(outbox.origin, [outbox.batch(ONLY, 1, 2)])

        assert result.applied == (applied(5, 0, 2),)

    async def test_an_overlap_writes_only_what_is_new(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *said(8))
        await store.apply(outbox.origin, [outbox.batch(ONLY, 1, 5)])

        result = await store.apply(outbox.origin, [outbox.batch(ONLY, 4, 8)])

        assert result.applied == (applied(8, 3, 2),)
        assert await texts(store) == [f"message {number}" for number in range(1, 9)]
        await assert_no_gaps(store)

    async def test_other_content_under_the_same_id_and_sequence_is_refused(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *said(3))
        await outbox.deliver(store)
        forged = outbox.copy()
        forged.lanes[ONLY][1] = with_text(forged.lanes[ONLY][1], '{"content":"no","message_id":"x","role":"user"}')

        result = await store.apply(forged.origin, [forged.batch(ONLY)])

        assert result.applied == ()
        [refusal] = result.refused
        assert isinstance(refusal, HistoryDiverged)
        assert (refusal.sequence, refusal.event_id) == (2, forged.lanes[ONLY][1].event_id)
        assert await texts(store) == ["message 1", "message 2", "message 3"]

    async def test_another_event_under_the_same_sequence_is_refused(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *said(3))
        await outbox.deliver(store)
        other = Outbox(origin_id=outbox.origin.origin_id)
        other.append(ONLY, *said(4))

        [refusal] = (await store.apply(other.origin, [other.batch(ONLY)])).refused

        assert isinstance(refusal, HistoryDiverged) and refusal.sequence == 1
        assert await log_size(store) == 3

    async def test_events_in_another_order_are_refused(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *said(2))
        await outbox.deliver(store)
        swapped = outbox.copy()
        swapped.lanes[ONLY].reverse()

        for batch in (swapped.batch(ONLY), swapped.batch(ONLY, 1, 1), swapped.batch(ONLY, 2, 2)):
            [refusal] = (await store.apply(swapped.origin, [batch])).refused
            assert isinstance(refusal, HistoryDiverged)

    async def test_other_content_under_a_known_id_at_a_later_sequence_is_refused(self, store: DestinationStore) -> None:
        outbox = Outbox()
        [first] = outbox.append(ONLY, Message.user("yes"))
        await outbox.deliver(store)
        outbox.append_encoded(ONLY, [with_text(first, '{"content":"no","message_id":"x","role":"user"}')])

        [refusal] = (await outbox.deliver(store)).refused

        assert isinstance(refusal, HistoryDiverged) and refusal.sequence == 2
        assert await texts(store) == ["yes"]
        assert await store.lane_heads(outbox.origin.origin_id, [ONLY]) == {ONLY: 1}

    async def test_a_known_event_at_a_later_sequence_is_absorbed_again_and_again(self, store: DestinationStore) -> None:
        """An outbox that pruned an event accepts the same one again; the store keeps one."""
        outbox = Outbox()
        [first, _] = outbox.append(ONLY, Message.user("once", id="m-1"), Message.user("between"))
        await outbox.deliver(store)
        outbox.append_encoded(ONLY, [first])
        outbox.append(ONLY, Message.user("after"))

        assert (await store.apply(outbox.origin, [outbox.batch(ONLY, 3)])).applied == (applied(4, 1, 1),)
        assert (await store.apply(outbox.origin, [outbox.batch(ONLY, 3)])).applied == (applied(4, 0, 2),)
        assert (await store.apply(outbox.origin, [outbox.batch(ONLY)])).applied == (applied(4, 0, 4),)
        assert await texts(store) == ["once", "between", "after"]
        await assert_no_gaps(store)

    async def test_a_lane_that_only_repeats_still_advances(self, store: DestinationStore) -> None:
        outbox = Outbox()
        [first] = outbox.append(ONLY, Message.user("once", id="m-1"))
        await outbox.deliver(store)
        outbox.append_encoded(ONLY, [first])

        assert (await outbox.deliver(store)).applied == (applied(2, 0, 1),)
        assert await store.lane_heads(outbox.origin.origin_id, [ONLY]) == {ONLY: 2}
        assert await log_size(store) == 1

    async def test_an_event_twice_in_one_delivery_is_written_once(self, store: DestinationStore) -> None:
        outbox = Outbox()
        [first] = outbox.append(ONLY, Message.user("once", id="m-1"))
        outbox.append_encoded(ONLY, [first])

        assert (await outbox.deliver(store)).applied == (applied(2, 1, 1),)
        assert await texts(store) == ["once"]

    async def test_an_id_twice_in_one_delivery_with_other_content_is_refused(self, store: DestinationStore) -> None:
        outbox = Outbox()
        [first] = outbox.append(ONLY, Message.user("yes", id="m-1"))
        outbox.append_encoded(ONLY, [with_text(first, '{"content":"no","message_id":"m-1","role":"user"}')])

        [refusal] = (await outbox.deliver(store)).refused

        assert isinstance(refusal, HistoryDiverged)
        assert await log_size(store) == 0

    async def test_a_gap_is_refused_with_the_head_to_go_on_from(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *said(6))
        await store.apply(outbox.origin, [outbox.batch(ONLY, 1, 2)])

        [refusal] = (await store.apply(outbox.origin, [outbox.batch(ONLY, 5, 6)])).refused

        assert isinstance(refusal, SequenceGap)
        assert (refusal.conversation_id, refusal.head, refusal.first) == (ONLY, 2, 5)
        assert await texts(store) == ["message 1", "message 2"]
        result = await store.apply(outbox.origin, [outbox.batch(ONLY, refusal.head + 1)])
        assert result.applied == (applied(6, 4, 0),)

    async def test_a_gap_at_the_beginning_is_refused(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *said(3))

        [refusal] = (await store.apply(outbox.origin, [outbox.batch(ONLY, 2)])).refused

        assert isinstance(refusal, SequenceGap) and refusal.head == 0
        assert await store.conversation(ONLY) is None

    async def test_a_refused_lane_does_not_hold_back_the_others(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("gap", *said(2))
        outbox.append("good", *said(2))
        outbox.append("diverged", *said(1))
        await store.apply(outbox.origin, [outbox.batch("diverged")])
        outbox.lanes["diverged"] = []
        outbox.append("diverged", *said(2))

        result = await store.apply(
            outbox.origin, [outbox.batch("gap", 2), outbox.batch("good"), outbox.batch("diverged")]
        )

        assert result.applied == (applied(2, 2, 0, "good"),)
        assert {refusal.conversation_id: type(refusal) for refusal in result.refused} == {
            "gap": SequenceGap,
            "diverged": HistoryDiverged,
        }
        assert await texts(store, "good") == ["message 1", "message 2"]
        assert len(await store.messages("diverged")) == 1
        await assert_no_gaps(store)

    async def test_a_batch_must_not_name_a_lane_twice(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *said(2))

        with pytest.raises(InvalidInput, match="batch"):
            await store.apply(outbox.origin, [outbox.batch(ONLY, 1, 1), outbox.batch(ONLY, 2, 2)])

        assert await log_size(store) == 0

    async def test_two_outboxes_share_a_conversation(self, store: DestinationStore) -> None:
        one, other = Outbox("one.db"), Outbox("other.db")
        for number in range(4):
            for outbox in (one, other):
                outbox.append(ONLY, Message.user(f"{outbox.origin.name} {number}"))
                await outbox.deliver(store)

        assert await texts(store) == [f"{name} {number}" for number in range(4) for name in ("one.db", "other.db")]
        assert await store.lane_heads(one.origin.origin_id, [ONLY]) == {ONLY: 4}
        assert await store.lane_heads(other.origin.origin_id, [ONLY]) == {ONLY: 4}
        await assert_no_gaps(store)

    async def test_outboxes_that_begin_the_same_conversations_at_once_lose_nothing(
        self, store: DestinationStore
    ) -> None:
        names = [f"chat-{number}" for number in range(5)]
        outboxes = [Outbox(f"{number}.db") for number in range(4)]
        for outbox in outboxes:
            for name in random.Random(outbox.origin.name).sample(names, len(names)):
                outbox.append(name, ConversationStarted(owner_id="42"), *said(3))

        async def deliver(outbox: Outbox) -> None:
            while outbox.pending():
                try:
                    await outbox.deliver(store)
                except StoreFault as fault:
                    if fault.fault_class is not FaultClass.CONFLICT:
                        raise

        await asyncio.gather(*map(deliver, outboxes))

        await assert_no_gaps(store)
        assert await log_size(store) == 4 * 5 * 4
        numbers = [conversation.number for conversation in await store.conversations(owner="42")]
        assert sorted(number or 0 for number in numbers) == [1, 2, 3, 4, 5]
        for outbox in outboxes:
            for name in names:
                page = await store.events(name)
                mine = [event.event_id for event in page if event.origin_id == outbox.origin.origin_id]
                assert mine == [event.event_id for event in outbox.lanes[name]]

    async def test_one_event_through_two_outboxes_is_in_the_history_once(self, store: DestinationStore) -> None:
        message = Message.user("hello", id="telegram-1")
        one, other = Outbox(), Outbox()
        one.append(ONLY, message)
        other.append(ONLY, Message.user("before"), message, Message.user("after"))

        assert (await one.deliver(store)).applied == (applied(1, 1, 0),)
        assert (await other.deliver(store)).applied == (applied(3, 2, 1),)
        assert (await store.apply(other.origin, [other.batch(ONLY)])).applied == (applied(3, 0, 3),)
        assert await texts(store) == ["hello", "before", "after"]
        await assert_no_gaps(store)

    async def test_many_events_of_which_some_came_through_another_outbox(self, store: DestinationStore) -> None:
        """Deliver enough rows for the way of writing that is meant for many."""
        shared = [Message.user(f"shared {number}", id=f"m-{number}") for number in range(100)]
        one, other = Outbox(), Outbox()
        one.append(ONLY, *shared[::2])
        other.append(ONLY, *shared, *said(60))

        assert (await one.deliver(store)).applied == (applied(50, 50, 0),)
        assert (await other.deliver(store)).applied == (applied(160, 110, 50),)
        assert (await store.apply(other.origin, [other.batch(ONLY)])).applied == (applied(160, 0, 160),)
        assert sorted(await texts(store)) == sorted([message.text for message in (*shared, *said(60))])
        await assert_no_gaps(store)

    async def test_one_id_with_other_content_through_another_outbox_is_refused(self, store: DestinationStore) -> None:
        one, other = Outbox(), Outbox()
        one.append(ONLY, Message.user("hello", id="telegram-1"))
        other.append(ONLY, Message.user("goodbye", id="telegram-1"))
        await one.deliver(store)

        [refusal] = (await other.deliver(store)).refused

        assert isinstance(refusal, HistoryDiverged)
        assert await texts(store) == ["hello"]

    async def test_one_id_in_two_conversations_is_two_events(self, store: DestinationStore) -> None:
        outbox = Outbox()
        event = Event.of(Message.user("hello"), conversation_id=ONLY)
        outbox.append("chat-1", event)
        outbox.append("chat-2", event)

        await outbox.deliver(store)

        assert await texts(store, "chat-1") == await texts(store, "chat-2") == ["hello"]

    async def test_a_copied_outbox_supersedes_the_file_it_was_copied_from(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *said(2))
        await outbox.deliver(store)
        copied = outbox.copy(epoch=2)
        copied.append(ONLY, Message.user("from the copy"))
        outbox.append(ONLY, Message.user("from the first"))

        await copied.deliver(store)
        with pytest.raises(OriginSuperseded) as caught:
            await outbox.deliver(store)

        assert (caught.value.epoch, caught.value.current) == (1, 2)
        assert await texts(store) == ["message 1", "message 2", "from the copy"]
        assert (await store.apply(copied.origin, [copied.batch(ONLY)])).applied == (applied(3, 0, 3),)

    async def test_a_copy_that_contradicts_what_was_delivered_is_refused(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *said(2))
        copied = outbox.copy(epoch=2)
        outbox.append(ONLY, Message.user("from the first"))
        copied.append(ONLY, Message.user("from the copy"))
        await outbox.deliver(store)

        [refusal] = (await copied.deliver(store)).refused

        assert isinstance(refusal, HistoryDiverged) and refusal.sequence == 3
        assert await texts(store) == ["message 1", "message 2", "from the first"]

    async def test_a_file_that_was_renamed_is_the_same_origin(self, store: DestinationStore) -> None:
        outbox = Outbox("old.db")
        outbox.append(ONLY, *said(1))
        await outbox.deliver(store)
        outbox.origin = replace(outbox.origin, name="new.db")
        outbox.append(ONLY, *said(1))

        assert (await outbox.deliver(store)).applied == (applied(2, 1, 0),)

    async def test_failed_applies_leave_no_gap_in_positions_and_versions(self, store: DestinationStore) -> None:
        outbox = Outbox()
        chance = random.Random(7)
        for number in range(20):
            outbox.append("good", Message.user(f"good {number}"))
            if chance.random() < 0.5:
                poisoned = Outbox()
                [event] = poisoned.append("bad", Message.user("x"))
                poisoned.append("good", Message.user("never"))
                poisoned.lanes["bad"] = [replace(event, digest=bytes(32))]
                with pytest.raises(StoreFault):
                    await poisoned.deliver(store)
            await outbox.deliver(store)

        assert await texts(store, "good") == [f"good {number}" for number in range(20)]
        await assert_no_gaps(store)

    @pytest.mark.parametrize("way", ["asyncio", "anyio"])
    async def test_cancelling_at_any_moment_leaves_a_whole_transaction_or_none(
        self, store: DestinationStore, way: str
    ) -> None:
        chance = random.Random(11)
        outbox = Outbox()
        for number in range(25):
            outbox.append(ONLY, *said(3, start=3 * number + 1))
            batch = outbox.batch(ONLY, 3 * number + 1)
            moment = chance.random() * 0.02
            if way == "asyncio":
                task = asyncio.ensure_future(store.apply(outbox.origin, [batch]))
                await asyncio.sleep(moment)
                task.cancel()
                await asyncio.wait([task])
            else:
                with anyio.move_on_after(moment):
                    await store.apply(outbox.origin, [batch])
            head = (await store.lane_heads(outbox.origin.origin_id, [ONLY])).get(ONLY, 0)
            assert head in (3 * number, 3 * number + 3)
            await store.apply(outbox.origin, [batch])

        assert await texts(store) == [f"message {number}" for number in range(1, 76)]
        await assert_no_gaps(store)

    async def test_numbers_count_an_owners_conversations_and_stay(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("a", ConversationStarted(owner_id="42"))
        outbox.append("b", *said(1))
        outbox.append("c", ConversationStarted(owner_id="7"))
        await outbox.deliver(store)
        outbox.append("d", ConversationStarted(owner_id="42"))
        outbox.append("b", ConversationStarted(owner_id="42"))  # known only now
        outbox.append("a", ConversationStarted(owner_id="7"))  # does not change hands
        await outbox.deliver(store)

        numbers = {one.conversation_id: (one.owner_id, one.number) for one in await store.conversations()}

        assert numbers["a"] == ("42", 1)
        assert numbers["c"] == ("7", 1)
        assert {numbers["b"], numbers["d"]} == {("42", 2), ("42", 3)}

    async def test_two_hundred_lanes_in_one_batch(self, store: DestinationStore) -> None:
        outbox = Outbox()
        for number in range(1500):
            outbox.append(f"chat-{number}", ConversationStarted(owner_id=f"owner-{number % 7}"), *said(1))
        result = await outbox.deliver(store)

        assert len(result.applied) == 1500 and result.refused == ()
        assert (await store.apply(outbox.origin, [outbox.batch(name) for name in outbox.lanes])).applied == tuple(
            applied(2, 0, 2, name) for name in outbox.lanes
        )
        await assert_no_gaps(store)

    async def test_lane_heads_know_nothing_of_another_outbox(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(ONLY, *said(2))
        await outbox.deliver(store)

        assert await store.lane_heads(outbox.origin.origin_id, [ONLY, "nobody"]) == {ONLY: 2}
        assert await store.lane_heads(uuid4(), [ONLY]) == {}
        assert await store.lane_heads(UUID(int=0), []) == {}
