"""Write down what a bot was promised, where the end of its process cannot take it back, and read it again."""

import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox import Receipt
from tests.campaigns.record_invariants import RecordAck
from tests.campaigns.states import Ack, StoreState

BOOKS: Final = "books"
"""A table of the bot's own in the outbox file, and the prefix of the conversations that are entered in it."""
MAKE_BOOKS: Final = sa.text(f"CREATE TABLE IF NOT EXISTS {BOOKS} (event_id BLOB PRIMARY KEY)")
ENTER: Final = sa.text(f"INSERT INTO {BOOKS} VALUES (:event_id)")

PATH: Final = "path"  # a conversation the path of which a bot changes from one of :data:`PATHS` to the next, and again
PATHS: Final = (("1", "2"), ("1",), ("1", "2"), ("2", "3"))


class SentPromises:
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def keep(self, acks: Sequence[Ack]) -> None:
        for ack in acks:
            self._pipe.send(ack)

    def keep_record(self, ack: RecordAck) -> None:
        self._pipe.send(ack)


class WrittenPromises:
    """Promises that are lines of a file: one write for an append, so that all its lines are there or none."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def keep(self, acks: Sequence[Ack]) -> None:
        os.write(self._file, b"".join(line_of(*ack) for ack in acks))

    def keep_record(self, ack: RecordAck) -> None:
        os.write(self._file, _line(record=[ack.lane, ack.event_id.hex, ack.sequence, ack.sha256]))

    def keep_path(self) -> None:
        """Write that the path of :data:`PATH` was changed in the next way."""
        os.write(self._file, _line(path=PATH))

    def keep_saved(self, receipt: Receipt) -> None:
        os.write(self._file, line_of(receipt.conversation_id, receipt.event_ids[-1], None, saved=True))

    def close(self) -> None:
        os.close(self._file)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPromises:
    """What appends have returned, and what receipts said is in the history store."""

    acks: Sequence[Ack] = ()
    saved: Sequence[UUID] = ()
    records: Sequence[RecordAck] = ()
    paths: int = 0

    @property
    def possible_paths(self) -> Sequence[Sequence[str]]:
        """What the path of :data:`PATH` may be: as the last change left it, or the next one has."""
        before = PATHS[(self.paths - 1) % len(PATHS)] if self.paths else ()
        return before, PATHS[self.paths % len(PATHS)]


def acks_of(receipt: Receipt) -> list[Ack]:
    """Return what an append that has returned promises: each of its events, and the sequence of the newest."""
    name, ids = receipt.conversation_id, receipt.event_ids
    newest = getattr(receipt, "_last", ids[-1])
    return [Ack(name, event_id, receipt.sequence if event_id == newest else None) for event_id in ids]


def line_of(conversation_id: str, event_id: UUID, sequence: int | None, *, saved: bool = False) -> bytes:
    return _line(saved=event_id.hex) if saved else _line(ack=[conversation_id, event_id.hex, sequence])


def _line(**promise: Any) -> bytes:
    return f"{json.dumps(promise)}\n".encode()


def read_promises(lines: bytes) -> KeptPromises:
    """Return the promises in these lines; a last one that is unfinished was not made."""
    whole, _, _ = lines.rpartition(b"\n")
    kept = defaultdict[str, list[Any]](list)
    for line in whole.splitlines():
        for kind, promise in json.loads(line).items():
            kept[kind].append(promise)
    return KeptPromises(
        acks=[Ack(name, UUID(hex=event_id), sequence) for name, event_id, sequence in kept["ack"]],
        saved=[UUID(hex=event_id) for event_id in kept["saved"]],
        records=[RecordAck(lane, UUID(hex=event_id), *more) for lane, event_id, *more in kept["record"]],
        paths=len(kept["path"]),
    )


def entry_of(receipt: Receipt) -> dict[str, object]:
    return {"event_id": receipt.event_ids[-1].bytes}


def half_kept(outbox: Path, store: StoreState) -> list[str]:
    """Return each message without its entry, and each entry without its message, where all is delivered."""
    with closing(sqlite3.connect(outbox)) as connection:
        return halves(connection, store.events)


def halves(connection: sqlite3.Connection, events: Iterable[Any]) -> list[str]:
    there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (BOOKS,)).fetchone()
    entries = {row[0] for row in connection.execute(f"SELECT event_id FROM {BOOKS}")} if there else set[bytes]()
    messages = {
        event.event_id.bytes
        for event in events
        if event.type == "message.appended" and event.conversation_id.startswith(BOOKS)
    }
    return [
        *(f"half: {one.hex()} is a message, and not in the bot's books" for one in messages - entries),
        *(f"half: {one.hex()} is in the bot's books, and no message" for one in entries - messages),
    ]
