"""Merge the store's list of conversations with those that have pending events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox.event_log.statements import fetch_all
from letopis.store.model.conversations import Conversation, Page
from letopis.store.model.events import to_microseconds
from letopis.store.read.paging import conversations_cursor

# CROSS JOIN: SQLite would sometimes read all events, and look up the lane of each.
_KEYS: Final = (
    "SELECT l.conversation_id, e.occurred_at, l.owner_id IS NULL FROM letopis_outbox_lanes AS l"
    " CROSS JOIN letopis_outbox_events AS e ON e.lane = l.lane AND e.sequence = l.head"
    # Names of record lanes come before all ids.
    " AND l.conversation_id > char(2)"
)
_PENDING: Final = (
    f"{_KEYS} WHERE l.pending_since IS NOT NULL AND l.delivered < l.head"
    " AND (?1 IS NULL OR coalesce(l.owner_id, ?1) = ?1)"
)
_RETAINED: Final = (
    f"{_KEYS} WHERE (?1 IS NULL OR l.owner_id = ?1)"
    " AND (?2 IS NULL OR (e.occurred_at, l.conversation_id) {after} (?2, ?3))"
    " ORDER BY e.occurred_at {order}, l.conversation_id {order} LIMIT ?4"
)
_NEWEST_RETAINED: Final = _RETAINED.format(after="<", order="DESC")
_OLDEST_RETAINED: Final = _RETAINED.format(after=">", order="ASC")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ListingKey:
    """A conversation's place in the list: the newest activity first, so the greatest key first."""

    updated_at: int
    conversation_id: str

    @property
    def cursor(self) -> str:
        """The place after it."""
        return conversations_cursor(self.updated_at, self.conversation_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingKeys:
    """Conversations with pending events, by their keys in the list: an owner's and those of unknown owners."""

    keys: Mapping[str, ListingKey]
    unknown: frozenset[str] = frozenset()  # of unknown owners, if the list is of one owner

    def owned(self, updated: Mapping[str, int]) -> dict[str, ListingKey]:
        """Return the keys of the owner's conversations: delivery moves none of them towards the newest any more."""
        return {
            name: replace(key, updated_at=max(key.updated_at, updated.get(name, 0)))
            for name, key in self.keys.items()
            if name in updated or name not in self.unknown
        }


def read_pending_keys(connection: sa.Connection, owner: str | None) -> PendingKeys:
    """Read which conversations have pending events: those of an owner and those without a known owner, or all."""
    rows = fetch_all(connection, _PENDING, (owner,))
    return PendingKeys(keys=_keys(rows), unknown=frozenset(row[0] for row in rows if owner is not None and row[2]))


def read_retained_keys(
    connection: sa.Connection, owner: str | None, after: ListingKey | None, limit: int, *, oldest_first: bool = False
) -> dict[str, ListingKey]:
    """Read the conversations of the file that come next in the list, while the store is unavailable."""
    start = (None, None) if after is None else (after.updated_at, after.conversation_id)
    statement = _OLDEST_RETAINED if oldest_first else _NEWEST_RETAINED
    return _keys(fetch_all(connection, statement, (owner, *start, limit)))


def merge_list(
    pending: Mapping[str, ListingKey],
    page: Page[Conversation] | None,
    *,
    after: ListingKey | None,
    limit: int,
    oldest_first: bool = False,
) -> Page[tuple[str, Conversation | None]]:
    """Return the page of ids after a key, each with the store's conversation if nothing is pending of it; no I/O."""

    def follows(key: ListingKey, other: ListingKey) -> bool:
        return key > other if oldest_first else key < other

    listed: dict[ListingKey, Conversation | None] = {
        key: None for key in pending.values() if after is None or follows(key, after)
    }
    stored = () if page is None else page.items
    keys = [
        ListingKey(updated_at=to_microseconds(item.updated_at), conversation_id=item.conversation_id) for item in stored
    ]
    listed |= {key: item for key, item in zip(keys, stored, strict=True) if key.conversation_id not in pending}
    order = sorted(listed, reverse=not oldest_first)
    more_stored = page is not None and page.next is not None
    if more_stored:
        # Conversations that the store has not returned yet may come before those behind its last one.
        order = [key for key in order if not follows(key, keys[-1])]
    cursor = None
    if len(order) > limit:
        order = order[:limit]
        cursor = order[-1].cursor
    elif more_stored:
        cursor = keys[-1].cursor
    return Page(tuple((key.conversation_id, listed[key]) for key in order), next=cursor)


def _keys(rows: Iterable[tuple[Any, ...]]) -> dict[str, ListingKey]:
    return {row[0]: ListingKey(updated_at=row[1], conversation_id=row[0]) for row in rows}
