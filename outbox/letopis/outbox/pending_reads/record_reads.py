"""Read records: pending changes from the outbox first, then the history store, and merge the two.

If neither of them can tell, an error is raised instead of returning nothing: a caller that is answered "not there"
starts over and overwrites the existing record.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox.event_log.records.changes import decode_body
from letopis.outbox.event_log.records.log import StoreLook
from letopis.outbox.event_log.records.lookups import (
    LocalChange,
    LocalRecords,
    read_pending,
    read_places,
    read_range,
)
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store.errors import OutboxUnavailable, StoreUnavailable
from letopis.store.model.events import from_microseconds
from letopis.store.model.records import (
    Record,
    RecordKey,
    RecordRange,
    Scope,
    Tag,
    decode_namespace,
    has_tags,
    scope_of,
)
from letopis.store.read.records import RecordsView, StoredRecord

_MAX_ATTEMPTS: Final = 4
_UNKNOWN: Final = "the record"
_UNKNOWN_LIST: Final = "the whole list of records"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSlice:
    """A page of records.

    :ivar next: the record after which the next page begins; ``None`` at the end.
    :ivar complete: ``False`` if the history store could not be asked.
    """

    records: Sequence[Record]
    next: RecordKey | None
    complete: bool = True


class RecordReads:
    """Reads records from an outbox file and the history store that it delivers to."""

    def __init__(self, outbox: OutboxFile, gateway: StoreGateway) -> None:
        self._outbox = outbox
        self._gateway = gateway

    async def get(
        self, scope: Scope, places: Collection[RecordKey], *, values: bool = True, new: bool = False
    ) -> dict[RecordKey, Record | None]:
        """Return records by key; ``None`` for those that are not there.

        :param new: what the outbox does not know does not exist, if the history store does not answer.
        :raises StoreUnavailable: the history store does not answer, and the outbox does not know a record.
        :raises OutboxUnavailable: the file lacks the value of a record.
        """
        local = await self._outbox.read(lambda connection: read_places(connection, scope, places, values=values))
        found: dict[RecordKey, Record | None] = {}
        asked = [place for place in places if not _decide_pending(scope, local, place, found, values=values)]
        if asked:
            view = await self._ask(scope, asked, values=values)
            if view is None:
                _decide_alone(local, asked, found, values=values, new=new)
            else:
                _decide_with(scope, local, view, asked, found, values=values)
        return found

    async def look(self, scope: Scope, places: Collection[RecordKey]) -> StoreLook | None:
        """Return what the history store holds of records; ``None`` if it does not answer."""
        view = await self._ask(scope, places, values=False)
        if view is None:
            return None
        held = {one.place: one.revision for one in view.records}
        return StoreLook(revisions={place: held.get(place) for place in places}, heads=view.heads)

    async def is_pending(self, scope: Scope, places: Collection[RecordKey]) -> bool:
        """Return True if the newest change of each record is pending, so that the file alone tells what it is."""
        local = await self._outbox.read(lambda connection: read_places(connection, scope, places, values=False))
        return all((found := local.changes.get(place)) is not None and local.is_pending(found) for place in places)

    async def page(
        self,
        scope: Scope,
        where: RecordRange,
        *,
        limit: int,
        values: bool = True,
        incomplete: bool = False,
        new: bool = False,
    ) -> RecordSlice:
        """Return the next records of a range; fewer than ``limit`` does not mean the end.

        :param incomplete: return what the outbox alone holds, if the history store does not answer.
        :param new: likewise, and that is all there is.
        :raises StoreUnavailable: the history store does not answer.
        """
        origin_id = self._outbox.origin.origin_id
        since: Mapping[str, int] | None = None
        for _ in range(_MAX_ATTEMPTS):
            local = await self._outbox.read(
                partial(read_range, scope=scope, where=where, since=since, values=limit if values else 0)
            )
            view = await self._gateway.read(
                lambda store: store.outbox_access.record_page(
                    scope, where, limit=limit, origin_id=origin_id, values=values
                )
            )
            if view is None:
                if incomplete or new:
                    alone = await self._page_alone(scope, where, limit=limit, values=values)
                    return replace(alone, complete=new)
                raise StoreUnavailable(_UNKNOWN_LIST)
            if since is None and any(view.heads.get(name, 0) < local.delivered[name] for name in local.delivered):
                since = view.heads  # a restored store: what it lacks is still in the file
                continue
            for name, pruned in local.pruned.items():
                if view.heads.get(name, 0) < pruned:
                    raise StoreUnavailable(_UNKNOWN_LIST)
            merged = _merge_page(scope, local, view, where)
            chosen = merged[:limit]
            after = chosen[-1].place if len(chosen) < len(merged) else view.records[-1].place if view.full else None
            puts = [one for one in chosen if isinstance(one, LocalChange)]
            if values and any(one.position not in local.bodies for one in puts):
                since = None
                continue  # earlier ones were delivered meanwhile, and are gone from the store already
            return RecordSlice(
                records=[
                    _local_record(one, _value(local, one, values=values), saved=not local.is_pending(one))
                    if isinstance(one, LocalChange)
                    else stored_record(one)
                    for one in chosen
                ],
                next=after,
            )
        raise OutboxUnavailable("the records change faster than they can be read: read them again")

    async def _page_alone(self, scope: Scope, where: RecordRange, *, limit: int, values: bool) -> RecordSlice:
        """Return a page of what the file retains; what is gone from it is not known to be gone."""

        def read(connection: sa.Connection) -> RecordSlice:
            local = read_range(connection, scope, where, since={}, values=limit if values else 0)
            present = sorted(
                (one for one in local.changes.values() if one.present), key=lambda one: one.place, reverse=where.reverse
            )
            chosen = present[:limit]
            return RecordSlice(
                records=[
                    _local_record(one, local.bodies.get(one.position), saved=not local.is_pending(one), current=False)
                    for one in chosen
                    if not values or local.bodies[one.position] is not None
                ],
                next=chosen[-1].place if len(chosen) < len(present) else None,
                complete=False,
            )

        return await self._outbox.read(read)

    async def find(
        self,
        tags: Mapping[str, Tag],
        *,
        limit: int,
        after: tuple[str, RecordKey] | None,
        reverse: bool = False,
        end: bytes | None = None,
    ) -> tuple[list[Record], tuple[str, RecordKey] | None]:
        """Return the next records of any scope that have all the tags, without values, and where the next page begins.

        :param reverse: by key, the highest first.
        :param end: only lower keys.
        :raises StoreUnavailable: the history store does not answer.
        """
        changes, clears = await self._outbox.read(read_pending)
        found = await self._gateway.read(
            lambda store: store.outbox_access.find_records(tags, limit=limit, after=after, reverse=reverse, end=end)
        )
        if found is None:
            raise StoreUnavailable(_UNKNOWN_LIST)
        rank = _highest_key_first if reverse else _by_scope
        pending = {(scope_of(one.lane).name, one.place): one for one in changes}
        merged = {
            (one.scope.name, one.place): stored_record(one)
            for one in found
            if (one.scope.name, one.place) not in pending
            and not any(
                lane == one.scope.lane(one.place[0]) and RecordRange(prefix=prefix).holds(one.place)
                for lane, _, prefix in clears
            )
        }
        bound = (found[-1].scope.name, found[-1].place) if len(found) == limit else None
        for where, one in pending.items():
            inside = (after is None or rank(where) > rank(after)) and (bound is None or rank(where) <= rank(bound))
            inside = inside and (end is None or where[1][1] < end)
            if one.present and inside and has_tags(one.tags, tags):
                merged[where] = _local_record(one, None, saved=False)
        ordered = sorted(merged.items(), key=lambda item: rank(item[0]))
        chosen = ordered[:limit]
        return [one for _, one in chosen], chosen[-1][0] if len(chosen) < len(ordered) else bound

    async def scopes(self, *, limit: int, after: str = "") -> tuple[list[Scope], str | None]:
        """Return the next scopes that may hold a record, by name, and after which the next page begins.

        :raises StoreUnavailable: the history store does not answer.
        """
        changes, _ = await self._outbox.read(read_pending)
        found = await self._gateway.read(lambda store: store.outbox_access.record_scopes(limit=limit, after=after))
        if found is None:
            raise StoreUnavailable(_UNKNOWN_LIST)
        bound = found[-1].name if len(found) == limit else None
        names = {one.name for one in found}
        names |= {
            name
            for one in changes
            if one.present and (name := scope_of(one.lane).name) > after and (bound is None or name <= bound)
        }
        chosen = sorted(names)
        if len(chosen) > limit:
            chosen = chosen[:limit]
            bound = chosen[-1]
        return [Scope(name) for name in chosen], bound

    async def _ask(self, scope: Scope, places: Collection[RecordKey], *, values: bool) -> RecordsView | None:
        origin_id = self._outbox.origin.origin_id
        return await self._gateway.read(
            lambda store: store.outbox_access.records(scope, places, origin_id=origin_id, values=values)
        )


def _by_scope(where: tuple[str, RecordKey]) -> tuple[Any, ...]:
    return where


def _highest_key_first(where: tuple[str, RecordKey]) -> tuple[Any, ...]:
    scope, (namespace, key) = where
    return (*(255 - byte for byte in key), 256), scope, namespace


def _decide_pending(
    scope: Scope, local: LocalRecords, place: RecordKey, found: dict[RecordKey, Record | None], *, values: bool
) -> bool:
    """Decide a record whose newest change is pending. Return True if there is nothing left to ask."""
    change = local.changes.get(place)
    if change is not None and local.is_pending(change):
        _decide_local(local, change, found, values=values, saved=False)
        return True
    lane = scope.lane(place[0])
    if local.cleared(lane, place, local.delivered.get(lane, 0)):
        found[place] = None
        return True
    return False


def _decide_local(
    local: LocalRecords,
    change: LocalChange,
    found: dict[RecordKey, Record | None],
    *,
    values: bool,
    saved: bool,
    current: bool = True,
) -> None:
    if not change.present:
        found[change.place] = None
    else:
        body = _value(local, change, values=values)
        found[change.place] = _local_record(change, body, saved=saved, current=current)


def _value(local: LocalRecords, change: LocalChange, *, values: bool) -> bytes | None:
    """Return the value of a put, which was read in one snapshot with it.

    :raises OutboxUnavailable: the file lacks it.
    """
    if values and local.bodies[change.position] is None:
        raise OutboxUnavailable("the value of a record is missing in the outbox file: run `letopis outbox verify`")
    return local.bodies.get(change.position)


def _decide_with(
    scope: Scope,
    local: LocalRecords,
    view: RecordsView,
    asked: Sequence[RecordKey],
    found: dict[RecordKey, Record | None],
    *,
    values: bool,
) -> None:
    stored = {one.place: one for one in view.records}
    for place in asked:
        lane = scope.lane(place[0])
        head = view.heads.get(lane, 0)
        change = local.changes.get(place)
        if change is not None and change.sequence > head:
            _decide_local(local, change, found, values=values, saved=False)
        elif local.cleared(lane, place, head):
            found[place] = None
        elif head < local.pruned.get(lane, 0):
            raise StoreUnavailable(_UNKNOWN)  # a store that lacks what this outbox has pruned tells nothing
        else:
            found[place] = stored_record(stored[place]) if place in stored else None


def _decide_alone(
    local: LocalRecords, asked: Sequence[RecordKey], found: dict[RecordKey, Record | None], *, values: bool, new: bool
) -> None:
    """Answer from the retained tail what was put there last. That a record is gone is not known: another may be."""
    for place in asked:
        change = local.changes.get(place)
        if change is None or not change.present:
            if not new:
                raise StoreUnavailable(_UNKNOWN)
            found[place] = None
            continue
        _decide_local(local, change, found, values=values, saved=True, current=False)


def _merge_page(
    scope: Scope, local: LocalRecords, view: RecordsView, where: RecordRange
) -> list[LocalChange | StoredRecord]:
    """Return the store's page with the pending changes in it and over it, as far as the page reaches."""

    def stands(one: StoredRecord) -> bool:
        lane = scope.lane(one.place[0])
        return one.place not in changes and not local.cleared(lane, one.place, view.heads.get(lane, 0))

    changes = {
        place: change for place, change in local.changes.items() if change.sequence > view.heads.get(change.lane, 0)
    }
    bound = view.records[-1].place if view.full else None
    merged: list[LocalChange | StoredRecord] = [one for one in view.records if stands(one)]
    for place, change in changes.items():
        beyond = bound is not None and (place < bound if where.reverse else place > bound)
        if change.present and not beyond:
            merged.append(change)
    return sorted(merged, key=lambda one: one.place, reverse=where.reverse)


def stored_record(one: StoredRecord) -> Record:
    """Convert a record of the history store."""
    return Record(
        scope=one.scope,
        namespace=decode_namespace(one.place[0]),
        key=one.place[1].decode(),
        value=None if one.body is None else decode_body(one.media, one.body),
        media=one.media,
        revision=one.revision,
        size=one.size,
        updated_at=from_microseconds(one.updated_at),
        tags=dict(one.tags),
    )


def _local_record(change: LocalChange, body: bytes | None, *, saved: bool, current: bool = True) -> Record:
    return Record(
        scope=scope_of(change.lane),
        namespace=decode_namespace(change.place[0]),
        key=change.place[1].decode(),
        value=None if body is None else decode_body(change.media, body),
        media=change.media,
        revision=change.revision,
        size=change.size,
        updated_at=from_microseconds(change.updated_at),
        tags=dict(change.tags),
        saved=saved,
        current=current,
    )
