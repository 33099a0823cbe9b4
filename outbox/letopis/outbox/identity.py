"""Identity: which outbox a file is, and whether it is still the same file or a copy of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import sqlalchemy as sa

from letopis.store.plan import Origin

_READ: Final = "SELECT origin_id, epoch, device, inode FROM letopis_outbox_origin"
_MINT: Final = (
    "INSERT INTO letopis_outbox_origin (only, origin_id, epoch, device, inode, created_at) VALUES (1, ?, 1, ?, ?, ?)"
)
_RAISE: Final = "UPDATE letopis_outbox_origin SET epoch = ?, device = ?, inode = ?"
_RENEW: Final = "UPDATE letopis_outbox_origin SET origin_id = ?, epoch = 1, device = ?, inode = ?, created_at = ?"


def place_of(path: Path) -> tuple[int, int]:
    """Return device and inode of the file: what tells a file from its copy.

    Looks, and opens nothing: closing any descriptor of a live SQLite file drops the process's locks on it.

    :raises OSError: there is no such file, or it may not be looked at.
    """
    found = os.stat(path)  # noqa: PTH116 - on the writer's path; Path.stat() costs twice as much
    return found.st_dev, found.st_ino


def settle(connection: sa.Connection, path: Path, *, now_us: int) -> Origin:
    """Return the file's identity, minted at its first use; in a transaction that holds the write lock.

    A file that lies at another place than it last did (a copy, a restored backup) goes on under the next epoch. The
    history store takes the highest epoch only, so of a file and its copy one is refused instead of both mixing.
    """
    device, inode = (str(one) for one in place_of(path))
    row = connection.exec_driver_sql(_READ).one_or_none()
    if row is None:
        made = uuid4()
        connection.exec_driver_sql(_MINT, (made.bytes, device, inode, now_us))
        return Origin(origin_id=made, epoch=1, name=_name(path))
    origin_id, epoch = UUID(bytes=row[0]), row[1]
    if (row[2], row[3]) != (device, inode):
        epoch += 1
        connection.exec_driver_sql(_RAISE, (epoch, device, inode))
    return Origin(origin_id=origin_id, epoch=epoch, name=_name(path))


def renew(connection: sa.Connection, path: Path, *, now_us: int) -> Origin:
    """Give the file a new identity, for a copy that is to live on beside its original.

    In a transaction that holds the write lock, with no other process on the file. What the lanes remember of the old
    identity is not touched here.
    """
    device, inode = (str(one) for one in place_of(path))
    made = uuid4()
    connection.exec_driver_sql(_RENEW, (made.bytes, device, inode, now_us))
    return Origin(origin_id=made, epoch=1, name=_name(path))


def _name(path: Path) -> str:
    """Return the file's base name, which may be bytes that are no text: no history store takes those."""
    return path.name.encode("utf-8", "replace").decode()
