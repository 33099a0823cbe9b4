"""Bind an outbox to the first history store that it delivers to, and refuse any other."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from letopis.outbox.event_log.bound_store import (
    StoreBinding,
    bind_store,
    note_destination,
    read_binding,
    update_destination,
)
from letopis.outbox.event_log.destination import destination_of
from letopis.outbox.event_log.rebind import delivered_lanes
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.outcome import logger
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.store_identity import check_identity, check_not_moved, expect_store, short_id
from letopis.store.rules.apply_plan import Origin

LANES_PER_REQUEST: Final = 500
"""Lanes whose heads the store is asked for at a time."""


class BindingGuard:
    """Keeps an outbox from delivering to a history store that is not its own.

    Until the first delivery the destination that the bot recorded decides, or, without one, the first relay that
    delivers; from then on the identity of the store.

    :ivar origin: under which to deliver, with the identity that the store has to have.
    """

    def __init__(self, outbox: OutboxFile, store: ConversationStore) -> None:
        self._outbox = outbox
        self._store = store
        self._place = destination_of(store.url)
        self._checked = False
        self.origin: Origin = outbox.origin

    @property
    def route(self) -> str:
        """What is delivered where, for operators."""
        origin = self._outbox.origin
        return f"{origin.name!r} ({short_id(origin.origin_id)}) to {self._place}"

    def recheck(self) -> None:
        """Have the identity of the store checked before the next delivery: it may be another one by now."""
        self._checked = False

    async def ensure(self, bound: StoreBinding, *, incarnation: int, sending: bool) -> StoreFault | None:
        """Ensure that the outbox may deliver to the store; return why it may not.

        Does not connect to the store where the answer is known without it.
        """
        try:
            if bound.store_id is None:
                check_destination(bound, self._place)
                if sending or bound.delivered:
                    bound = await self._bind(bound, incarnation)
            if bound.store_id != self.origin.store_id:
                self.origin = replace(self.origin, store_id=bound.store_id)
                self._checked = False
            if not self._checked and bound.store_id is not None:
                await check_store(self._store, bound)
                self._checked = True
        except StoreFault as fault:
            self._checked = False
            return fault
        return None

    async def note_location(self, bound: StoreBinding) -> None:
        """Note after a delivery where the store was reached; writes nothing if that is known."""
        if bound.store_id is not None and bound.destination != self._place:
            await self._outbox.write(partial(update_destination, store_id=bound.store_id, destination=self._place))

    async def _bind(self, bound: StoreBinding, incarnation: int) -> StoreBinding:
        identity = await self._store.identity()
        check_not_moved(identity.moved_to)
        if bound.delivered and not any((await store_heads(self._store, self._outbox)).values()):
            raise StoreFault(
                fault_class=FaultClass.WRONG_STORE,
                code="stranger",
                reason=f"this outbox has delivered before, and the store {self._place} holds nothing of it: name the"
                " one that does; only if that one is gone for good, bind the outbox again with `letopis outbox rebind`",
            )
        self._checked = True
        write = partial(bind_store, store_id=identity.store_id, destination=self._place, incarnation=incarnation)
        bound = await self._outbox.write(write)
        if bound.store_id == identity.store_id:
            logger.info("the outbox is bound to history store %s at %s from now on", identity.store_id, self._place)
        return bound


async def record_destination(outbox: OutboxFile, store: ConversationStore) -> None:
    """Record where a bot wants its outbox delivered, unless that is known or the outbox is bound."""
    bound, place = await outbox.read(read_binding), destination_of(store.url)
    if bound.store_id is None and bound.destination != place:
        await outbox.write(partial(note_destination, destination=place))


async def may_create_store(outbox: OutboxFile, store: ConversationStore) -> bool:
    """Return True if a missing store may be created for this outbox: it is not meant to be elsewhere."""
    bound = await outbox.read(read_binding)
    return bound.store_id is None and bound.destination in (None, destination_of(store.url))


async def find_refusal(outbox: OutboxFile, store: ConversationStore) -> StoreFault | None:
    """Return why an outbox must not deliver to a store; ``None`` if it may, or may be bound to it.

    For a report before a relay begins. Creates no store, and binds nothing.
    """
    bound = await outbox.read(read_binding)
    try:
        if bound.store_id is None:
            check_destination(bound, destination_of(store.url))
        else:
            await check_store(store, bound)
    except StoreFault as fault:
        if fault.fault_class is not FaultClass.WRONG_STORE:
            raise
        return fault
    return None


def check_destination(bound: StoreBinding, place: str) -> None:
    """Ensure that an outbox that is not bound yet is meant to deliver to this destination."""
    if bound.destination not in (None, place):
        raise StoreFault(
            fault_class=FaultClass.WRONG_STORE,
            code="destination",
            reason=f"the bot named {bound.destination} as its history store, and this relay would deliver to {place}:"
            " give both the same with --store, LETOPIS_STORE or letopis.toml; where they are two names of one store,"
            " confirm the relay's with `letopis outbox rebind`",
        )


async def check_store(store: ConversationStore, bound: StoreBinding) -> None:
    """Ensure that a store is the one that an outbox is bound to, and still accepts deliveries."""
    with expect_store(bound.store_id):
        identity = await store.identity()
    check_identity(identity.store_id, bound.store_id)
    check_not_moved(identity.moved_to)


async def store_heads(store: ConversationStore, outbox: OutboxFile) -> dict[str, int]:
    """Return how far a store holds each conversation that an outbox has delivered events of."""
    names = [name for name, _, _ in await outbox.read(delivered_lanes)]
    heads = dict[str, int]()
    for start in range(0, len(names), LANES_PER_REQUEST):
        heads |= await store.lane_heads(outbox.origin.origin_id, names[start : start + LANES_PER_REQUEST])
    return heads
