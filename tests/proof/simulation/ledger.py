"""Keep what was appended and stored beside the files, and compare after each commit."""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

from letopis.store.model.codec import EncodedEvent, digest_of
from tests.campaigns.invariants import Ack
from tests.campaigns.record_invariants import Place, scope_of
from tests.proof.simulation.contents import STREAMS, Streams, secrets_of
from tests.proof.simulation.driver import connect
from tests.proof.simulation.rights import Rights
from tests.proof.simulation.weather import BAD
from tests.support.path_deeds import Broken

_NEW: Final = (
    "SELECT position, conversation_id, sequence, event_id, digest, type, schema_version, data, metadata, salt"
    " FROM letopis_outbox_log WHERE position > ? ORDER BY position"
)
_LANES: Final = "SELECT conversation_id, head, delivered, pruned, state, attempts FROM letopis_outbox_lanes"
_KEPT: Final = "SELECT count(*) FROM letopis_outbox_events"
_RECORD_LANES: Final = "\x02"  # after the names of all lanes of records, and before those of conversations
_RECORD_HEADS: Final = "SELECT origin_id, conversation_id, sequence FROM letopis_lanes WHERE conversation_id < char(2)"
_SUPERSEDED: Final = "SELECT conversation_id, sequence FROM letopis_record_ledger WHERE superseded"
_HOLDER: Final = "SELECT incarnation FROM letopis_outbox_relay"
_STORED: Final = (
    "SELECT position, conversation_id, event_id, origin_id, sequence, digest, data"
    " FROM letopis_events WHERE position > ? ORDER BY position"
)


class RecordChange(NamedTuple):
    """A change of a record as its outbox has committed it."""

    position: int
    sha256: str | None


class Changes:
    """The changes of records that an outbox has committed, in order; those that erase a whole scope apart."""

    def __init__(self) -> None:
        self.by_id: dict[bytes, RecordChange] = {}
        self.of_place: dict[Place, list[RecordChange]] = defaultdict(list)
        self.erasing: set[tuple[str, int]] = set()

    def add(self, lane: str, position: int, sequence: int, event_id: bytes, data: str) -> None:
        found = json.loads(data)
        if found.get("erase"):
            self.erasing.add((lane, sequence))
        else:
            change = self.by_id[event_id] = RecordChange(position, found.get("sha256"))
            # A reset clears the records of its conversation, of which there are none here; it names no key.
            self.of_place[scope_of(lane), found["namespace"], found.get("key", "")].append(change)

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


@dataclass(slots=True)
class _Lane:
    head: int = 0
    delivered: int = 0
    pruned: int = 0
    state: str = "ready"
    attempts: int = 0


