"""Parse and render JSON Lines with one record per line; pure, so import, dry run and export share it."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from letopis.store.errors import InvalidInput
from letopis.store.model.records import (
    MAX_VALUE_BYTES,
    Media,
    Namespace,
    Record,
    Scope,
    Tag,
    check_tags,
    encode_key,
    encode_namespace,
)
from letopis.store.transfer.timestamps import parse_timestamp, render_timestamp

MAX_RECORD_LINE_BYTES: Final = MAX_VALUE_BYTES // 3 * 4 + 1_048_576
"""The longest accepted line of a record: the largest value in base64, and what names it."""

_REQUIRED: Final = ("record", "namespace", "key")
_VALUES: Final = ("value", "bytes")
_OPTIONAL: Final = ("tags", "put_at")
_KEYS: Final = frozenset((*_REQUIRED, *_VALUES, *_OPTIONAL))
_SCOPES: Final = {"conversation": Scope.conversation, "owner": Scope.owner, "space": Scope.space}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordLine:
    """One accepted line with a record."""

    number: int
    size: int = 0
    scope: Scope
    namespace: Namespace
    key: str
    value: Any
    tags: Mapping[str, Tag]
    put_at: datetime | None = None


def parse_record(fields: Mapping[str, Any], *, number: int, size: int) -> RecordLine:
    """Return the record of a line's JSON object."""
    for key in fields:
        if key not in _KEYS:
            known = ", ".join((*_REQUIRED, *_VALUES, *_OPTIONAL))
            name = key if key.isprintable() else ascii(key)
            raise InvalidInput(name, f"is not a key of a line with a record: it may have {known}")
    for key in _REQUIRED:
        if fields.get(key) is None:
            raise InvalidInput(key, "is missing")
    if ("value" in fields) is (fields.get("bytes") is not None):
        raise InvalidInput("value", "or bytes is needed, one of them")
    namespace, put_at = fields["namespace"], fields.get("put_at")
    encode_namespace(namespace)
    encode_key(fields["key"])
    return RecordLine(
        number=number,
        size=size,
        scope=_scope(fields["record"]),
        namespace=tuple(namespace),
        key=fields["key"],
        value=fields["value"] if "value" in fields else _decoded(fields["bytes"]),
        tags=check_tags(fields.get("tags")),
        put_at=None if put_at is None else parse_timestamp(put_at, "put_at"),
    )


def render_record(record: Record) -> bytes:
    """Render one record in normal form, with its line feed; it was read with its value."""
    kind, name = record.scope.named
    fields: dict[str, Any] = {"record": {kind: name}, "namespace": record.namespace, "key": record.key}
    if record.media is Media.BYTES:
        fields["bytes"] = b64encode(record.value).decode()
    else:
        fields["value"] = record.value
    if record.tags:
        fields["tags"] = dict(record.tags)
    fields["put_at"] = render_timestamp(record.updated_at)
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _scope(given: object) -> Scope:
    if not isinstance(given, Mapping) or len(given) != 1 or not given.keys() <= _SCOPES.keys():
        raise InvalidInput("record", f"must be an object with one of {', '.join(_SCOPES)}")
    [(kind, name)] = given.items()
    return _SCOPES[kind](name)


def _decoded(text: object) -> bytes:
    if not isinstance(text, str):
        raise InvalidInput("bytes", f"must be a string in base64, not {type(text).__name__}")
    try:
        return b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise InvalidInput("bytes", "is not base64") from None
