"""Read records: pending changes from the outbox first, then the history store, and merge the two.

If neither of them can tell, an error is raised instead of returning nothing: a caller that is answered "not there"
starts over and overwrites the existing record.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.event_log.records.changes import decode_body
from letopis.outbox.event_log.records.lookups import LocalChange, LocalRecords, read_pending, read_places, read_range
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store.errors import InvalidInput, OutboxUnavailable, StoreUnavailable
from letopis.store.model.conversations import Page
from letopis.store.model.events import from_microseconds
from letopis.store.model.records import (
    Record,
    RecordKey,
    RecordRange,
    Scope,
    Tag,
    check_tags,
    decode_namespace,
    encode_key,
    has_tags,
    read_place,
    scope_of,
)
from letopis.store.read.paging import CursorCodec, check_count
from letopis.store.read.records import RecordReader, RecordsView, StoredRecord

T = TypeVar("T")

_MAX_ATTEMPTS: Final = 4
_CURSOR: Final = CursorCodec("records", "records")
_FOUND: Final = CursorCodec("found records", "found records")
_SCOPES: Final = CursorCodec("record scopes", "scopes of records")
_UNKNOWN: Final = "the record"
_UNKNOWN_LIST: Final = "the whole list of records"


class RecordReads:
    """Reads records from an outbox file and the history store that it delivers to."""

    def __init__(self, outbox: OutboxFile, gateway: StoreGateway) -> None:
        self._outbox = outbox
        self._gateway = gateway

    async def get(
        self, scope: Scope, places: Collection[RecordKey], *, values: bool = True, new: bool = False
    ) -> dict[RecordKey, Record | None]:
        """Return records by key, as ``Records.get_many`` does; ``None`` for those that are not there."""
        local = await self._outbox.read(lambda connection: read_places(connection, scope, places, values=values))
        asked = [key for key in places if local.tells(key, local.delivered) is None]
        view = await self.ask(scope, asked, values=values) if asked else None
        records: dict[RecordKey, Record | None] = {}
        for key in places:
            if key not in asked or view is not None:
                # What is pending is not asked for; the store may have it meanwhile.
                record = _newest(local, key, view if key in asked else None)
                records[key] = None if record is None else _record(local, record, values=values)
                continue
            # What was put here last. That a record is gone is not known: another outbox may have put it.
            change = local.changes.get(key)
            if change is not None and change.present:
                records[key] = _record(local, change, values=values, current=False)
            elif new:
                records[key] = None
            else:
                raise StoreUnavailable(_UNKNOWN)
        return records

    async def ask(self, scope: Scope, places: Collection[RecordKey], *, values: bool) -> RecordsView | None:
        """Return what the history store holds of records; ``None`` if it does not answer."""
        origin_id = self._outbox.origin.origin_id
        return await self._read(
            lambda reader, connection: reader.get(connection, scope, places, origin_id=origin_id, values=values)
        )

    async def _read(self, ask: Callable[[RecordReader, AsyncConnection], Awaitable[T]]) -> T | None:
        runtime = self._gateway.store.runtime
        return await self._gateway.read(
            lambda: runtime.snapshot(lambda lineage, connection: ask(lineage.reader.records, connection))
        )

    async def is_pending(self, scope: Scope, places: Collection[RecordKey]) -> bool:
        """Return True if the newest change of each record is pending, so that the file alone tells what it is."""
        local = await self._outbox.read(lambda connection: read_places(connection, scope, places, values=False))
        return all((change := local.changes.get(key)) is not None and local.is_pending(change) for key in places)

    async def page(
        self,
        scope: Scope,
        where: RecordRange,
        *,
        limit: int,
        values: bool = True,
        after: str | None = None,
        incomplete: bool = False,
        new: bool = False,
    ) -> Page[Record]:
        """Return the next records of a range, as ``Records.list`` does."""
        origin_id, puts = self._outbox.origin.origin_id, limit if values else 0
        where = where if after is None else replace(where, after=_CURSOR.decode(after, read_place))

        since: Mapping[str, int] | None = None
        for _ in range(_MAX_ATTEMPTS):
            local = await self._outbox.read(partial(read_range, scope=scope, where=where, since=since, values=puts))
            stored = await self._read(
                lambda reader, connection: reader.page(
                    connection, scope, where, limit=limit, origin_id=origin_id, values=values
                )
            )
            if stored is not None and (since := _behind(local, stored)) is not None:
                continue  # the store was restored
            if stored is None:
                if not (incomplete or new):
                    raise StoreUnavailable(_UNKNOWN_LIST)
                local = await self._outbox.read(partial(read_range, scope=scope, where=where, since={}, values=puts))
            view = RecordsView(records=()) if stored is None else stored
            merged = _merge_page(local, view, where)
            chosen = merged[:limit]
            last = chosen[-1].place if len(chosen) < len(merged) else view.records[-1].place if view.full else None
            if values and any(
                isinstance(change, LocalChange) and change.position not in local.bodies for change in chosen
            ):
                continue  # earlier ones were delivered meanwhile, and are gone from the store already
            current = stored is not None
            records = [_record(local, change, values=values, current=current) for change in chosen]
            following = None if last is None else _CURSOR.encode(*(part.decode() for part in last))
            return Page(items=tuple(records), next=following, complete=current or new)
        raise OutboxUnavailable("the records change faster than they can be read: read them again")

    async def find(
        self, tags: Mapping[str, Tag], *, limit: int, after: str | None, reverse: bool = False, end: str | None = None
    ) -> Page[Record]:
        """Find records as ``History.records.find`` does."""
        if not (wanted := check_tags(tags)):
            raise InvalidInput("tags", "must name at least one tag")
        check_count(limit, "limit")
        begin = None if after is None else _FOUND.decode(after, _read_found)
        below = None if end is None else encode_key(end, "end")
        changes, clears = await self._outbox.read(read_pending)
        stored = await self._read(
            lambda reader, connection: reader.find(
                connection, wanted, limit=limit, after=begin, reverse=bool(reverse), end=below
            )
        )
        if stored is None:
            raise StoreUnavailable(_UNKNOWN_LIST)
        rank: Callable[[tuple[str, RecordKey]], tuple[Any, ...]] = _highest_key_first if reverse else tuple
        pending = {(scope_of(record.lane).name, record.place): record for record in changes}
        merged = {
            (record.scope.name, record.place): stored_record(record)
            for record in stored
            if (record.scope.name, record.place) not in pending
            and not any(
                lane == record.scope.lane(record.place[0]) and RecordRange(prefix=prefix).holds(record.place)
                for lane, _, prefix in clears
            )
        }
        bound = (stored[-1].scope.name, stored[-1].place) if len(stored) == limit else None
        for where, record in pending.items():
            inside = (begin is None or rank(where) > rank(begin)) and (bound is None or rank(where) <= rank(bound))
            inside = inside and (below is None or where[1][1] < below)
            if record.present and inside and has_tags(record.tags, wanted):
                merged[where] = stored_record(record, saved=False)
        ordered = sorted(merged.items(), key=lambda item: rank(item[0]))
        chosen = ordered[:limit]
        last = chosen[-1][0] if len(chosen) < len(ordered) else bound
        cursor = None if last is None else _FOUND.encode(last[0], *(part.decode() for part in last[1]))
        return Page(items=tuple([record for _, record in chosen]), next=cursor)

    async def scopes(self, *, limit: int, after: str | None) -> Page[Scope]:
        """List scopes as ``History.records.scopes`` does."""
        check_count(limit, "limit")
        begin = "" if after is None else _SCOPES.decode(after, _read_name)
        changes, _ = await self._outbox.read(read_pending)
        stored = await self._read(lambda reader, connection: reader.scopes(connection, limit=limit, after=begin))
        if stored is None:
            raise StoreUnavailable(_UNKNOWN_LIST)
        bound = stored[-1].name if len(stored) == limit else None
        names = {item.name for item in stored}
        names |= {
            name
            for item in changes
            if item.present and (name := scope_of(item.lane).name) > begin and (bound is None or name <= bound)
        }
        chosen = sorted(names)
        if len(chosen) > limit:
            chosen = chosen[:limit]
            bound = chosen[-1]
        return Page(items=tuple(map(Scope, chosen)), next=None if bound is None else _SCOPES.encode(bound))


def _read_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError
    return name


def _read_found(scope: object, namespace: object, key: object) -> tuple[str, RecordKey]:
    return _read_name(scope), read_place(namespace, key)


def _highest_key_first(where: tuple[str, RecordKey]) -> tuple[Any, ...]:
    scope, (namespace, key) = where
    return (*(255 - byte for byte in key), 256), scope, namespace


def _newest(local: LocalRecords, place: RecordKey, view: RecordsView | None) -> StoredRecord | None:
    """Return a record as the file tells it after the heads of a view; otherwise as the view does."""
    heads = local.delivered if view is None else view.heads
    if (told := local.tells(place, heads)) is not None:
        return told[0]
    lane = local.scope.lane(place[0])
    if view is None or heads.get(lane, 0) < local.pruned.get(lane, 0):
        raise StoreUnavailable(_UNKNOWN)
    return next((record for record in view.records if record.place == place), None)


def _behind(local: LocalRecords, view: RecordsView) -> Mapping[str, int] | None:
    """Return the heads of a store that lacks what was delivered, if that is still in the file."""
    if any(view.heads.get(name, 0) < pruned for name, pruned in local.pruned.items()):
        raise StoreUnavailable(_UNKNOWN_LIST)
    return view.heads if any(view.heads.get(name, 0) < since for name, since in local.since.items()) else None


def _merge_page(local: LocalRecords, view: RecordsView, where: RecordRange) -> list[StoredRecord]:
    """Return the store's page with the pending changes in it and over it, as far as the page reaches."""
    bound = view.records[-1].place if view.full else None
    merged = [record for record in view.records if local.tells(record.place, view.heads) is None]
    for key, change in local.changes.items():
        beyond = bound is not None and (key < bound if where.reverse else key > bound)
        if change.present and not beyond and change.sequence > view.heads.get(change.lane, 0):
            merged.append(change)
    return sorted(merged, key=lambda record: record.place, reverse=where.reverse)


def _record(local: LocalRecords, found: StoredRecord, *, values: bool, current: bool = True) -> Record:
    """Convert a record of the file or of the store."""
    if not isinstance(found, LocalChange):
        return stored_record(found)
    body = local.bodies.get(found.position)
    if values and body is None:
        raise OutboxUnavailable("the value of a record is missing in the outbox file: run `letopis outbox verify`")
    # Of a store that answers, it is not in there.
    return stored_record(replace(found, body=body), saved=not (current or local.is_pending(found)), current=current)


def stored_record(found: StoredRecord, *, saved: bool = True, current: bool = True) -> Record:
    """Convert a record of the history store, or a change of the file."""
    return Record(
        scope=found.scope,
        namespace=decode_namespace(found.place[0]),
        key=found.place[1].decode(),
        value=None if found.body is None else decode_body(found.media, found.body),
        media=found.media,
        revision=found.revision,
        size=found.size,
        updated_at=from_microseconds(found.updated_at),
        tags=dict(found.tags),
        saved=saved,
        current=current,
    )
