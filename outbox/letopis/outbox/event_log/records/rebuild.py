"""Remake what the outbox file knows of records from the events of their lanes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from letopis.outbox.event_log.lanes import sequenced_event
from letopis.outbox.event_log.records.changes import PreparedChange
from letopis.outbox.event_log.records.log import note_change
from letopis.outbox.event_log.statements import query_all
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import decode
from letopis.store.model.records import RECORD_PUT, RECORD_TYPES, scope_of
from letopis.store.rules.record_plan import decode_change

_EVENTS: Final = (
    "SELECT position, lane, conversation_id, sequence, event_id, type, schema_version, data, metadata, digest,"
    " occurred_at, redacted FROM letopis_outbox_log WHERE type LIKE 'record.%' ORDER BY position"
)


def rebuild_records(cursor: Any, bodies: Mapping[str, bytes]) -> None:
    """Note all changes of records that the file holds, in their order; its tables of records are empty.

    A put whose value was not found is not noted: the history store will refuse it, and its lane waits for an operator.

    :param bodies: values that were found, by their SHA-256 in hexadecimal.
    """
    for row in query_all(cursor, _EVENTS):
        position, lane, name, *columns = row
        found = sequenced_event(name, columns)
        event = found.event
        if event.type == RECORD_PUT and not event.redacted:
            event = replace(event, body=bodies.get(str(decode(event.data).get("sha256"))))
        try:
            change = decode_change(replace(found, event=replace(event, redacted=event.body is None)))
        except InvalidInput:
            continue
        if change.type not in RECORD_TYPES:
            continue
        prepared = PreparedChange(
            scope=scope_of(name),
            event=event,
            prefix=change.prefix,
            key=change.key,
            expected=change.expected,
            keep=change.keep,
            media=change.media,
            tags=change.tags or None,
        )
        if event.type != RECORD_PUT or event.body is not None:
            note_change(cursor, prepared, lane, sequence=found.sequence, position=position)
