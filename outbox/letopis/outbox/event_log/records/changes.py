"""Check and encode changes of records, before the outbox file is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import orjson

from letopis.store.errors import InvalidInput
from letopis.store.model.codec import EncodedEvent, Limits, encode_value
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
    RecordKey,
    Scope,
    Tag,
    check_tags,
    encode_key,
    encode_namespace,
)
from letopis.store.rules.record_plan import change_event

_VALUE_LIMITS: Final = Limits(max_depth=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedChange:
    """A change of a record that is checked and encoded; nothing in it depends on the outbox file.

    :ivar prefix: the encoded namespace, or the prefix that a clear removes.
    :ivar key: empty for a clear.
    :ivar keep: a change that finds another record than it expects is not written, and is no conflict.
    """

    scope: Scope
    event: EncodedEvent
    prefix: bytes
    key: bytes = b""
    expected: Expected = ANY
    keep: bool = False
    erases: bool = False
    media: Media = Media.JSON
    tags: Mapping[str, Tag] | None = None

    @property
    def place(self) -> RecordKey:
        """The namespace and key."""
        return self.prefix, self.key


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
    """Return the put of a value.

    :param keep: with ``ABSENT``: a record that is there stays, and that is no error.
    :raises InvalidInput: one of the stores would refuse or change something in it; nothing was written.
    """
    prefix, name = encode_namespace(namespace), encode_key(key)
    condition, found = check_expected(expected), check_tags(tags)
    if keep and condition is not ABSENT:
        raise InvalidInput("on_exists", "needs expected=ABSENT")
    media, body = encode_body(value)
    data: dict[str, Any] = {
        "namespace": prefix.decode(),
        "key": name.decode(),
        "media": media.value,
        "size": len(body),
        "sha256": sha256(body).hexdigest(),
    }
    if found:
        data["tags"] = found
    if condition is not ANY:
        data["expected"] = _written(condition)
    if keep:
        data["keep"] = True
    event = _event(scope.lane(prefix), RECORD_PUT, data, body)
    return PreparedChange(
        scope=scope,
        event=event,
        prefix=prefix,
        key=name,
        expected=condition,
        keep=keep,
        media=media,
        tags=found or None,
    )


def prepare_delete(
    scope: Scope, namespace: object, key: object, *, expected: object = ANY, keep: bool = False
) -> PreparedChange:
    """Return the deletion of a record.

    :param keep: a record that is not as expected stays, and that is no error.
    :raises InvalidInput: the namespace, the key or the condition cannot be one.
    """
    prefix, name = encode_namespace(namespace), encode_key(key)
    condition = check_expected(expected)
    if condition is ABSENT:
        raise InvalidInput("expected", "cannot be ABSENT: there would be nothing to delete")
    data: dict[str, Any] = {"namespace": prefix.decode(), "key": name.decode()}
    if condition is not ANY:
        data["expected"] = _written(condition)
    if keep:
        data["keep"] = True
    event = _event(scope.lane(prefix), RECORD_DELETED, data)
    return PreparedChange(scope=scope, event=event, prefix=prefix, key=name, expected=condition, keep=keep)


def prepare_clear(scope: Scope, prefix: object = (), *, erase: bool = False) -> list[PreparedChange]:
    """Return what removes all records under a prefix: one change a lane of the scope.

    :param erase: also what the lanes' events and the ledger tell of them.
    :raises InvalidInput: the prefix cannot be one.
    """
    encoded = encode_namespace(prefix, "prefix")
    data: dict[str, Any] = {"namespace": encoded.decode()}
    if erase:
        data["erase"] = True
    return [
        PreparedChange(scope=scope, event=_event(lane, RECORDS_CLEARED, data), prefix=encoded, erases=erase)
        for lane in scope.lanes
    ]


def encode_body(value: Any) -> tuple[Media, bytes]:
    """Return the stored form of a value: bytes unchanged, anything else as JSON with its keys in order.

    :raises InvalidInput: JSON cannot hold it, or it is too large.
    """
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
    """Return the condition of a change.

    :raises InvalidInput: it is none.
    """
    if isinstance(value, Condition | UUID):
        return value
    raise InvalidInput("expected", f"must be ANY, ABSENT or the revision of a record, not {type(value).__name__}")


def _written(expected: Expected) -> str:
    return expected.value if isinstance(expected, Condition) else str(expected)


def _event(lane: str, name: str, data: Mapping[str, Any], body: bytes | None = None) -> EncodedEvent:
    return change_event(
        lane, name, event_id=uuid7(), occurred_at=now_microseconds(), data=orjson.dumps(data), body=body
    )
