"""Bind an outbox file to the history store that it delivers to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from letopis.outbox.event_log.known_erasures import begin_with, forget_erasures
from letopis.outbox.event_log.statements import on_cursor, query_one

if TYPE_CHECKING:
    import sqlalchemy as sa

    from letopis.store.database.faults import StoreFault


_READ: Final = "SELECT store_id, destination, erasures, erasure_id, acknowledged FROM letopis_outbox_origin"
_DELIVERED: Final = "SELECT 1 FROM letopis_outbox_lanes WHERE delivered > 0 LIMIT 1"
_REBIND: Final = (
    "UPDATE letopis_outbox_origin SET store_id = ?1, destination = ?2, erasures = ?3, erasure_id = ?4, acknowledged = 1"
)
_BIND: Final = (
    f"{_REBIND} WHERE store_id IS NULL AND (SELECT coalesce(max(incarnation), 0) FROM letopis_outbox_relay) = ?5"  # noqa: S608
)
_COMPARE_ALL: Final = (
    "UPDATE letopis_outbox_origin SET erasures = 0, erasure_id = NULL"
    " WHERE EXISTS (SELECT 1 FROM letopis_outbox_erasures WHERE state = 'begun')"
)
_NOTE: Final = "UPDATE letopis_outbox_origin SET destination = ? WHERE store_id IS NULL AND destination IS NOT ?"
_FOLLOW: Final = "UPDATE letopis_outbox_origin SET destination = ? WHERE store_id = ?"
_MOVED: Final = (
    "UPDATE letopis_outbox_relay SET breaker = 'open', breaker_since = ?, breaker_reason = ?, breaker_detail = ?,"
    " next_attempt_at = NULL WHERE holder <> '' AND (SELECT store_id FROM letopis_outbox_origin) = ?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreBinding:
    """Where an outbox delivers to."""

    store_id: UUID | None = None  # ``None`` before the first delivery
    destination: str | None = None  # without secrets; before the first delivery, where the bot wants it delivered
    delivered: bool = False  # also under an older release, which bound nothing
    erasures: int = 0  # the number of the last erasure of the store that was carried out in the file
    erasure_id: UUID | None = None  # its id
    acknowledged: bool = True  # whether the store knows that

    @property
    def last_erasure(self) -> dict[str, Any]:
        """The last erasure, as an origin names it."""
        return {"erasures": self.erasures, "erasure_id": self.erasure_id}


UNBOUND: Final = StoreBinding()

KnownErasures = Sequence[tuple[int, UUID]]
"""Numbers and ids of all erasures that a store records, in order."""


def binding_of(cursor: Any) -> StoreBinding:
    """Return where the outbox file of a DBAPI cursor delivers to."""
    row = query_one(cursor, _READ)
    if row is None:
        return UNBOUND
    if row[0] is not None:
        return StoreBinding(
            store_id=UUID(bytes=row[0]),
            destination=row[1],
            erasures=row[2],
            erasure_id=None if row[3] is None else UUID(bytes=row[3]),
            acknowledged=bool(row[4]),
        )
    return StoreBinding(destination=row[1], delivered=query_one(cursor, _DELIVERED) is not None)


def read_binding(connection: sa.Connection) -> StoreBinding:
    """Return where the outbox file of a connection delivers to."""
    return on_cursor(connection, binding_of)


def bind_store(
    connection: sa.Connection, *, store_id: UUID, destination: str, erasures: KnownErasures, incarnation: int
) -> StoreBinding:
    """Bind the outbox to a store unless it is bound, or ``incarnation`` lost the lease; return its binding."""
    # A new outbox has nothing to carry out of what was erased before it came.
    values = (store_id.bytes, destination, *_last(erasures), incarnation)
    if connection.exec_driver_sql(_BIND, values).rowcount:
        begin_with(connection, erasures)
        connection.exec_driver_sql(_COMPARE_ALL)
    return read_binding(connection)


def note_destination(connection: sa.Connection, destination: str) -> None:
    """Record where a bot wants its outbox delivered, until it is bound; in an open write transaction."""
    connection.exec_driver_sql(_NOTE, (destination, destination))


def update_destination(connection: sa.Connection, *, store_id: UUID, destination: str) -> None:
    """Record that the store of the outbox was reached at another place; in an open write transaction."""
    connection.exec_driver_sql(_FOLLOW, (destination, store_id.bytes))


def rebind_store(connection: sa.Connection, *, store_id: UUID, destination: str, erasures: KnownErasures = ()) -> None:
    """Bind the outbox to another store, whatever it is bound to; in an open write transaction."""
    # What that one has erased before concerns others: this outbox begins at its present number, as a new one does.
    connection.exec_driver_sql(_REBIND, (store_id.bytes, destination, *_last(erasures)))
    forget_erasures(connection)
    begin_with(connection, erasures)


def _last(erasures: KnownErasures) -> tuple[int, bytes | None]:
    return (erasures[-1][0], erasures[-1][1].bytes) if erasures else (0, None)


def note_moved(connection: sa.Connection, fault: StoreFault, *, store_id: UUID, now_us: int) -> None:
    """Have the status tell where the outbox's store was moved, until a relay reports what it finds."""
    reason = f"{fault.fault_class} {fault.code}"
    connection.exec_driver_sql(_MOVED, (now_us, reason, fault.reason, store_id.bytes))
