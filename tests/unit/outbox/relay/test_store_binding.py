"""An outbox is bound by the relay that holds its lease, and never to a store that was moved away."""

from __future__ import annotations

from functools import partial
from typing import cast
from uuid import UUID

import pytest

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.bound_store import note_destination, read_binding
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.lease import Lease
from letopis.outbox.relay.store_binding import BindingGuard
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.store_identity import StoreIdentity
from tests.support.relays import ToldStore, bind_to, relay_on, say

STORE = UUID(int=7)


@pytest.mark.parametrize(("moved_to", "bound"), [("postgresql://elsewhere/history", None), (None, STORE)])
async def test_an_outbox_is_not_bound_to_a_store_that_was_moved_away(
    outbox: OutboxFile, moved_to: str | None, bound: UUID | None
) -> None:
    store = ToldStore()
    store.told_identity = StoreIdentity(store_id=STORE, moved_to=moved_to)
    guard = BindingGuard(outbox, cast("ConversationStore", store))

    fault = await guard.ensure(await outbox.read(read_binding), incarnation=0, sending=True)

    assert (fault and fault.code) == (moved_to and "moved")
    assert (await outbox.read(read_binding)).store_id == bound


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
