"""Keep in the file which erasures of the history store were carried out here, by their ids."""

# A store that was restored from a backup has forgotten some, and gives their numbers out again: only ids tell what it
# lacks, and what this file lacks.

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from letopis.outbox.event_log.statements import fetch_all, on_cursor, query_all, query_one

if TYPE_CHECKING:
    import sqlalchemy as sa

    from letopis.store.erasures import Erasure


class ErasureState(StrEnum):
    """How far an erasure has come in this file."""

    KNOWN = "known"
    """It needs nothing here: it was recorded before the first delivery of this outbox, or a hold set it aside."""
    BEGUN = "begun"
    CARRIED_OUT = "carried_out"
    MISSING = "missing"
    """Carried out here, and the history store does not record it: it was restored from before it."""


_KNOWN: Final = "SELECT erasure_id FROM letopis_outbox_erasures WHERE state <> 'begun'"
_KNOWN_OF: Final = f"{_KNOWN} AND erasure_id IN ({{marks}})"
_BEGUN: Final = "SELECT state, upto FROM letopis_outbox_erasures WHERE erasure_id = ?"
_INSERT: Final = "INSERT INTO letopis_outbox_erasures (erasure_id, number, state, upto, erasure) VALUES (?, ?, ?, ?, ?)"
# One that this outbox has asked for before its first delivery is carried out here.
_NOTE: Final = f"{_INSERT} ON CONFLICT (erasure_id) DO NOTHING"
_WRITE: Final = (
    f"{_INSERT} ON CONFLICT (erasure_id) DO UPDATE SET number = max(number, excluded.number), state = excluded.state,"
    " upto = excluded.upto, erasure = excluded.erasure"
)
_CARRIED_OUT: Final = (
    "SELECT erasure_id, state, number FROM letopis_outbox_erasures WHERE state IN ('carried_out', 'missing')"
)
_SET_STATE: Final = "UPDATE letopis_outbox_erasures SET state = ? WHERE erasure_id = ?"
_MISSING: Final = "SELECT erasure FROM letopis_outbox_erasures WHERE state = 'missing' ORDER BY number"
_HIGHEST: Final = "SELECT coalesce(max(number), 0) FROM letopis_outbox_erasures"
_FORGET: Final = "DELETE FROM letopis_outbox_erasures"


def unknown_erasures(connection: sa.Connection, erasures: Sequence[Erasure]) -> list[Erasure]:
    """Return those that are not carried out here yet."""
    ids = tuple(erasure.erasure_id.bytes for erasure in erasures)
    known = fetch_all(connection, _KNOWN_OF.format(marks=", ".join("?" * len(ids))), ids)
    done = {row[0] for row in known}
    return [erasure for erasure in erasures if erasure.erasure_id.bytes not in done]


def progress_of(cursor: Any, erasure: Erasure) -> tuple[ErasureState | None, int]:
    """Return the state of an erasure in this file, and the position up to which it reaches."""
    row = query_one(cursor, _BEGUN, (erasure.erasure_id.bytes,))
    return (None, 0) if row is None else (ErasureState(row[0]), row[1])


def write_erasure(cursor: Any, erasure: Erasure, state: ErasureState, *, upto: int = 0) -> None:
    """Note how far an erasure has come."""
    about = None if state is ErasureState.KNOWN else orjson.dumps(asdict(erasure), default=str).decode()
    cursor.execute(_WRITE, (erasure.erasure_id.bytes, erasure.number, str(state), upto, about))


def begin_with(connection: sa.Connection, known: Iterable[tuple[int, UUID]]) -> None:
    """Have the file begin at the erasures that its store records already: they are about words of others."""
    rows = [(erasure_id.bytes, number, str(ErasureState.KNOWN), 0, None) for number, erasure_id in known]
    if rows:
        connection.exec_driver_sql(_NOTE, rows)


def forget_erasures(connection: sa.Connection) -> None:
    """Forget the erasures of a store that is given up."""
    connection.exec_driver_sql(_FORGET)


def compare_with_store(connection: sa.Connection, recorded: Collection[UUID], *, every: bool) -> list[Erasure]:
    """Note which erasures the store records, all with ``every``; return those carried out here that it lacks."""
    there = {erasure_id.bytes for erasure_id in recorded}
    for erasure_id, state, _ in fetch_all(connection, _CARRIED_OUT):
        now = ErasureState.CARRIED_OUT if erasure_id in there else ErasureState.MISSING
        if state != now and (every or erasure_id in there):
            connection.exec_driver_sql(_SET_STATE, (str(now), erasure_id))
    return on_cursor(connection, missing_of)


def missing_of(cursor: Any) -> list[Erasure]:
    """Return the erasures carried out here that the history store has forgotten, in their order."""
    return [_erasure(row[0]) for row in query_all(cursor, _MISSING)]


def missing_erasures(connection: sa.Connection) -> list[Erasure]:
    """Return what :func:`missing_of` does."""
    return on_cursor(connection, missing_of)


def carried_out(connection: sa.Connection) -> dict[UUID, int]:
    """Return the ids and numbers of the erasures that were carried out here."""
    return {UUID(bytes=row[0]): row[2] for row in fetch_all(connection, _CARRIED_OUT)}


def highest_number(connection: sa.Connection) -> int:
    """Return the highest number of an erasure that this file has seen."""
    number: int = fetch_all(connection, _HIGHEST)[0][0]
    return number


def _erasure(text: str) -> Erasure:
    from letopis.store.erasures import Erasure

    values = orjson.loads(text)
    for name in ("erasure_id", "origin_id"):
        values[name] = values[name] and UUID(values[name])
    values["recorded_at"] = datetime.fromisoformat(values["recorded_at"])
    values["positions"] = tuple(values["positions"])
    return Erasure(**{field.name: values[field.name] for field in fields(Erasure)})
