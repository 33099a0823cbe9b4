"""Model files in memory and on the platter, and what a power cut may leave of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from tests.proof.power.trace import Kind, Operation

SECTOR: Final = 512


class Model(Enum):
    """What becomes of that which was not yet flushed when the power goes."""

    DROPPED = "all that was not flushed is gone"
    KEPT = "all that was written is there"
    TORN = "some 512-byte sectors of what was not flushed are there, others not"


@dataclass(slots=True, eq=False)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    flushed: int = 0  # changes that are durable, and in the list no more
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: truncated to this size

    @property
    def changes(self) -> int:
        return self.flushed + len(self.pending)


class Disk:
    """One folder's files. What was flushed stays; all else, names of files too, may or may not be there afterwards."""

    def __init__(self) -> None:
        self._names: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}
        self._gone: dict[str, _File] = {}  # unlinked, and perhaps still written to
        self._syncing: dict[int, int] = {}

    def apply(self, operation: Operation) -> bool:
        """Do what was recorded; whether that changed anything."""
        kind, name = operation.kind, operation.name
        if kind is Kind.CREATE:
            if name in self._names:
                return False
            self._names[name] = _File()
        elif kind is Kind.WRITE:
            self._file(name).pending.append((operation.offset, operation.data))
        elif kind is Kind.TRUNCATE:
            self._file(name).pending.append((operation.offset, None))
        elif kind is Kind.UNLINK:
            self._gone[name] = self._names.pop(name)
        elif kind is Kind.SYNC_BEGIN:
            # What is written after it began need not be covered by it.
            self._syncing[operation.thread] = self._file(name).changes if name else 0
            return False
        elif kind is Kind.SYNC:
            self._sync(name, self._syncing.pop(operation.thread))
        return True

    def left(self, model: Model, chance: random.Random) -> dict[str, bytes]:
        """Return what is there, by name, if the power goes now."""
        if model is Model.DROPPED:
            return {name: bytes(file.durable) for name, file in self._durable_names.items()}
        if model is Model.KEPT:
            return {name: bytes(_all(file)) for name, file in self._names.items()}
        names: dict[str, _File] = {}
        for name in sorted(self._names.keys() | self._durable_names.keys()):
            file = chance.choice((self._names.get(name), self._durable_names.get(name)))
            if file is not None:
                names[name] = file
        return {name: bytes(_torn(file, chance)) for name, file in names.items()}

    def _file(self, name: str) -> _File:
        return self._names[name] if name in self._names else self._gone[name]

    def _sync(self, name: str, covered: int) -> None:
        if not name:
            self._durable_names = dict(self._names)
            return
        file = self._file(name)
        while file.flushed < covered:
            _change(file.durable, *file.pending.pop(0))
            file.flushed += 1


def _all(file: _File) -> bytearray:
    content = bytearray(file.durable)
    for change in file.pending:
        _change(content, *change)
    return content


def _torn(file: _File, chance: random.Random) -> bytearray:
    content = bytearray(file.durable)
    share = chance.choice((0.1, 0.5, 0.9))  # a disk that has hardly begun, and one that was nearly done
    for offset, data in file.pending:
        if data is None:
            if chance.random() < share:
                _change(content, offset, None)
            continue
        for begin, piece in _sectors(offset, data):
            if chance.random() < share:
                _change(content, begin, piece)
    return content


def _sectors(offset: int, data: bytes) -> list[tuple[int, bytes]]:
    """Cut a write where the sectors of the disk end."""
    pieces = []
    done = 0
    while done < len(data):
        size = SECTOR - (offset + done) % SECTOR
        pieces.append((offset + done, data[done : done + size]))
        done += size
    return pieces


def _change(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        if offset <= len(content):
            del content[offset:]
        else:
            content.extend(bytes(offset - len(content)))
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data