class StoreLedger:
    """The log of the history store, as far as it has been committed."""

    def __init__(self, path: Path) -> None:
        self._look = connect(str(path), isolation_level=None)
        self._position = 0
        self._ids = set[tuple[str, bytes]]()
        self.heads: dict[tuple[bytes, str], int] = defaultdict(int)
        self.outboxes: dict[bytes, OutboxLedger] = {}
        self.rights = Rights(self._look)

    def committed(self) -> None:
        """Compare what has come since with what the outboxes hold; the rest shows when the files are examined."""
        rows = self._look.execute(_STORED, (self._position,)).fetchall()
        for position, name, event_id, origin, sequence, digest, _ in rows:
            where = f"{name!r} sequence {sequence}"
            if sequence != self.head(origin, name) + 1:
                raise Broken(f"{where}: stored after {self.heads[origin, name]}: out of order, or a gap")
            if (event_id, digest) != self.outboxes[origin].events.get((name, sequence)):
                raise Broken(f"{where}: stored, and its outbox has said another event there, or none")
            self._position, self.heads[origin, name] = position, sequence
            self._ids.add((name, event_id))
        for origin, name in {(row[3], row[1]) for row in rows}:
            outbox, head = self.outboxes[origin], self.head(origin, name)
            batch = outbox.batches.get((name, head))
            # One that is refused is looked for by halves.
            innocent = not any(place == name for place, _ in outbox.bad)
            if batch is not None and batch == outbox.batches.get((name, head + 1)) and innocent:
                raise Broken(f"{name!r}: a commit ends at sequence {head}, in the middle of one append")
        for origin, lane, head in self._look.execute(_RECORD_HEADS).fetchall():
            if head < self.heads[origin, lane]:
                raise Broken(f"{lane!r}: its head goes back from {self.heads[origin, lane]} to {head}")
            self.heads[origin, lane] = head
        if len(self.outboxes) == 1:
            (only,) = self.outboxes.values()
            # One that erases is superseded where a hold forbids it.
            for lane, sequence in {*self._look.execute(_SUPERSEDED).fetchall()} - only.changes.erasing:
                raise Broken(f"{lane!r} {sequence}: superseded, and no other outbox has changed the record")
        self.rights.committed(self.heads, secrets_of(row[6] for row in rows))

    def head(self, origin: bytes, name: str) -> int:
        """Return how far an outbox's conversation has got, with what was said again and is there already."""
        head, said = self.heads[origin, name], self.outboxes[origin].events
        while (after := said.get((name, head + 1))) is not None and (name, after[0]) in self._ids:
            head += 1
        return head

    def holds(self, conversation_id: str, event_id: UUID) -> bool:
        return (conversation_id, event_id.bytes) in self._ids


