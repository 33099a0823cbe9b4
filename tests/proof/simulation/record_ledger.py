"""Keep what the records of the store must be, and compare after each commit."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple
from uuid import UUID

from tests.campaigns.record_invariants import Place, scope_of
from tests.support.path_deeds import Broken

_HEADS: Final = "SELECT origin_id, conversation_id, sequence FROM letopis_lanes WHERE conversation_id < char(2)"
_ENTRIES: Final = (
    "SELECT sequence, event_id, digest, superseded FROM letopis_record_ledger"
    " WHERE origin_id = ? AND conversation_id = ? AND sequence > ? ORDER BY sequence"
)
_SUPERSEDED: Final = "SELECT conversation_id, sequence FROM letopis_record_ledger WHERE superseded"
_ROWS: Final = (
    "SELECT scope, namespace, record_key, revision FROM letopis_records"
    " WHERE substr(scope, 1, 3) <> char(1) || 'm:'"  # those are the large content of messages
)
_BODY: Final = (
    "SELECT coalesce(r.body, p.body) FROM letopis_records AS r LEFT JOIN letopis_record_parts AS p"
    " ON p.partition = r.partition AND p.record_id = r.record_id WHERE r.revision = ? ORDER BY p.part"
)


class RecordChange(NamedTuple):
    """A change of a record as its outbox has committed it."""

    position: int
    sequence: int
    event_id: bytes
    digest: bytes
    place: Place
    sha256: str | None


class Changes:
    """The changes of records that an outbox has committed, in order."""

    def __init__(self, is_hollow: Callable[[int], bool]) -> None:
        self.is_hollow = is_hollow
        self.by_id: dict[bytes, RecordChange] = {}
        self.of_place: dict[Place, list[RecordChange]] = defaultdict(list)
        self.erased: dict[str, int] = defaultdict(int)
        """The sequence of the last change that erased all before it, by lane."""
        self.erasing: set[tuple[str, int]] = set()
        """The lanes and sequences of all such changes."""

    def add(self, lane: str, position: int, sequence: int, event_id: bytes, digest: bytes, data: str) -> None:
        found: Mapping[str, Any] = json.loads(data)
        # A reset clears the records of its conversation, of which there are none here; it names no key.
        place = (scope_of(lane), found["namespace"], found.get("key", ""))
        one = RecordChange(position, sequence, event_id, digest, place, found.get("sha256"))
        self.by_id[event_id] = one
        if found.get("erase"):
            self.erased[lane] = sequence
            self.erasing.add((lane, sequence))
        else:
            self.of_place[place].append(one)

    def newest(self, place: Place) -> int:
        """Return the position of the newest change of a record; 0 if there is none."""
        return self.of_place[place][-1].position if place in self.of_place else 0

    def check_read(self, place: Place, revision: bytes | None, *, since: int) -> None:
        """Check a read that began when ``since`` was the newest change of the record."""
        if revision is None:
            changes = self.of_place.get(place, ())
            if since and not any(one.sha256 is None and one.position >= since for one in changes):
                raise Broken(f"{place}: is read as absent, and was put")
        elif revision not in self.by_id:
            raise Broken(f"{place}: what is read, {UUID(bytes=revision)}, was never put")
        elif self.by_id[revision].position < since:
            raise Broken(f"{place}: the value of an older put is read")


class StoredRecords:
    """The records of the history store, as far as they have been committed."""

    def __init__(self, look: sqlite3.Connection) -> None:
        self._look = look
        self._rows: dict[Place, bytes] = {}

    def committed(self, heads: dict[tuple[bytes, str], int], outboxes: Mapping[bytes, Changes]) -> None:
        """Check what has come since; ``heads`` follow the ledger."""
        fresh: dict[Place, list[tuple[Changes, RecordChange]]] = defaultdict(list)
        for origin, lane, head in self._look.execute(_HEADS).fetchall():
            before = heads[origin, lane]
            if head < before:
                raise Broken(f"{lane!r}: its head goes back from {before} to {head}")
            if head == before:
                continue
            entries = self._look.execute(_ENTRIES, (origin, lane, before)).fetchall()
            if [entry[0] for entry in entries] != list(range(before + 1, head + 1)):
                raise Broken(
                    f"{lane!r}: goes on from {before} to {head}, and its ledger has {len(entries)} changes of these"
                )
            heads[origin, lane] = head
            for sequence, event_id, digest, superseded in entries:
                one = outboxes[origin].by_id.get(event_id)
                erased = sequence < outboxes[origin].erased[lane]
                if (
                    one is None
                    or (one.sequence, scope_of(lane)) != (sequence, one.place[0])
                    or not (erased or one.digest == digest)
                ):
                    raise Broken(f"{lane!r} {sequence}: applied as another change than was appended")
                if not superseded:
                    fresh[one.place].append((outboxes[origin], one))
        if len(outboxes) == 1:
            (only,) = outboxes.values()
            # One that erases is superseded where a hold forbids it.
            for lane, sequence in {*self._look.execute(_SUPERSEDED).fetchall()} - only.erasing:
                raise Broken(f"{lane!r} {sequence}: superseded, and no other outbox has changed the record")
        rows = {
            (scope, bytes(namespace).decode(), bytes(key).decode()): bytes(revision)
            for scope, namespace, key, revision in self._look.execute(_ROWS).fetchall()
        }
        for place in rows.keys() | self._rows.keys():
            if problem := self._place_problem(self._rows.get(place), rows.get(place), fresh.get(place, [])):
                raise Broken(f"{place}: {problem}")
        self._rows = rows

    def _place_problem(self, before: bytes | None, now: bytes | None, fresh: list[tuple[Changes, RecordChange]]) -> str:
        changes = [one for _, one in fresh]
        if fresh:
            outbox, last = fresh[-1]
            if last.sha256 is None and now is not None:
                return "it was deleted, and is there"
            if last.sha256 is not None and now != last.event_id and not outbox.is_hollow(last.position):
                return "the value that was put last is not there"
        if now == before:
            return ""
        if now is None:
            return "" if any(one.sha256 is None for one in changes) else "it is gone, and nobody has deleted it"
        put = next((one for one in changes if one.event_id == now), None)
        if put is None:
            return f"it goes from {before and UUID(bytes=before)} to {UUID(bytes=now)}, which was not applied just now"
        earlier = None if before is None else fresh[0][0].by_id.get(before)
        if earlier is not None and earlier.position > put.position:
            return "it goes back to the value of an older put"
        body = b"".join(row[0] for row in self._look.execute(_BODY, (now,)).fetchall())
        return "" if sha256(body).hexdigest() == put.sha256 else "the value is not the one that was put"
