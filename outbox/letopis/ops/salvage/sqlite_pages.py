"""Read the rows of a damaged SQLite file directly from its pages."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from letopis.store.ops.wal_format import WalScan, scan_wal

Value = int | float | str | bytes | None

_TABLE_LEAF: Final = 13
_INDEX_LEAF: Final = 10
_INDEX_INNER: Final = 2
_MAX_ROW_BYTES: Final = 66 * 1024 * 1024  # a larger row length is damage
_INTEGERS: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of an unknown table; its shape tells which."""

    rowid: int
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """An entry of some index: the indexed values, then the row's id."""

    values: tuple[Value, ...]
    page: int


class Pages:
    """The pages of a file, overlaid with those of its WAL."""

    def __init__(self, main: bytes, wal: bytes = b"") -> None:
        self._main = main
        self._wal_bytes = wal
        self.wal: WalScan = scan_wal(wal)
        self.size = self.wal.page_size or _page_size(main)
        # Those after a damaged frame too, which SQLite drops: a row with a valid digest needs no checksum of its frame.
        frames = (*self.wal.read, *self.wal.dropped)
        committed = max((index for index, frame in enumerate(frames, 1) if frame.size), default=0)
        self._over: Mapping[int, int] = {
            frame.page: frame.at for frame in frames[:committed] if 0 < frame.page < 1 << 31
        }
        self.count = max(-(-len(main) // self.size), max(self._over, default=0))
        reserved = main[20] if len(main) > 20 else 0
        self.usable = self.size - (reserved if reserved < 33 else 0)

    @property
    def gone(self) -> int:
        """The number of pages that are missing, or empty although they are in use."""
        head = self.page(1)
        if len(head) < 100 or not head.startswith(b"SQLite format 3"):
            return 1
        said, _, free = (int(field) for field in struct.unpack_from(">3I", head, 28))
        if not 0 < said < 1 << 31 or said > 1000 * (self.count + 1):
            return 1  # the number is unknown
        there = min(said, self.count)
        whole = sum(len(self.page(number)) == self.size for number in range(1, there + 1))
        empty = sum(not self.page(number).strip(b"\0") for number in range(1, there + 1))
        return said - whole + max(0, min(empty, whole) - free)

    def page(self, number: int) -> bytes:
        """Return a page, numbered from 1; shorter or empty where the file ends."""
        at = self._over.get(number)
        if at is not None:
            return self._wal_bytes[at : at + self.size]
        return self._main[(number - 1) * self.size : number * self.size]

    def rows(self) -> Iterator[TableRow | IndexEntry]:
        """Yield every row and every index entry that can be read from its page."""
        for number in range(1, self.count + 1):
            if number not in self._over and (number - 1) * self.size >= len(self._main):
                continue
            page = self.page(number)
            start = 100 if number == 1 else 0
            if len(page) == self.size and page[start] in (_TABLE_LEAF, _INDEX_LEAF, _INDEX_INNER):
                yield from self._cells(page, start, number)

    def _cells(self, page: bytes, start: int, number: int) -> Iterator[TableRow | IndexEntry]:
        kind = page[start]
        table = kind == _TABLE_LEAF
        (count,) = struct.unpack_from(">H", page, start + 3)
        pointers = start + (12 if kind == _INDEX_INNER else 8)
        for pointer in range(pointers, min(pointers + 2 * count, len(page) - 1), 2):
            (at,) = struct.unpack_from(">H", page, pointer)
            try:
                if kind == _INDEX_INNER:
                    at += 4
                length, at = _varint(page, at)
                rowid, at = _varint(page, at) if table else (0, at)
                values = _record(self._payload(page, at, length, table=table))
            except (IndexError, ValueError, struct.error, UnicodeDecodeError):
                continue  # damaged: the caller misses the row
            yield TableRow(_signed(rowid), values) if table else IndexEntry(values, number)

    def _payload(self, page: bytes, at: int, length: int, *, table: bool) -> bytes:
        if length > _MAX_ROW_BYTES:
            raise ValueError("the length of a row is damaged")
        usable = self.usable
        most = usable - 35 if table else (usable - 12) * 64 // 255 - 23
        if length <= most:
            return _whole(page[at : at + length], length)
        least = (usable - 12) * 32 // 255 - 23
        here = least + (length - least) % (usable - 4)
        here = here if here <= most else least
        parts = [_whole(page[at : at + here], here)]
        left = length - here
        (number,) = struct.unpack_from(">I", page, at + here)
        while left > 0:
            more = self.page(number)
            size = min(left, usable - 4)
            parts.append(_whole(more[4 : 4 + size], size))
            left -= size
            (number,) = struct.unpack_from(">I", more)
        return b"".join(parts)


def _page_size(main: bytes) -> int:
    """Return the page size of the header; 4096, SQLite's default, if it is invalid."""
    said = struct.unpack_from(">H", main, 16)[0] if len(main) >= 18 else 0
    size = 65536 if said == 1 else said
    return size if 512 <= size <= 65536 and not size & (size - 1) else 4096


def _whole(part: bytes, size: int) -> bytes:
    if len(part) != size:
        raise ValueError("the page ends before the row does")
    return part


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(at, at + 8):
        value = value << 7 | data[index] & 0x7F
        if data[index] < 0x80:
            return value, index + 1
    return value << 8 | data[at + 8], at + 9


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _record(payload: bytes) -> tuple[Value, ...]:
    head, at = _varint(payload, 0)
    body = head
    values: list[Value] = []
    while at < head:
        kind, at = _varint(payload, at)
        if kind in _INTEGERS:
            size = _INTEGERS[kind]
            values.append(int.from_bytes(_whole(payload[body : body + size], size), "big", signed=True))
        elif kind == 7:
            size = 8
            values.append(struct.unpack_from(">d", payload, body)[0])
        elif kind >= 12:
            size = (kind - 12) // 2
            part = _whole(payload[body : body + size], size)
            values.append(part.decode() if kind % 2 else part)
        elif kind in _CONSTANTS:
            size = 0
            values.append(_CONSTANTS[kind])
        else:
            raise ValueError("SQLite has no such type of value")
        body += size
    if body != len(payload) or at != head:
        raise ValueError("the row does not have its stated length")
    return tuple(values)


_CONSTANTS: Final[Mapping[int, Value]] = {0: None, 8: 0, 9: 1}
