"""Make the changes that a lane of records carries, without an outbox file."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any, Final

import orjson

from letopis.store.model.codec import EncodedEvent
from letopis.store.model.identifiers import uuid7
from letopis.store.model.records import RECORD_DELETED, RECORD_PUT, RECORDS_CLEARED, encode_namespace
from letopis.store.rules.record_plan import change_event

CP: Final = encode_namespace(("cp",))


def put(lane: str, key: str, body: bytes, *, namespace: bytes = CP, **more: Any) -> EncodedEvent:
    """Return the put of a value.

    :param more: ``tags``, or the condition: ``expected`` and ``keep``.
    """
    data = {
        "namespace": namespace.decode(),
        "key": key,
        "media": "bytes",
        "size": len(body),
        "sha256": sha256(body).hexdigest(),
        **more,
    }
    return change_event(lane, RECORD_PUT, event_id=uuid7(), occurred_at=7, data=orjson.dumps(data), body=body)


def delete(lane: str, key: str, **more: Any) -> EncodedEvent:
    """Return the deletion of a record."""
    data = orjson.dumps({"namespace": CP.decode(), "key": key, **more})
    return change_event(lane, RECORD_DELETED, event_id=uuid7(), occurred_at=7, data=data)


def clear(lane: str, namespace: bytes = b"", **more: Any) -> EncodedEvent:
    """Return what removes all records of a lane in a namespace and below it."""
    data = orjson.dumps({"namespace": namespace.decode(), **more})
    return change_event(lane, RECORDS_CLEARED, event_id=uuid7(), occurred_at=7, data=data)


def hollow(event: EncodedEvent) -> EncodedEvent:
    """Return a put as its outbox sends it once a later change has made its value needless."""
    return replace(event, body=None, redacted=True)