@dataclass
class OutboxLedger:
    """One outbox file, as far as it has been committed.

    :ivar events: all that was ever appended: conversation and sequence to event id and digest.
    :ivar bad: what the store may refuse: conversation and sequence.
    :ivar batches: of each event of a conditional append, the id of the one that decides: by conversation and sequence.
    :ivar holder: the process whose relay has taken the lease last.
    """

    path: Path
    store: StoreLedger
    say: Callable[[str], None]
    events: dict[tuple[str, int], tuple[bytes, bytes]] = field(default_factory=dict)
    salts: dict[tuple[str, int], bytes | None] = field(default_factory=dict)
    places: dict[tuple[str, bytes], int] = field(default_factory=dict)
    bad: set[tuple[str, int]] = field(default_factory=set)
    batches: dict[tuple[str, int], str] = field(default_factory=dict)
    lanes: dict[str, _Lane] = field(default_factory=lambda: defaultdict(_Lane))
    origin: bytes = b""
    holder: str = ""
    _incarnation: int = 0
    _position: int = 0

    def __post_init__(self) -> None:
        self._look = connect(str(self.path), isolation_level=None)
        self.changes = Changes()
        self.streams = Streams()

    @property
    def pending(self) -> int:
        """Events that wait."""
        return sum(lane.head - lane.delivered for lane in self.lanes.values())

    def committed(self, by: str) -> None:
        """Compare the file with what it was, and with the store."""
        if not self.origin:
            rows = self._look.execute("SELECT origin_id FROM letopis_outbox_origin").fetchall()
            if not rows:
                return
            self.origin = rows[0][0]
            self.store.outboxes[self.origin] = self
        self._appended()
        self.streams.check_drafts(self._look)
        self._held(by)
        kept = 0
        for name, *values in self._look.execute(_LANES).fetchall():
            now = _Lane(*values)
            before = self.lanes[name]
            kept += now.head - now.pruned
            if now != before:
                self._moved(name, before, now, by)
                self.lanes[name] = now
        ((count,),) = self._look.execute(_KEPT).fetchall()
        if count != kept:
            raise Broken(f"{self.path.name} keeps {count} events, its lanes say {kept}, after a commit of {by}")

    def _held(self, by: str) -> None:
        for (incarnation,) in self._look.execute(_HOLDER).fetchall():
            if incarnation < self._incarnation:
                raise Broken(f"{self.path.name}: the relay's number goes back to {incarnation}")
            if incarnation > self._incarnation:
                self._incarnation, self.holder = incarnation, by

    def _appended(self) -> None:
        for row in self._look.execute(_NEW, (self._position,)).fetchall():
            position, name, sequence, event_id, digest, *content, salt = row
            head = self.lanes[name].head
            while (name, head + 1) in self.events:
                head += 1
            if sequence != head + 1:
                raise Broken(f"{name!r}: sequence {sequence} is given out after {head}: used twice, or left out")
            if self.places.get((name, event_id), 0) > self.lanes[name].pruned:  # what is forgotten may be said again
                raise Broken(f"{name!r}: event {UUID(bytes=event_id)} was appended twice")
            if salt is not None and digest_of(name, *content, salt) != digest:
                raise Broken(f"{name!r} sequence {sequence}: the content does not match its digest")
            self.events[name, sequence] = (event_id, digest)
            self.salts[name, sequence] = salt
            self.places[name, event_id] = sequence
            if name < _RECORD_LANES:
                self.changes.add(name, position, sequence, event_id, content[2])
            if content[0] == "message.appended":
                if name.startswith(STREAMS):
                    self.streams.committed(content[2])
                self.store.rights.said(self.origin, name, content[2])
            if BAD in content[2]:
                self.bad.add((name, sequence))
            if content[3] is not None and (expects := json.loads(content[3]).get("letopis.expects")) is not None:
                self.batches[name, sequence] = expects.get("turn", str(UUID(bytes=event_id)))
            self._position = position

    def _moved(self, name: str, before: _Lane, now: _Lane, by: str) -> None:
        where = f"{name!r} in {self.path.name}"
        if now.head < before.head or (name, now.head) not in self.events or (name, now.head + 1) in self.events:
            raise Broken(f"{where}: the head goes from {before.head} to {now.head}, which is not what was appended")
        if now.delivered < before.delivered:
            raise Broken(f"{where}: delivered goes back from {before.delivered} to {now.delivered}")
        if now.delivered != before.delivered and by != self.holder:
            raise Broken(f"{where}: {by} has written back, and the relay is {self.holder} by now")
        if now.delivered > self.store.heads[self.origin, name]:
            self.store.committed()
        stored = self.store.head(self.origin, name)
        if now.delivered > stored:
            raise Broken(f"{where}: {now.delivered} are written off as delivered, the store has {stored}")
        if not before.pruned <= now.pruned <= now.delivered:
            raise Broken(f"{where}: pruned up to {now.pruned}, delivered up to {now.delivered}")
        if now.state == "blocked" and (name, now.delivered + 1) not in self.bad:
            raise Broken(f"{where}: blocked at sequence {now.delivered + 1}, with which nothing is wrong")
        # A refused one may be fixed while it is being looked for; then its successor is charged, once.
        tried = range(before.delivered + 1, now.delivered + 2)
        charged = now.attempts > (before.attempts if now.delivered == before.delivered else 0)
        if charged and not any((name, one) in self.bad for one in tried):
            raise Broken(f"{where}: sequence {now.delivered + 1} is charged {now.attempts} attempts, and is innocent")
        if now.state != before.state:
            self.say(f"lane {name} {before.state} -> {now.state} at {now.delivered}")

    def acknowledged(self, ack: Ack, said: EncodedEvent | None = None) -> None:
        """Check that what a bot was told is true."""
        place = self.places.get((ack.conversation_id, ack.event_id.bytes))
        if place is None:
            raise Broken(f"{ack.conversation_id!r}: event {ack.event_id} was acknowledged, and is in no file")
        if ack.sequence is not None and place != ack.sequence:
            raise Broken(f"{ack.conversation_id!r}: acknowledged as sequence {ack.sequence}, written as {place}")
        where = (ack.conversation_id, place)
        if said is not None and not said.has_content_of(self.events[where][1], self.salts[where] or b""):
            raise Broken(f"{ack.conversation_id!r} sequence {place}: acknowledged with other content than it has")
