"""Bind an outbox to the first history store that it delivers to, and refuse any other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import URL

from letopis.outbox.event_log.acknowledge import rewind_lane
from letopis.outbox.event_log.bound_store import (
    KnownErasures,
    StoreBinding,
    bind_store,
    note_destination,
    read_binding,
    rebind_store,
    update_destination,
)
from letopis.outbox.event_log.statements import fetch_all
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.erasures import recorded_erasures
from letopis.outbox.relay.outcome import logger
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.hosts import HostAddress, addresses_of
from letopis.store.database.store_identity import StoreIdentity, check_identity, check_not_moved, expect_store, short_id
from letopis.store.database.urls import DEFAULT_PORTS, normalise_url
from letopis.store.rules.apply_plan import Origin

LANES_PER_REQUEST: Final = 500  # lanes whose heads the store is asked for at a time


class BindingGuard:
    """Keeps an outbox from delivering to a history store that is not its own."""

    def __init__(self, outbox: OutboxFile, store: ConversationStore) -> None:
        self._outbox = outbox
        self._store = store
        self._place = destination_of(store.url)
        self._checked = False
        self.origin: Origin = outbox.origin
        self.store: StoreIdentity | None = None  # as it was when the store was checked last

    @property
    def route(self) -> str:
        """What is delivered where, for operators."""
        origin = self._outbox.origin
        return f"{origin.name!r} ({short_id(origin.origin_id)}) to {self._place}"

    def recheck(self) -> None:
        """Have the store checked before the next delivery: it may be another one, or record an erasure, by now."""
        self._checked = False

    @property
    def checked(self) -> bool:
        """Whether the store was checked since :meth:`recheck`."""
        return self._checked

    async def ensure(self, bound: StoreBinding, *, incarnation: int, sending: bool) -> StoreFault | None:
        """Ensure that the outbox may deliver to the store; return why it may not. Connects only if needed."""
        try:
            if bound.store_id is None:
                check_destination(bound, self._place)
                if sending or bound.delivered:
                    bound = await self._bind(bound, incarnation)
            if bound.store_id != self.origin.store_id:
                self._checked = False
            if (bound.store_id, bound.erasure_id) != (self.origin.store_id, self.origin.erasure_id):
                self.origin = replace(self.origin, store_id=bound.store_id, **bound.last_erasure)
            if not self._checked and bound.store_id is not None:
                self.store = await check_store(self._store, bound)
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
        known = await recorded_erasures(self._store) if identity.erasures else ()
        bound = await self._outbox.write(
            partial(
                bind_store,
                store_id=identity.store_id,
                destination=self._place,
                erasures=known,
                incarnation=incarnation,
            )
        )
        if bound.store_id == identity.store_id:
            logger.info("the outbox is bound to history store %s at %s from now on", identity.store_id, self._place)
        return bound


async def record_destination(outbox: OutboxFile, store: ConversationStore) -> None:
    """Record where a bot wants its outbox delivered, unless that is known or the outbox is bound."""
    bound, destination = await outbox.read(read_binding), destination_of(store.url)
    if bound.store_id is None and bound.destination != destination:
        await outbox.write(partial(note_destination, destination=destination))


async def may_create_store(outbox: OutboxFile, store: ConversationStore) -> bool:
    """Return True if a missing store may be created for this outbox: it is not meant to be elsewhere."""
    bound = await outbox.read(read_binding)
    return bound.store_id is None and bound.destination in (None, destination_of(store.url))


async def find_refusal(outbox: OutboxFile, store: ConversationStore) -> StoreFault | None:
    """Return why an outbox must not deliver to a store, if that is so. Creates no store, and binds nothing."""
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


async def check_store(store: ConversationStore, bound: StoreBinding) -> StoreIdentity:
    """Ensure that a store is the one that an outbox is bound to, and still accepts deliveries; return its identity."""
    with expect_store(bound.store_id):
        identity = await store.identity()
    check_identity(identity.store_id, bound.store_id)
    check_not_moved(identity.moved_to)
    return identity


async def store_heads(store: ConversationStore, outbox: OutboxFile) -> dict[str, int]:
    """Return how far a store holds each conversation that an outbox has delivered events of."""
    names = [name for name, _, _ in await outbox.read(delivered_lanes)]
    heads = dict[str, int]()
    for start in range(0, len(names), LANES_PER_REQUEST):
        heads |= await store.lane_heads(outbox.origin.origin_id, names[start : start + LANES_PER_REQUEST])
    return heads


_LOCAL: Final = "localhost"
_LOCAL_NAMES: Final = frozenset({"", _LOCAL, "127.0.0.1", "::1", "localhost.localdomain"})


def destination_of(url: str | URL | os.PathLike[str]) -> str:
    """Return the kind, hosts, ports and database of a history store; no user, password or option.

    Two spellings of one place give the same text: the usual names of this machine and its socket, a default port,
    hosts in another order, links to an SQLite file. Two names of one server do not.
    """
    parsed = normalise_url(url)
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        shown = f"sqlite:///{os.path.realpath(str(parsed.database))}"
    else:
        hosts: tuple[HostAddress, ...] = (HostAddress(_LOCAL, None),)
        if "unix_socket" not in parsed.query:
            hosts = addresses_of(parsed) or addresses_of(parsed.set(host=_LOCAL))
        names = sorted({_shown(address, DEFAULT_PORTS[parsed.drivername]) for address in hosts})
        shown = f"{kind}://{','.join(names)}/{parsed.database}"
    return shown.encode("utf-8", "backslashreplace").decode()  # the name of a file may be any bytes


def _shown(address: HostAddress, default_port: int) -> str:
    host = address.host.lower().rstrip(".")
    name = _LOCAL if host in _LOCAL_NAMES or address.is_socket else host
    return str(HostAddress(name, None if address.port == default_port else address.port))


# Outcomes that a relay reports under an earlier incarnation are refused, as after a takeover.
FENCE: Final = "UPDATE letopis_outbox_relay SET incarnation = incarnation + 1"
_DELIVERED: Final = (
    "SELECT conversation_id, delivered, pruned FROM letopis_outbox_lanes WHERE delivered > 0 ORDER BY conversation_id"
)
# A lane with no event left to send would look delivered: it is set back by the events that were lost.
_SET_BACK: Final = (
    "UPDATE letopis_outbox_lanes SET delivered = ?1, pruned = ?1, pending_since = ?2"
    " WHERE conversation_id = ?3 AND delivered = head"
    " AND state IN ('blocked', 'paused')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebound:
    """The result of binding an outbox to another store.

    :ivar before: the binding until now.
    :ivar store_id: the store that it is bound to from now on.
    :ivar destination: where that store is.
    :ivar resent: delivered events that the store does not hold and the outbox sends again.
    :ivar lost: the number of those that were pruned from the outbox, by conversation. Each of these is blocked as
        ``lost``, until a backup of the old store is found, or ``letopis outbox skip --missing`` puts tombstones in
        their place.
    """

    before: StoreBinding
    store_id: UUID
    destination: str
    resent: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)


def delivered_lanes(connection: sa.Connection) -> Sequence[tuple[str, int, int]]:
    """Return id, last delivered and last pruned sequence of each lane with a delivered event."""
    return fetch_all(connection, _DELIVERED)


def preview(connection: sa.Connection, *, store_id: UUID, destination: str, heads: Mapping[str, int]) -> Rebound:
    """Return what :func:`rebind_outbox` would do now, and change nothing."""
    resent, lost = 0, dict[str, int]()
    for name, delivered, pruned in delivered_lanes(connection):
        head = heads.get(name, 0)
        resent += max(0, delivered - max(head, pruned))
        if pruned > head:
            lost[name] = pruned - head
    return Rebound(
        before=read_binding(connection), store_id=store_id, destination=destination, resent=resent, lost=lost
    )


def rebind_outbox(
    connection: sa.Connection,
    *,
    store_id: UUID,
    destination: str,
    heads: Mapping[str, int],
    erasures: KnownErasures = (),
    now_us: int,
) -> Rebound:
    """Bind the outbox to another store and send it again what it lacks; deliveries to the old one are fenced off."""
    done = preview(connection, store_id=store_id, destination=destination, heads=heads)
    for name, delivered, _ in delivered_lanes(connection):
        head = heads.get(name, 0)
        if delivered > head and rewind_lane(connection, name, head, now_us=now_us).lost:
            connection.exec_driver_sql(_SET_BACK, (head, now_us, name))
    rebind_store(connection, store_id=store_id, destination=destination, erasures=erasures)
    connection.exec_driver_sql(FENCE)
    return done
