"""Name the scope of records, list scopes, and find records in all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from letopis.outbox.history.records import read_cursor
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import Page
from letopis.store.model.cursor import CursorCodec
from letopis.store.model.identifiers import owner_id
from letopis.store.model.records import Record, RecordKey, Scope, Tag, check_tags, encode_key
from letopis.store.read.paging import check_count

if TYPE_CHECKING:
    from letopis.outbox.pending_reads.record_reads import RecordReads

_FOUND: Final = CursorCodec("found records", "found records")
_SCOPES: Final = CursorCodec("record scopes", "scopes of records")


async def find_records(
    reads: RecordReads,
    tags: Mapping[str, Tag],
    *,
    limit: int,
    after: str | None,
    reverse: bool = False,
    end: str | None = None,
) -> Page[Record]:
    """Find records as ``History.find_records`` does."""
    wanted = check_tags(tags)
    if not wanted:
        raise InvalidInput("tags", "must name at least one tag")
    check_count(limit, "limit")
    place = None if after is None else _FOUND.decode(after, _read_found)
    bound = None if end is None else encode_key(end, "end")
    items, following = await reads.find(wanted, limit=limit, after=place, reverse=bool(reverse), end=bound)
    cursor = None
    if following is not None:
        scope, (namespace, key) = following
        cursor = _FOUND.encode(scope, namespace.decode(), key.decode())
    return Page(items=tuple(items), next=cursor)


async def list_scopes(reads: RecordReads, *, limit: int, after: str | None) -> Page[Scope]:
    """List scopes as ``History.record_scopes`` does."""
    check_count(limit, "limit")
    items, following = await reads.scopes(limit=limit, after="" if after is None else _SCOPES.decode(after, _read_name))
    return Page(items=tuple(items), next=None if following is None else _SCOPES.encode(following))


def scope_from(scope: Scope | None, *, conversation: str | None, owner: str | int | None, space: str | None) -> Scope:
    """Return the one scope that is named.

    :raises InvalidInput: none or several are named, or the name cannot be one.
    """
    if scope is not None and not isinstance(scope, Scope):
        raise InvalidInput("scope", f"must be the scope of a record, not {type(scope).__name__}")
    if sum(value is not None for value in (scope, conversation, owner, space)) != 1:
        raise InvalidInput("scope", "name one of conversation=, owner= and space=, or give the scope of a record")
    if scope is not None:
        return scope.check()
    if conversation is not None:
        return Scope.conversation(conversation)
    return Scope.space(space) if space is not None else Scope.owner(owner_id(owner) or "")


def _read_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError
    return name


def _read_found(scope: str, namespace: str, key: str) -> tuple[str, RecordKey]:
    if not isinstance(scope, str):
        raise TypeError
    return scope, read_cursor(namespace, key)
