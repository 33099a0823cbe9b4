"""Import the lines of a file into the outbox, in order and idempotently."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import anyio
import sqlalchemy as sa

from letopis.outbox.event_log.append_encoding import Prepared, PreparedChange, prepare
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.event_log.records.changes import prepare_put, together
from letopis.outbox.event_log.records.lookups import LocalRecords, read_places
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import StoreFault
from letopis.store.database.store_identity import expect_store
from letopis.store.database.worker_thread import WorkerThread
from letopis.store.errors import ConversationGone, IdReused, InvalidInput, Reuse
from letopis.store.model.codec import DEFAULT_LIMITS, EncodedEvent, digest_of
from letopis.store.model.events import to_microseconds
from letopis.store.model.records import ABSENT, Media, RecordKey, Scope, Tag
from letopis.store.read.reader import Reader
from letopis.store.read.records import RecordsView
from letopis.store.rules.record_plan import RecordChange
from letopis.store.transfer.jsonl import Line, Refused, SeenKeys
from letopis.store.transfer.record_lines import RecordLine

CHUNK_LINES: Final = 500
CHUNK_BYTES: Final = 8_388_608  # a chunk is committed at once: at most this many lines, and little more bytes

_KNOWN: Final = "SELECT event_id FROM letopis_outbox_known_ids WHERE event_id IN ({places})"
_LANES: Final = "SELECT conversation_id, pruned FROM letopis_outbox_lanes WHERE conversation_id IN ({places})"
_OTHER: Final = "record: there is another value under this key: delete it first, or give another key"


@dataclass(slots=True)
class ImportCounts:
    imported: int = 0
    known: int = 0
    refused: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Item:
    line: Line
    prepared: Prepared

    @property
    def event_id(self) -> UUID:
        return self.prepared.events[0].event_id


@dataclass(frozen=True, slots=True)
class RecordItem:
    line: RecordLine
    prepared: PreparedChange


@dataclass(slots=True)
class Importer:
    """One import into an outbox; a committed chunk is durable, and an interrupted import is repeated."""

    outbox: OutboxFile
    store: ConversationStore
    tell: Callable[[Refused], None]
    progress: Callable[[ImportCounts], None] = lambda _: None
    counts: ImportCounts = field(default_factory=ImportCounts)
    _records: RecordImporter = field(init=False)
    _answers: bool = True  # false once the store was unavailable: it is not waited for twice
    _elsewhere: SeenKeys = field(default_factory=SeenKeys)
    """The conversations whose events the store held before this run."""

    def __post_init__(self) -> None:
        self._records = RecordImporter(self.outbox, self.store)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._elsewhere.close()

    async def take(self, lines: Iterable[Line | RecordLine | Refused]) -> ImportCounts:
        """Append every line that can be stored; return the counts, which :attr:`counts` shows while it runs."""
        source = iter(lines)
        # Abandoned when cancelled: it ends after its current line, and delays neither us nor the interpreter.
        thread = WorkerThread("letopis-intake")
        while chunk := await thread.run(_draw, source):
            await self._take_chunk(chunk)
            self.progress(self.counts)
        await thread.close()
        return self.counts

    async def _take_chunk(self, chunk: Sequence[Line | RecordLine | Refused]) -> None:
        items: list[_Item] = []
        records: list[RecordItem] = []
        refused: list[Refused] = []
        for line in chunk:
            checked = check(line)
            if isinstance(checked, Refused):
                refused.append(checked)
            elif isinstance(checked, RecordItem):
                records.append(checked)
            else:
                items.append(checked)
        if records:
            refused += await self._records.take(records, self.counts)
        known, pruned = await self.outbox.read(lambda connection: _look_up(connection, items))
        items = await self._without_what_the_store_holds(items, known, pruned, refused)
        lanes: dict[str, list[_Item]] = {}
        for item in items:
            lanes.setdefault(item.line.conversation_id, []).append(item)
        async with anyio.create_task_group() as tasks:
            # Concurrently, so that the writer commits them together; one conversation stays in order.
            for run in lanes.values():
                tasks.start_soon(self._append, run, known, refused)
        for refusal in sorted(refused, key=lambda refusal: refusal.number):
            self.tell(refusal)
        self.counts.refused += len(refused)
        self.counts.bytes += sum(line.size for line in chunk)

    async def _append(self, run: Sequence[_Item], known: frozenset[UUID], refused: list[Refused]) -> None:
        """Append lines of one conversation together, or one by one if that is refused, so that only bad lines are."""
        owners = {item.line.owner for item in run} - {None}
        if len(run) > 1 and len(owners) < 2:
            try:
                prepared = replace(
                    run[0].prepared,
                    events=tuple(item.prepared.events[0] for item in run),
                    message_ids=tuple(item.prepared.message_ids[0] for item in run),
                    owner_id=next(iter(owners), None),
                )
                await self.outbox.append(prepared)
            except (ConversationGone, IdReused, InvalidInput):
                pass  # at least one is refused: the loop below finds which
            else:
                self._count(run, known)
                return
        there = set(known)
        for item in run:
            try:
                await self.outbox.append(item.prepared)
            except IdReused as reused:
                if reused.reuse is Reuse.OTHER_CONTENT:
                    refused.append(_reused_id(item))
                else:  # it is in the log, and erased messages stay so
                    self.counts.known += 1
            except (InvalidInput, ConversationGone) as error:
                if isinstance(error, ConversationGone) and item.event_id in there:
                    self.counts.known += 1
                else:
                    refused.append(_refused(item.line, str(error)))
            else:
                self._count((item,), there)
                there.add(item.event_id)

    def _count(self, run: Sequence[_Item], known: Set[UUID]) -> None:
        new = {item.event_id for item in run} - known
        self.counts.imported += len(new)
        self.counts.known += len(run) - len(new)

    async def _without_what_the_store_holds(
        self, items: Sequence[_Item], known: frozenset[UUID], pruned: Mapping[str, int], refused: list[Refused]
    ) -> list[_Item]:
        """Return the items without those that only the store holds; those count as known or refused."""
        asked: dict[str, set[UUID]] = {}
        for item in items:
            if item.event_id not in known:
                asked.setdefault(item.line.conversation_id, set()).add(item.event_id)
        there: dict[UUID, tuple[bytes, bytes | None]] = {}
        for conversation_id, wanted in asked.items():
            there |= await self._query_store(conversation_id, wanted, pruned=pruned.get(conversation_id))
        rest: list[_Item] = []
        for item in items:
            if item.event_id not in there:
                rest.append(item)
                continue
            digest, salt = there[item.event_id]
            if salt is None or item.prepared.events[0].has_content_of(digest, salt):  # None: redacted since
                self.counts.known += 1
            else:
                refused.append(_reused_id(item))
        return rest

    async def _query_store(
        self, conversation_id: str, wanted: Collection[UUID], *, pruned: int | None
    ) -> dict[UUID, tuple[bytes, bytes | None]]:
        """Return the events that the store holds, with their digests."""
        key = conversation_id.encode()
        if pruned == 0 and not self._elsewhere.seen(key):
            return {}  # all of it is in the outbox
        if not self._answers and not pruned:
            return {}
        try:
            with expect_store(self.outbox.probe.store_id()):
                held = await self.store.runtime.read(Reader.digests, conversation_id, wanted)
                if not self._elsewhere.seen(key) and (held or await self.store.events(conversation_id, first=1)):
                    self._elsewhere.add(key)
                return held
        except StoreFault:
            if pruned:
                raise
            self._answers = False
        return {}


def check(line: Line | RecordLine | Refused) -> _Item | RecordItem | Refused:
    """Return a line encoded for storage, or why it is refused."""
    if isinstance(line, Refused):
        return line
    if isinstance(line, RecordLine):
        return check_record(line)
    try:
        return _Item(line, prepare(line.conversation_id, (line.event(),), owner=line.owner, limits=DEFAULT_LIMITS))
    except InvalidInput as error:
        return _refused(line, str(error))


def try_out(lines: Iterable[Line | RecordLine | Refused], tell: Callable[[Refused], None]) -> ImportCounts:
    """Check lines as an import would, without writing: each alone, and for contradicting ids or owners."""
    counts = ImportCounts()
    with SeenKeys() as seen, SeenKeys() as owners:
        for line in lines:
            checked = check(line)
            if isinstance(checked, RecordItem):
                record = b"\1".join((checked.line.scope.name.encode(), *checked.prepared.change.place))
                if not _is_first(record, checked.prepared.event, seen, counts):
                    checked = _refused(checked.line, "record: an earlier line gives it another value")
            elif isinstance(checked, _Item):
                checked = _first_use(checked, seen, owners, counts)
            if isinstance(checked, Refused):
                tell(checked)
                counts.refused += 1
    return counts


def _first_use(item: _Item, seen: SeenKeys, owners: SeenKeys, counts: ImportCounts) -> _Item | Refused:
    line, event = item.line, item.prepared.events[0]
    # The keys of a conversation that has an owner, and of this owner; no identifier holds a NUL.
    conversation, owned = line.conversation_id.encode(), f"{line.conversation_id}\0{line.owner}".encode()
    if line.owner is not None and owners.seen(conversation) and not owners.seen(owned):
        return _refused(line, "owner: an earlier line gives the conversation to another owner")
    if not _is_first(event.event_id.bytes, event, seen, counts):
        return _refused(line, "id: an earlier line uses it for other content")
    for key in (conversation, owned) if line.owner is not None else ():
        if not owners.seen(key):
            owners.add(key)
    return item


def _is_first(key: bytes, event: EncodedEvent, seen: SeenKeys, counts: ImportCounts) -> bool:
    """Count a line; return False if an earlier one has other content under its key."""
    # What distinguishes its content from other content in this import; it is not kept.
    whole = key + digest_of(event.conversation_id, event.type, event.schema_version, event.data, event.metadata, b"")
    if seen.seen(whole):
        counts.known += 1
        return True
    if seen.seen(key):
        return False
    seen.add(key)
    seen.add(whole)
    counts.imported += 1
    return True


def _draw(source: Iterator[Line | RecordLine | Refused]) -> list[Line | RecordLine | Refused]:
    chunk: list[Line | RecordLine | Refused] = []
    size = 0
    for line in islice(source, CHUNK_LINES):
        chunk.append(line)
        size += line.size
        if size >= CHUNK_BYTES:
            break
    return chunk


def _look_up(connection: sa.Connection, items: Sequence[_Item]) -> tuple[frozenset[UUID], dict[str, int]]:
    """Return the events of a chunk that the outbox holds, and how many of each conversation it has pruned."""
    known = _select(connection, _KNOWN, [item.event_id.bytes for item in items])
    lanes = _select(connection, _LANES, list({item.line.conversation_id for item in items}))
    return frozenset(UUID(bytes=row[0]) for row in known), {row[0]: row[1] for row in lanes}


def _select(connection: sa.Connection, statement: str, values: Sequence[Any]) -> Sequence[Any]:
    if not values:
        return ()
    places = ", ".join("?" * len(values))
    return connection.exec_driver_sql(statement.format(places=places), tuple(values)).all()


def _reused_id(item: _Item) -> Refused:
    return _refused(item.line, "id: holds other content already: use a new id")


def _refused(line: Line | RecordLine, reason: str) -> Refused:
    return Refused(number=line.number, reason=reason, size=line.size)


def check_record(line: RecordLine) -> RecordItem | Refused:
    """Return a line encoded for storage, or why it is refused."""
    try:
        item = prepare_put(line.scope, line.namespace, line.key, line.value, expected=ABSENT, keep=True, tags=line.tags)
    except InvalidInput as error:
        return _refused(line, str(error))
    if line.put_at is not None:
        put_at = to_microseconds(line.put_at)
        item = PreparedChange(replace(item.event, occurred_at=put_at), replace(item.change, occurred_at=put_at))
    return RecordItem(line, item)


class RecordImporter:
    """Puts records that are not there yet; what the store holds stays there on delivery, too."""

    def __init__(self, outbox: OutboxFile, store: ConversationStore) -> None:
        self._outbox = outbox
        self._store = store
        self._answers = True

    async def take(self, items: Iterable[RecordItem], counts: ImportCounts) -> list[Refused]:
        """Append the records of some lines, and count them; return those that are refused."""
        scopes: dict[Scope, list[RecordItem]] = {}
        for item in items:
            scopes.setdefault(item.line.scope, []).append(item)
        refused = list[Refused]()
        for scope, mine in scopes.items():
            try:
                appended = await self._append(scope, mine)
            except ConversationGone as error:
                refused += [_refused(item.line, str(error)) for item in mine]
                continue
            for item, sequence, revision in zip(mine, appended.sequences, appended.revisions, strict=True):
                if sequence:
                    counts.imported += 1
                elif await self._is_same(scope, item, revision):
                    counts.known += 1
                else:
                    refused.append(_refused(item.line, _OTHER))
        return refused

    async def _append(self, scope: Scope, items: Sequence[RecordItem]) -> Appended:
        changes = [item.prepared for item in items]
        view = await self._ask(scope, [item.change.place for item in changes], values=False)
        return await self._outbox.append(together(scope, changes, view=view, trusting=True))

    async def _ask(self, scope: Scope, places: Sequence[RecordKey], *, values: bool) -> RecordsView | None:
        """Return what the store holds of records; ``None`` if it does not answer."""
        if not self._answers:
            return None
        origin_id = self._outbox.origin.origin_id
        try:
            with expect_store(self._outbox.probe.store_id()):
                return await self._store.runtime.snapshot(
                    lambda lineage, connection: lineage.reader.records.get(
                        connection, scope, places, origin_id=origin_id, values=values
                    )
                )
        except StoreFault:
            self._answers = False
            return None

    async def _is_same(self, scope: Scope, item: RecordItem, revision: UUID | None) -> bool:
        """Return True if an existing record has the value and the tags of a line, or if that is unknown."""
        change = item.prepared.change
        read = partial(read_places, scope=scope, places=[change.place], values=True)
        local: LocalRecords = await self._outbox.read(read)
        held = local.changes.get(change.place)
        if held is not None and held.revision == revision and held.position in local.bodies:
            return _equal(change, held.media, held.tags, local.bodies[held.position])
        view = await self._ask(scope, [change.place], values=True)
        return view is None or all(_equal(change, record.media, record.tags, record.body) for record in view.records)


def _equal(change: RecordChange, media: Media, tags: Mapping[str, Tag], body: bytes | None) -> bool:
    return (change.media, dict(change.tags), change.body) == (media, dict(tags), body)
