"""An outbox is bound by the holder of its lease, never to a store that was moved away; a rebind resets lost lanes."""

from datetime import timedelta
from functools import partial
from typing import cast
from uuid import UUID

import pytest

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.acknowledge import acknowledge, block_lane
from letopis.outbox.event_log.bound_store import note_destination, read_binding
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.lease import Lease
from letopis.outbox.relay.store_binding import BindingGuard, rebind_outbox
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.store_identity import StoreIdentity
from tests.support.relays import ToldStore, bind_to, lane, relay_on, say

STORE = UUID(int=7)


@pytest.mark.parametrize(
    ("moved_to", "delivered", "held", "code"),
    [
        ("postgresql://elsewhere/history", {}, (), "moved"),
        (None, {}, (), None),
        (None, {"a": 1, "b": 1}, (), "stranger"),
        (None, {"a": 1, "b": 1}, ("a",), None),
    ],
)
async def test_an_outbox_is_bound_to_a_store_that_holds_something_of_it_and_was_not_moved_away(
    moved_to: str | None, delivered: dict[str, int], held: tuple[str, ...], code: str | None, outbox: OutboxFile
) -> None:
    store = ToldStore()
    store.told_identity = StoreIdentity(store_id=STORE, moved_to=moved_to)
    for name in delivered:
        await say(outbox, name)
    await outbox.write(partial(acknowledge, delivered=delivered, now_us=1))
    store.lanes |= {name: [(None, b"")] for name in held}
    guard = BindingGuard(outbox, cast("ConversationStore", store))

    fault = await guard.ensure(await outbox.read(read_binding), incarnation=0, sending=True)

    assert (fault and fault.code) == code
    assert (await outbox.read(read_binding)).store_id == (None if code else STORE)


async def test_rebinding_sets_back_the_lanes_that_are_lost_and_leaves_others_blocked_where_they_are(
    outbox: OutboxFile,
) -> None:
    for name in ("lost", "refused"):
        await say(outbox, name, 2)
    await outbox.write(partial(acknowledge, delivered={"lost": 3, "refused": 1}, now_us=1))
    await outbox.write(Pruner(Retention(keep_last=0, keep_for=timedelta(0)), outbox.now_us))
    refused = await lane(outbox, "refused")
    await outbox.write(partial(block_lane, lane=refused, attempts=4, fault_class="poison", fault="no"))
    before = await lane(outbox, "refused")

    heads = {"refused": 1}
    rebound = await outbox.write(partial(rebind_outbox, store_id=STORE, destination="new", heads=heads, now_us=2))

    assert rebound.lost == {"lost": 3}
    assert await lane(outbox, "refused") == before
    lost = await lane(outbox, "lost")
    assert (lost.state, lost.delivered, lost.pruned) == ("blocked", 0, 0)


async def test_of_two_stores_that_an_outbox_is_bound_to_at_once_the_second_is_refused(outbox: OutboxFile) -> None:
    stale = await outbox.read(read_binding)
    await bind_to(outbox, ToldStore())
    second = ToldStore()
    second.told_identity = StoreIdentity(store_id=UUID(int=8))

    fault = await BindingGuard(outbox, cast("ConversationStore", second)).ensure(stale, incarnation=0, sending=True)

    assert fault is not None and fault.code == "identity"
    assert (await outbox.read(read_binding)).store_id == STORE


async def test_a_relay_that_is_taken_over_before_it_has_bound_sends_nothing(outbox: OutboxFile) -> None:
    class Overtaken(ToldStore):
        async def identity(self) -> StoreIdentity:
            await Lease(outbox, clock=Clock(), holder="another", locked=False).acquire()
            return self.told_identity

    store = Overtaken()
    await say(outbox, "a")
    await relay_on(outbox, store).drain_once()

    assert (await outbox.read(read_binding)).store_id is None
    assert store.batches == []


async def test_a_binding_keeps_its_destination_whatever_a_bot_names_later(outbox: OutboxFile) -> None:
    await outbox.write(partial(note_destination, destination="postgresql://named/first"))
    assert (await outbox.read(read_binding)).destination == "postgresql://named/first"
    await bind_to(outbox, ToldStore())
    bound = await outbox.read(read_binding)
    await outbox.write(partial(note_destination, destination="postgresql://named/later"))
    assert await outbox.read(read_binding) == bound
