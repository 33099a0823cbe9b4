"""Read what a process did to the files of a folder from a trace, and model what a power cut may leave of them."""

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Final

CALLS: Final = (
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,ftruncate,truncate,"
    "fallocate,unlink,unlinkat,rename,renameat,renameat2,link,linkat,copy_file_range,sendfile"
)
"""All that changes a file or its name; what is not understood on a file that matters is an error, not skipped."""

_LINE: Final = re.compile(r"(\d+) +(.*)")
_UNFINISHED: Final = " <unfinished ...>"
_RESUMED: Final = re.compile(r"<\.\.\. \w+ resumed>")
_SYNC: Final = re.compile(r"f(?:data)?sync\(\d+<([^>]*)>")
_CALL: Final = re.compile(r"(\w+)\((.*)\) += (-?\d+)(.*)", re.DOTALL)
_DESCRIPTOR: Final = re.compile(r"\d+<([^>]*)>")
_STRING: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


class Kind(Enum):
    CREATE = "create"
    WRITE = "write"
    TRUNCATE = "truncate"
    SYNC_BEGIN = "sync begins"
    SYNC = "sync"
    UNLINK = "unlink"
    ACK = "ack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    kind: Kind
    name: str
    offset: int = 0
    data: bytes = b""
    thread: int = 0


class NotUnderstood(Exception):
    """The trace has a call that changes a file and is not accounted for."""


def read_trace(lines: Iterable[str], folder: Path, *, acks: Path, ignore: tuple[str, ...]) -> Iterator[Operation]:
    """Yield the operations on the files of ``folder``, and each writing to the file ``acks``."""
    begun: dict[int, str] = {}

    def name_of(escaped: str) -> str | None:
        path = _path(escaped)
        if path == folder:
            return ""
        return path.name if path.parent == folder and not path.name.endswith(ignore) else None

    for line in lines:
        if (found := _LINE.match(line.rstrip("\n"))) is None:
            continue
        thread, text = int(found[1]), found[2]
        if (sync := _SYNC.match(text)) is not None and (name := name_of(sync[1])) is not None:
            yield Operation(kind=Kind.SYNC_BEGIN, name=name, thread=thread)
        if text.endswith(_UNFINISHED):
            begun[thread] = text.removesuffix(_UNFINISHED)
            continue
        if (resumed := _RESUMED.match(text)) is not None:
            if thread not in begun:
                continue  # begun before the trace was
            text = begun.pop(thread) + text[resumed.end() :]
        if (call := _CALL.match(text)) is not None and int(call[3]) >= 0:
            yield from _operations(call, name_of, acks, thread)


def _operations(
    call: re.Match[str], name_of: Callable[[str], str | None], acks: Path, thread: int
) -> Iterator[Operation]:
    verb, arguments, result = call[1], call[2], int(call[3])
    strings, descriptor = _STRING.findall(arguments), _DESCRIPTOR.match(arguments)
    if verb in ("open", "openat", "creat", "unlink"):
        name = name_of(strings[0])
        if name and verb == "unlink":
            yield Operation(kind=Kind.UNLINK, name=name)
        elif name and ("O_CREAT" in arguments or verb == "creat"):
            yield Operation(kind=Kind.CREATE, name=name)
            if "O_TRUNC" in arguments:
                yield Operation(kind=Kind.TRUNCATE, name=name)
        return
    if descriptor is not None and verb == "write" and _path(descriptor[1]) == acks:
        yield Operation(kind=Kind.ACK, name="", data=_unescaped(strings[0])[:result])
        return
    # By its path: link, rename, truncate ... none of which SQLite needs here.
    names = [name_of(one) for one in ([descriptor[1]] if descriptor else strings)]
    name = next((one for one in names if one is not None), None)
    if name is None:
        return
    match verb if descriptor else "":
        case "pwrite64":
            data = _unescaped(strings[0])
            if len(data) < result:
                raise NotUnderstood(f"the trace cut {result} bytes short")
            offset = int(arguments.rpartition(", ")[2])
            yield Operation(kind=Kind.WRITE, name=name, offset=offset, data=data[:result])
        case "ftruncate":
            yield Operation(kind=Kind.TRUNCATE, name=name, offset=int(arguments.rpartition(", ")[2]))
        case "fsync" | "fdatasync":
            yield Operation(kind=Kind.SYNC, name=name, thread=thread)
        case _:
            raise NotUnderstood(f"{verb}({arguments[:200]})")


def _path(escaped: str) -> Path:
    return Path(_unescaped(escaped.removesuffix("(deleted)")).decode(errors="replace"))


def _unescaped(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


# --- the platter ----------------------------------------------------------------------------------------------------

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
        for begin, piece in [(offset, None)] if data is None else _sectors(offset, data):
            if chance.random() < share:
                _change(content, begin, piece)
    return content


def _sectors(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Cut a write where the sectors of the disk end."""
    end = offset + len(data)
    edges = (offset, *range(offset - offset % SECTOR + SECTOR, end, SECTOR), end)
    return ((begin, data[begin - offset : until - offset]) for begin, until in pairwise(edges))


def _change(content: bytearray, offset: int, data: bytes | None) -> None:
    """Write, or truncate to ``offset``."""
    content.extend(bytes(max(0, offset - len(content))))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data
