"""Parse and render JSON Lines with one message per line, shared by import, dry run and export."""

# Keys that neither a message nor a record has are refused, since they would be dropped silently.

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, cast
from uuid import UUID, uuid5

import orjson

from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import Delivery, RecordedMessage
from letopis.store.model.events import Event, utc_now
from letopis.store.model.identifiers import check_identifier
from letopis.store.model.large_content import MAX_CONTENT_BYTES
from letopis.store.model.messages import EMPTY, Message, Role
from letopis.store.model.parts import content_from_json
from letopis.store.transfer.record_lines import MAX_RECORD_LINE_BYTES, RecordLine, parse_record
from letopis.store.transfer.timestamps import parse_timestamp, render_timestamp

MAX_LINE_BYTES: Final = 2 * MAX_CONTENT_BYTES
"""The longest accepted line: a message with as much large content as it may have fits, even if JSON escapes it."""

IMPLIED_NAMESPACE: Final = UUID("5b0b9d0c-0d5e-5f0c-8f57-3f2b4b1c7a10")
"""Namespace of the ids of lines without one; part of the data format, never to change."""

_REQUIRED: Final = ("conversation_id", "role", "content")
_FIELDS: Final = ("name", "author", "tokens", "usage", "external_ids", "metadata", "status")
_OPTIONAL: Final = ("id", "owner", "occurred_at", *_FIELDS, "delivery")
_KEYS: Final = frozenset((*_REQUIRED, *_OPTIONAL))
_KNOWN: Final = f"it may have {', '.join((*_REQUIRED, *_OPTIONAL))}; put your own keys into metadata"
_BOM: Final = b"\xef\xbb\xbf"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
_BEGINS_RECORD: Final = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"record"\s*:')


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One accepted line."""

    number: int
    size: int = 0
    conversation_id: str
    message: Message
    owner: str | None = None
    occurred_at: datetime | None = None

    def event(self, *, now: Callable[[], datetime] = utc_now) -> Event:
        """Return the event that records the line, which occurs ``now`` if the line has no time."""
        return Event.of(self.message, conversation_id=self.conversation_id, occurred_at=self.occurred_at or now())


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """One refused line."""

    number: int
    reason: str
    size: int = 0


def read_lines(
    stream: BinaryIO, *, count: SeenKeys, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Line | RecordLine | Refused]:
    """Yield the lines of ``stream`` in order. Memory is bounded by the longest line."""
    # Lines end with LF or CRLF, the last one may end with the file. One that begins with ``record`` may be as long as
    # the largest value in base64; one that is too long is skipped without reading it into memory.
    number = 0
    while raw := stream.readline(max_line_bytes + 2):
        number += 1
        longest = max_line_bytes
        if not raw.endswith(b"\n") and len(raw) > longest and _BEGINS_RECORD.match(raw):
            longest = max(longest, MAX_RECORD_LINE_BYTES)
            raw += stream.readline(longest + 2 - len(raw))
        size = len(raw)
        if len(raw.rstrip(b"\r\n")) > longest:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(65_536)
                size += len(raw)
            yield Refused(number=number, reason=f"the line is longer than {longest} bytes", size=size)
            continue
        if number == 1:
            raw = raw.removeprefix(_BOM)
        if not raw or raw.isspace():
            continue
        try:
            yield parse_line(raw, number=number, count=count)
        except InvalidInput as error:
            yield Refused(number=number, reason=str(error), size=size)


def parse_line(raw: bytes, *, number: int, count: SeenKeys) -> Line | RecordLine:
    fields = _load(raw)
    if "record" in fields:
        return parse_record(fields, number=number, size=len(raw))
    for key in fields:
        if key not in _KEYS:
            raise InvalidInput(key if key.isprintable() else ascii(key), f"is not a key of a line: {_KNOWN}")
    for key in _REQUIRED:
        if fields.get(key) is None and not (key == "content" and key in fields):
            raise InvalidInput(key, "is missing")
    conversation_id = check_identifier(fields["conversation_id"], "conversation_id")
    if not isinstance(fields["role"], str):
        raise InvalidInput("role", f"must be a string, not {type(fields['role']).__name__}")
    given_id = fields.get("id")
    if given_id is not None:
        check_identifier(given_id, "id")
    _kind(fields, "delivery", Mapping)
    owner = fields.get("owner")
    occurred_at = fields.get("occurred_at")
    message = Message(
        role=cast(Role, fields["role"]),  # checked by the class
        content=None if fields["content"] is None else content_from_json(fields["content"]),
        # A placeholder until the id is derived from the content.
        id=given_id if given_id is not None else "?",
        name=_kind(fields, "name", str),
        author=_kind(fields, "author", str),
        tokens=_tokens(fields),
        usage=_kind(fields, "usage", Mapping) or EMPTY,
        external_ids=_kind(fields, "external_ids", Mapping) or EMPTY,
        metadata=_kind(fields, "metadata", Mapping) or EMPTY,
        status=_kind(fields, "status", str) or "complete",
    )
    if given_id is None:
        content = implied_key(conversation_id, message)
        message = replace(message, id=implied_id(content, count.seen(content) + 1))
        count.add(content)
    return Line(
        number=number,
        size=len(raw),
        conversation_id=conversation_id,
        message=message,
        owner=None if owner is None else check_identifier(owner, "owner"),
        occurred_at=None if occurred_at is None else parse_timestamp(occurred_at, "occurred_at"),
    )


def render_line(message: RecordedMessage, *, owner: str | None, count: SeenKeys, with_delivery: bool = False) -> bytes:
    """Render one message in normal form, with its line feed; its delivery, which an import leaves out, if asked."""
    # Keys are in a fixed order and empty ones are left out, so that equal histories give equal bytes. The id is left
    # out if reading the lines again gives the same one.
    content = message.message
    fields: dict[str, Any] = {"conversation_id": message.conversation_id}
    if not _is_implied(message, count):
        fields["id"] = content.id
    data = content.to_data()
    fields["role"] = data["role"]
    fields["content"] = data["content"]
    if owner is not None:
        fields["owner"] = owner
    fields["occurred_at"] = render_timestamp(message.occurred_at)
    for name in _FIELDS:
        if name in data:
            fields[name] = data[name]
    if with_delivery and message.delivery is not Delivery.APPENDED:
        fields["delivery"] = {"state": message.delivery.value, **message.delivery_data}
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def implied_key(conversation_id: str, message: Message) -> bytes:
    """Return the digest that distinguishes a message without an id in its conversation, by its content only."""
    data = message.to_data()
    del data["message_id"]
    # Not orjson: the content is not checked yet, and may have lone surrogates and any integer.
    content = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return sha256(f"{conversation_id!a}\n{content}".encode()).digest()


def implied_id(key: bytes, occurrence: int) -> str:
    """Return the id of the *n*-th message with the same content in its conversation; part of the data format."""
    return str(uuid5(IMPLIED_NAMESPACE, f"{key.hex()}\n{occurrence}"))


def _is_implied(message: RecordedMessage, count: SeenKeys) -> bool:
    # The version digit of a UUIDv5 spares ids that bots create (UUIDv7) the work below.
    if len(message.id) != 36 or message.id[14] != "5":
        return False
    key = implied_key(message.conversation_id, message.message)
    if implied_id(key, count.seen(key) + 1) != message.id:
        return False
    count.add(key)
    return True


def _load(raw: bytes) -> dict[str, Any]:
    if raw.startswith(_UTF16):
        raise InvalidInput("line", "is UTF-16: save the file as UTF-8")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("line", f"is not UTF-8 at byte {error.start + 1}: save the file as UTF-8") from None
    try:
        # Not orjson: it silently accepts a key twice and rounds integers beyond 64 bits.
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_object)
    except RecursionError:
        raise InvalidInput("line", "is nested too deep") from None
    except json.JSONDecodeError as error:
        raise InvalidInput("line", f"is not JSON at character {error.pos + 1}: {error.msg}") from None
    except InvalidInput:
        raise
    except ValueError:  # an integer of thousands of digits
        raise InvalidInput("line", "has an integer beyond 64 bits: give it as a string") from None
    if not isinstance(value, dict):
        raise InvalidInput("line", f"must be a JSON object, not {type(value).__name__}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidInput(key if key.isprintable() else ascii(key), "is given twice")
            seen.add(key)
    return value


def _no_constant(name: str) -> Any:
    raise InvalidInput("line", f"has {name}: JSON has no NaN and no infinity")


def _kind(fields: Mapping[str, Any], key: str, kind: type) -> Any:
    value = fields.get(key)
    if value is not None and not isinstance(value, kind):
        expected = "a string" if kind is str else "an object"
        raise InvalidInput(key, f"must be {expected}, not {type(value).__name__}")
    return value


def _tokens(fields: Mapping[str, Any]) -> int | None:
    value = fields.get("tokens")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidInput("tokens", "must be a whole number, zero or more")
    return value


class SeenKeys:
    """A counter of any size: what does not fit into a cache of a few MB is in a temporary file."""

    # For one thread at a time. The file has no name and is removed with the object, however the process ends.
    __slots__ = ("_database",)

    def __init__(self) -> None:
        # The empty name is a private temporary database, in memory while it is small.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("CREATE TABLE seen (key BLOB PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("BEGIN")

    def seen(self, key: bytes) -> int:
        """Return how often ``key`` was added."""
        row = self._database.execute("SELECT times FROM seen WHERE key = ?", (key,)).fetchone()
        return 0 if row is None else int(row[0])

    def add(self, key: bytes) -> None:
        self._database.execute(
            "INSERT INTO seen VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET times = times + 1", (key,)
        )

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
