"""Check and encode changes of records, before the outbox file is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from letopis.outbox.event_log.append_encoding import Prepared, PreparedChange
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import Limits, encode_value
from letopis.store.model.events import now_microseconds
from letopis.store.model.identifiers import uuid7
from letopis.store.model.records import (
    ABSENT,
    ANY,
    MAX_VALUE_BYTES,
    RECORD_DELETED,
    RECORD_PUT,
    RECORDS_CLEARED,
    Condition,
    Expected,
    Media,
    Scope,
    check_tags,
    encode_key,
    encode_namespace,
)
from letopis.store.rules.record_plan import RecordChange, change_event

if TYPE_CHECKING:
    from letopis.store.read.records import RecordsView

_VALUE_LIMITS: Final = Limits(max_depth=200)


def together(
    scope: Scope, changes: Sequence[PreparedChange], *, view: RecordsView | None = None, trusting: bool = False
) -> Prepared:
    """Return changes of a scope as one append."""
    events = tuple(item.event for item in changes)
    return Prepared(scope.name, events, (), changes=tuple(changes), view=view, trusting=trusting)


def prepare_put(
    scope: Scope,
    namespace: object,
    key: object,
    value: Any,
    *,
    expected: object = ANY,
    keep: bool = False,
    tags: object = None,
) -> PreparedChange:
    """Return the put of a value; ``keep`` is ``on_exists="keep"`` of ``Records.put``."""
    prefix, name = encode_namespace(namespace), encode_key(key)
    condition, checked_tags = check_expected(expected), check_tags(tags)
    if keep and condition is not ABSENT:
        raise InvalidInput("on_exists", "needs expected=ABSENT")
    media, body = encode_body(value)
    data: dict[str, Any] = {"media": media.value, "size": len(body), "sha256": sha256(body).hexdigest()}
    if checked_tags:
        data["tags"] = checked_tags
    content: dict[str, Any] = {"media": media, "size": len(body), "tags": checked_tags, "body": body}
    change = _change(RECORD_PUT, prefix, name, expected=condition, keep=keep, **content)
    return _prepared(scope.lane(prefix), change, data)


def prepare_delete(
    scope: Scope, namespace: object, key: object, *, expected: object = ANY, keep: bool = False
) -> PreparedChange:
    """Return the deletion of a record; with ``keep`` one that is not as expected stays, and that is no error."""
    prefix, name = encode_namespace(namespace), encode_key(key)
    condition = check_expected(expected)
    if condition is ABSENT:
        raise InvalidInput("expected", "cannot be ABSENT: there would be nothing to delete")
    return _prepared(scope.lane(prefix), _change(RECORD_DELETED, prefix, name, expected=condition, keep=keep), {})


def prepare_clear(scope: Scope, prefix: object = (), *, erase: bool = False) -> list[PreparedChange]:
    """Return what removes all records under a prefix, or erases all traces of them: one change a lane of the scope."""
    encoded = encode_namespace(prefix, "prefix")
    return [
        _prepared(lane, _change(RECORDS_CLEARED, encoded, erases=erase), {"erase": True} if erase else {})
        for lane in scope.lanes
    ]


def encode_body(value: Any) -> tuple[Media, bytes]:
    """Return the stored form of a value: bytes unchanged, anything else as JSON with its keys in order."""
    if isinstance(value, bytes | bytearray | memoryview):
        media, body = Media.BYTES, bytes(value)
    else:
        media, body = Media.JSON, encode_value(value, "value", _VALUE_LIMITS)
    if len(body) > MAX_VALUE_BYTES:
        raise InvalidInput("value", f"is {len(body)} bytes, the limit is {MAX_VALUE_BYTES}: keep a reference to a file")
    return media, body


def decode_body(media: Media, body: bytes) -> Any:
    """Return a fresh copy of the value that was put."""
    return body if media is Media.BYTES else orjson.loads(body)


def check_expected(value: object) -> Expected:
    """Return the condition of a change, or raise InvalidInput."""
    if isinstance(value, Condition | UUID):
        return value
    raise InvalidInput("expected", f"must be ANY, ABSENT or the revision of a record, not {type(value).__name__}")


def _change(name: str, prefix: bytes, key: bytes = b"", **more: Any) -> RecordChange:
    return RecordChange(
        sequence=0, event_id=uuid7(), type=name, prefix=prefix, key=key, occurred_at=now_microseconds(), **more
    )


def _prepared(lane: str, change: RecordChange, more: Mapping[str, Any]) -> PreparedChange:
    data: dict[str, Any] = {"namespace": change.prefix.decode()}
    if change.key:
        data["key"] = change.key.decode()
    data |= more
    if change.expected is not ANY:
        expected = change.expected
        data["expected"] = expected.value if isinstance(expected, Condition) else str(expected)
    if change.keep:
        data["keep"] = True
    event = change_event(
        lane,
        change.type,
        event_id=change.event_id,
        occurred_at=change.occurred_at,
        data=orjson.dumps(data),
        body=change.body,
    )
    return PreparedChange(event, change)
