"""Prove that a store keeps the last version of each record, applies each change once, and erases records for good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast
from uuid import UUID

import pytest

from letopis.store import ConversationDeleted, ConversationStarted, FaultClass, Message, StoreFault
from letopis.store.errors import HistoryDiverged, SequenceGap
from letopis.store.model.records import RecordRange, Scope, decode_namespace, encode_namespace
from letopis.store.testing.capabilities import Capability, requires
from letopis.store.testing.conformance import StoreConformance
from letopis.store.testing.delivery import ONLY
from letopis.store.testing.destination_store import DestinationStore
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.record_changes import clear, delete, hollow, put

SCOPE = Scope.conversation(ONLY)
LANE = SCOPE.name
LARGE = bytes(range(256)) * 6_000
"""1.5 MB, more than a row should hold."""


@requires(Capability.RECORDS)
class RecordConformance(StoreConformance):
    """Keep what is put beside the messages, in lanes of its own."""

    async def stored_records(self, store: DestinationStore, scope: Scope = SCOPE) -> Mapping[str, bytes]:
        """Return the values of all records of a scope, by the labels of the namespace and the key, joined by ``|``.

        By default they are read as ``History`` reads them from a ``ConversationStore``: override it for another store.
        """
        page = await cast(Any, store).runtime.snapshot(
            lambda lineage, connection: lineage.reader.records.page(
                connection, scope, RecordRange(), limit=100, origin_id=UUID(int=0)
            )
        )
        return {
            "|".join((*decode_namespace(one.place[0]), one.place[1].decode())): one.body or b"" for one in page.records
        }

    async def test_the_last_version_wins(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append_encoded(LANE, [put(LANE, "a", b"1"), put(LANE, "b", b"2"), put(LANE, "a", b"3")])
        await outbox.deliver(store)
        outbox.append_encoded(LANE, [delete(LANE, "b"), put(LANE, "c", b""), delete(LANE, "nothing")])
        result = await outbox.deliver(store)

        assert result.refused == ()
        assert await self.stored_records(store) == {"cp|a": b"3", "cp|c": b""}
        assert await store.lane_heads(outbox.origin.origin_id, [LANE]) == {LANE: 6}

    async def test_a_delivery_sent_again_changes_nothing(self, store: DestinationStore) -> None:
        outbox, other = Outbox(), Outbox()
        outbox.append_encoded(LANE, [put(LANE, "a", b"1"), put(LANE, "a", b"2", expected="absent"), delete(LANE, "b")])
        await outbox.deliver(store)
        other.append_encoded(LANE, [put(LANE, "a", b"later")])
        await other.deliver(store)

        again = await store.apply(outbox.origin, [outbox.batch(LANE)])
        part = await store.apply(outbox.origin, [outbox.batch(LANE, 1, 2)])

        for result in (again, part):
            [lane] = result.applied
            assert (lane.head, lane.inserted, list(lane.superseded)) == (3, 0, [2])
        assert await self.stored_records(store) == {"cp|a": b"later"}
        assert await store.lane_heads(outbox.origin.origin_id, [LANE]) == {LANE: 3}

    async def test_an_overlap_applies_only_what_is_new(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append_encoded(LANE, [put(LANE, "a", b"%d" % number) for number in range(1, 7)])
        await store.apply(outbox.origin, [outbox.batch(LANE, 1, 4)])

        result = await store.apply(outbox.origin, [outbox.batch(LANE, 3, 6)])

        assert [(one.head, one.inserted, one.duplicates) for one in result.applied] == [(6, 2, 2)]
        assert await self.stored_records(store) == {"cp|a": b"6"}

    async def test_other_changes_in_the_place_of_known_ones_are_refused(self, store: DestinationStore) -> None:
        outbox = Outbox()
        first = put(LANE, "a", b"1")
        outbox.append_encoded(LANE, [first])
        await outbox.deliver(store)
        changed = replace(put(LANE, "a", b"other"), event_id=first.event_id)
        for forged in (put(LANE, "a", b"1"), changed):
            copy = outbox.copy()
            copy.lanes[LANE] = [forged]

            result = await store.apply(copy.origin, [copy.batch(LANE)])

            assert result.applied == () and [type(one) for one in result.refused] == [HistoryDiverged]
        assert await self.stored_records(store) == {"cp|a": b"1"}

    async def test_a_gap_is_refused_with_the_head_to_go_on_from(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append_encoded(LANE, [put(LANE, "a", b"%d" % number) for number in range(1, 5)])
        await store.apply(outbox.origin, [outbox.batch(LANE, 1, 1)])

        [refusal] = (await store.apply(outbox.origin, [outbox.batch(LANE, 3)])).refused

        assert isinstance(refusal, SequenceGap) and (refusal.head, refusal.first) == (1, 3)
        assert await self.stored_records(store) == {"cp|a": b"1"}

    async def test_what_the_outbox_has_pruned_is_told_apart_by_the_head_alone(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append_encoded(LANE, [put(LANE, "a", b"%d" % number) for number in range(1, 9)])
        await store.apply(outbox.origin, [outbox.batch(LANE, 1, 7)])
        await store.apply(outbox.origin, [replace(outbox.batch(LANE, 8), pruned=6)])

        result = await store.apply(outbox.origin, [outbox.batch(LANE)])

        assert [(one.head, one.inserted) for one in result.applied] == [(8, 0)] and result.refused == ()
        assert await self.stored_records(store) == {"cp|a": b"8"}

    async def test_a_put_whose_value_was_replaced_moves_the_head_and_nothing_else(
        self, store: DestinationStore
    ) -> None:
        outbox = Outbox()
        whole = put(LANE, "a", b"1")
        outbox.append_encoded(LANE, [whole])
        await outbox.deliver(store)
        outbox.append_encoded(LANE, [hollow(put(LANE, "a", b"2"))])
        await outbox.deliver(store)
        assert await self.stored_records(store) == {"cp|a": b"1"}

        # The outbox sends again what it has hollowed since.
        outbox.lanes[LANE][0] = hollow(whole)
        outbox.append_encoded(LANE, [put(LANE, "a", b"3")])
        result = await store.apply(outbox.origin, [outbox.batch(LANE)])

        assert result.refused == () and [one.head for one in result.applied] == [3]
        assert await self.stored_records(store) == {"cp|a": b"3"}

    async def test_the_loser_of_a_condition_has_no_effect_and_its_lane_goes_on(self, store: DestinationStore) -> None:
        outbox, other = Outbox(), Outbox()
        base = put(LANE, "a", b"base")
        outbox.append_encoded(LANE, [base])
        await outbox.deliver(store)
        other.append_encoded(LANE, [put(LANE, "a", b"the other's", expected=str(base.event_id))])
        await other.deliver(store)
        late = [
            put(LANE, "a", b"late", expected=str(base.event_id)),
            put(LANE, "b", b"1", expected="absent"),
            put(LANE, "b", b"2", expected="absent"),
            put(LANE, "b", b"3", expected="absent", keep=True),
            delete(LANE, "b", expected=str(base.event_id)),
        ]
        outbox.append_encoded(LANE, late)

        first = await store.apply(outbox.origin, [outbox.batch(LANE, 2)])
        again = await store.apply(outbox.origin, [outbox.batch(LANE, 2)])

        assert [sorted(one.applied[0].superseded) for one in (first, again)] == [[2, 4, 6], [2, 4, 6]]
        assert await self.stored_records(store) == {"cp|a": b"the other's", "cp|b": b"1"}

    async def test_a_damaged_or_missing_value_is_poison_and_nothing_is_written(self, store: DestinationStore) -> None:
        outbox = Outbox()
        for body in (b"2", None):
            outbox.lanes[LANE] = [put(LANE, "b", b"good"), replace(put(LANE, "a", b"1"), body=body)]

            with pytest.raises(StoreFault) as caught:
                await outbox.deliver(store)

            assert caught.value.fault_class is FaultClass.POISON
        assert await self.stored_records(store) == {}
        assert await store.lane_heads(outbox.origin.origin_id, [LANE]) == {}

    async def test_large_values_are_whole_and_are_replaced_as_a_whole(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append_encoded(LANE, [put(LANE, "a", LARGE), put(LANE, "b", LARGE + b"x")])
        await outbox.deliver(store)
        assert await self.stored_records(store) == {"cp|a": LARGE, "cp|b": LARGE + b"x"}

        outbox.append_encoded(LANE, [put(LANE, "a", LARGE[:-600_000]), put(LANE, "b", b"small")])
        await outbox.deliver(store)

        assert await self.stored_records(store) == {"cp|a": LARGE[:-600_000], "cp|b": b"small"}

    async def test_a_namespace_is_cleared_without_its_neighbours(self, store: DestinationStore) -> None:
        outbox, scope = Outbox(), Scope.space("app")
        for labels in (("acme",), ("acme", "x"), ("acme-corp",), ("acme/x",)):
            namespace = encode_namespace(labels)
            lane = scope.lane(namespace)
            outbox.append_encoded(lane, [put(lane, "a", b"1", namespace=namespace)])
        await outbox.deliver(store)
        assert len(await self.stored_records(store, scope)) == 4
        for lane in scope.lanes:
            outbox.append_encoded(lane, [clear(lane, encode_namespace(("acme",)))])
        await outbox.deliver(store)

        assert set(await self.stored_records(store, scope)) == {"acme-corp|a", "acme/x|a"}

    async def test_outboxes_in_one_lane_do_not_disturb_each_other(self, store: DestinationStore) -> None:
        one, other = Outbox(), Outbox()
        for number, outbox in enumerate((one, other)):
            outbox.append_encoded(LANE, [put(LANE, f"{number}", b"1"), put(LANE, "both", b"%d" % number)])
            await outbox.deliver(store)

        assert await self.stored_records(store) == {"cp|0": b"1", "cp|1": b"1", "cp|both": b"1"}
        for outbox in (one, other):
            assert await store.lane_heads(outbox.origin.origin_id, [LANE]) == {LANE: 2}

    async def test_records_are_erased_with_their_conversation_and_come_back_by_no_late_delivery(
        self, store: DestinationStore
    ) -> None:
        outbox, other = Outbox(), Outbox()
        outbox.append(ONLY, Message.user("hello"))
        outbox.append_encoded(LANE, [put(LANE, "a", LARGE, tags={"user": "u"}), put(LANE, "b", b"1")])
        await outbox.deliver(store)
        outbox.append(ONLY, ConversationDeleted())
        await outbox.deliver(store)
        assert await self.stored_records(store) == {}

        other.append_encoded(LANE, [put(LANE, "late", b"1")])
        late = await other.deliver(store)

        assert await self.stored_records(store) == {}
        assert [(one.head, list(one.superseded)) for one in late.applied] == [(1, [1])]

    async def test_what_is_put_after_an_erasure_is_kept(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append_encoded(LANE, [put(LANE, "a", b"1")])
        await outbox.deliver(store)
        outbox.append_encoded(LANE, [clear(LANE, erase=True), put(LANE, "b", b"2")])
        await outbox.deliver(store)
        again = await store.apply(outbox.origin, [outbox.batch(LANE)])

        assert again.refused == () and [one.inserted for one in again.applied] == [0]
        assert await self.stored_records(store) == {"cp|b": b"2"}

    async def test_records_are_no_conversations_messages_or_events(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("talk", ConversationStarted(owner_id="42"), Message.user("hello"))
        await outbox.deliver(store)
        heads = [await store.head(partition) for partition in range(await store.partitions())]
        for scope in (SCOPE, Scope.conversation("talk"), Scope.owner("42"), Scope.space("app")):
            lane = scope.lane(encode_namespace(("cp",)))
            outbox.append_encoded(lane, [put(lane, "a", b"1", tags={"owner": "42"})])
        await outbox.deliver(store)

        assert await store.conversation(ONLY) is None
        for owner in (None, "42"):
            assert [one.conversation_id for one in await store.conversations(owner=owner)] == ["talk"]
        conversation = await store.conversation("talk")
        assert conversation is not None and (conversation.version, conversation.message_count) == (2, 1)
        assert [one.message.text for one in await store.messages("talk", every=True)] == ["hello"]
        assert len(await store.events("talk")) == 2
        assert [await store.head(partition) for partition in range(await store.partitions())] == heads
        if Capability.STATISTICS in self.capabilities:
            counted = await store.statistics()
            assert (counted.messages, counted.conversations) == (1, 1)
