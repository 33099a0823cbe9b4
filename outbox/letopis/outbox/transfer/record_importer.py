"""Import the records of a file into the outbox, idempotently: existing records are not changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from uuid import UUID

from letopis.outbox.event_log.append_encoding import PreparedChange
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.event_log.records.changes import prepare_put, together
from letopis.outbox.event_log.records.lookups import LocalRecords, read_places
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import StoreFault
from letopis.store.database.store_identity import expect_store
from letopis.store.errors import ConversationGone, InvalidInput
from letopis.store.model.events import to_microseconds
from letopis.store.model.records import ABSENT, Media, RecordKey, Scope, Tag
from letopis.store.read.records import RecordsView
from letopis.store.rules.record_plan import RecordChange
from letopis.store.transfer.jsonl import Refused
from letopis.store.transfer.record_lines import RecordLine

_OTHER: Final = "record: there is another value under this key: delete it first, or give another key"


@dataclass(frozen=True, slots=True)
class RecordItem:
    line: RecordLine
    prepared: PreparedChange


@dataclass(frozen=True, slots=True)
class TakenRecords:
    imported: int
    known: int
    refused: Sequence[Refused]


def check_record(line: RecordLine) -> RecordItem | Refused:
    """Return a line encoded for storage, or why it is refused."""
    try:
        item = prepare_put(line.scope, line.namespace, line.key, line.value, expected=ABSENT, keep=True, tags=line.tags)
    except InvalidInput as error:
        return Refused(number=line.number, reason=str(error), size=line.size)
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

    async def take(self, items: Iterable[RecordItem]) -> TakenRecords:
        """Append the records of some lines, and tell what became of each."""
        scopes: dict[Scope, list[RecordItem]] = {}
        for item in items:
            scopes.setdefault(item.line.scope, []).append(item)
        imported, known, refused = 0, 0, list[Refused]()
        for scope, mine in scopes.items():
            try:
                appended = await self._append(scope, mine)
            except ConversationGone as error:
                refused += [Refused(number=item.line.number, reason=str(error), size=item.line.size) for item in mine]
                continue
            for item, sequence, revision in zip(mine, appended.sequences, appended.revisions, strict=True):
                if sequence:
                    imported += 1
                elif await self._is_same(scope, item, revision):
                    known += 1
                else:
                    refused.append(Refused(number=item.line.number, reason=_OTHER, size=item.line.size))
        return TakenRecords(imported, known, refused)

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
                return await self._store.outbox_access.read_records(
                    lambda reader, connection: reader.get(connection, scope, places, origin_id=origin_id, values=values)
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
