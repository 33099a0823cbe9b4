"""Read the operations on the files of a folder from what strace wrote of a process, in the order of their ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

CALLS: Final = (
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,ftruncate,truncate,"
    "fallocate,unlink,unlinkat,rename,renameat,renameat2,link,linkat,copy_file_range,sendfile"
)
"""All that changes a file or its name; what is not understood on a file that matters is an error, not skipped."""

_LINE: Final = re.compile(r"(\d+) +(.*)")
_RESUMED: Final = re.compile(r"<\.\.\. \w+ resumed>")
_CALL: Final = re.compile(r"(\w+)\((.*)\) += (-?\d+)(.*)", re.DOTALL)
_DESCRIPTOR: Final = re.compile(r"(\d+)<([^>]*)>(.*)", re.DOTALL)
_STRING: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


class Kind(Enum):
    """What an operation does to the disk."""

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
    for line in lines:
        if (found := _LINE.match(line.rstrip("\n"))) is None:
            continue
        thread, text = int(found[1]), found[2]
        if text.endswith(" <unfinished ...>"):
            begun[thread] = text.removesuffix(" <unfinished ...>")
            if begun[thread].startswith(("fsync(", "fdatasync(")):
                yield from _sync_begins(begun[thread], folder, thread)
            continue
        whole = text
        if (resumed := _RESUMED.match(text)) is not None:
            if thread not in begun:
                continue  # begun before the trace was
            whole = begun.pop(thread) + text[resumed.end() :]
        elif text.startswith(("fsync(", "fdatasync(")):
            yield from _sync_begins(text, folder, thread)
        if (call := _CALL.match(whole)) is not None and int(call[3]) >= 0:
            yield from _operations(call, folder, acks, ignore, thread)


def _sync_begins(text: str, folder: Path, thread: int) -> Iterator[Operation]:
    name = _name(text.partition("(")[2], folder)
    if name is not None:
        yield Operation(kind=Kind.SYNC_BEGIN, name=name, thread=thread)


def _operations(
    call: re.Match[str], folder: Path, acks: Path, ignore: tuple[str, ...], thread: int
) -> Iterator[Operation]:
    verb, arguments, result = call[1], call[2], int(call[3])
    if verb in ("open", "openat", "creat"):
        path = _unescaped(_STRING.findall(arguments)[0]).decode()
        name = _inside(Path(path), folder)
        if name and not name.endswith(ignore) and ("O_CREAT" in arguments or verb == "creat"):
            yield Operation(kind=Kind.CREATE, name=name)
            if "O_TRUNC" in arguments:
                yield Operation(kind=Kind.TRUNCATE, name=name)
        return
    if verb == "unlink":
        name = _inside(Path(_unescaped(_STRING.findall(arguments)[0]).decode()), folder)
        if name and not name.endswith(ignore):
            yield Operation(kind=Kind.UNLINK, name=name)
        return
    descriptor = _DESCRIPTOR.match(arguments)
    if descriptor is None:
        # By its path: link, rename, truncate ... none of which SQLite needs here.
        if any(
            (name := _inside(Path(_unescaped(one).decode()), folder)) and not name.endswith(ignore)
            for one in _STRING.findall(arguments)
        ):
            raise NotUnderstood(f"{verb}({arguments[:200]})")
        return
    path = Path(_path(descriptor[2]))
    if verb == "write" and path == acks:
        yield Operation(kind=Kind.ACK, name="", data=_unescaped(_STRING.findall(descriptor[3])[0])[:result])
        return
    name = _inside(path, folder)
    if name is None or name.endswith(ignore):
        return
    if verb == "pwrite64":
        data = _unescaped(_STRING.findall(descriptor[3])[0])
        if len(data) < result:
            raise NotUnderstood(f"the trace cut {result} bytes short")
        yield Operation(kind=Kind.WRITE, name=name, offset=int(descriptor[3].rpartition(", ")[2]), data=data[:result])
    elif verb == "ftruncate":
        yield Operation(kind=Kind.TRUNCATE, name=name, offset=int(descriptor[3].rpartition(", ")[2]))
    elif verb in ("fsync", "fdatasync"):
        yield Operation(kind=Kind.SYNC, name=name, thread=thread)
    else:
        raise NotUnderstood(f"{verb} on {name}")


def _name(arguments: str, folder: Path) -> str | None:
    descriptor = _DESCRIPTOR.match(arguments)
    return None if descriptor is None else _inside(Path(_path(descriptor[2])), folder)


def _inside(path: Path, folder: Path) -> str | None:
    if path == folder:
        return ""
    return path.name if path.parent == folder else None


def _path(escaped: str) -> str:
    return _unescaped(escaped.removesuffix("(deleted)")).decode(errors="replace")


def _unescaped(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
