"""Check the outbox file's location, mode and disk, without opening it."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from letopis.ops.doctor.finding import Finding, fail, ok, skipped, warn
from letopis.outbox.file.wal_checkpoint import LARGE_WAL_BYTES, describe_readers
from letopis.store.database import open_files

LOW_DISK_BYTES: Final = 512 * 1024 * 1024
CRITICAL_DISK_BYTES: Final = 32 * 1024 * 1024

NETWORKED: Final = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "9p", "ceph", "glusterfs", "lustre", "gpfs", "ocfs2"),
        *("gfs2", "davfs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs", "fuse.gcsfuse", "fuse.davfs2"),
        *("virtiofs", "vboxsf", "drvfs", "prl_fs", "fuse.vmhgfs-fuse"),
    }
)
"""File systems whose locks or shared memory SQLite's WAL cannot rely on."""
MOUNTS: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


def check_location(outbox: Path) -> Iterator[Finding]:
    if not outbox.exists():
        said = f"there is no outbox at {str(outbox)!r}"
        yield fail("outbox_file", said, "name the bot's with --outbox or LETOPIS_OUTBOX, or run `letopis init`")
        return
    if not outbox.is_file():
        yield fail("outbox_file", f"{str(outbox)!r} is no regular file", "give the path of the outbox file")
        return
    yield _mode(outbox)
    yield _folder(outbox.absolute().parent)
    yield _file_system(outbox)
    yield _disk(outbox)
    yield _wal(outbox)


def check_open_files() -> Finding:
    """Return a finding about how many files a process of this user may open."""
    check, limit = "open_files", open_files.open_file_limit()
    if limit is None:
        return ok(check, "open files are not limited")
    if limit < open_files.MIN_OPEN_FILE_LIMIT:
        needed = open_files.MIN_OPEN_FILE_LIMIT
        said = f"only {limit} files may be open, and a relay or bot of one outbox may need {needed}"
        return warn(check, said, open_files.ADVICE)
    return ok(check, f"{limit} files may be open; a service may have its own limit")


def _mode(outbox: Path) -> Finding:
    check = "outbox_file"
    if os.name == "nt":
        return ok(check, f"{str(outbox)!r} exists; the folder's rights apply")
    open_ones = [
        (path, mode)
        for path in (outbox, _beside(outbox, "-wal"), _beside(outbox, "-shm"))
        if (mode := _mode_of(path)) is not None and mode & 0o077
    ]
    if open_ones:
        said = ", ".join(f"{path.name!r} has mode {mode:04o}" for path, mode in open_ones)
        names = " ".join(repr(path.name) for path, _ in open_ones)
        return warn(check, f"{said}: other users of this machine can read the messages", f"chmod 600 {names}")
    if not os.access(outbox, os.R_OK | os.W_OK):
        return fail(check, "this user cannot read and write the outbox", "run as the bot's user")
    return ok(check, f"{str(outbox)!r}, mode {_mode_of(outbox) or 0:04o}")


def _folder(folder: Path) -> Finding:
    check = "outbox_folder"
    if os.name == "nt":
        return skipped(check, "modes are not checked on this system")
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        said = f"every user can write in the folder {str(folder)!r}: the outbox can be deleted or replaced"
        return fail(check, said, f"chmod o-w {str(folder)!r}")
    if mode & stat.S_IWOTH:
        said = f"the outbox lies in {str(folder)!r}, a shared folder that systems clear"
        return warn(check, said, "move it to a folder of the bot's own")
    if not os.access(folder, os.W_OK):
        said = f"this user cannot write in the folder {str(folder)!r}, where SQLite keeps its -wal and -shm"
        return fail(check, said, "run as the bot's user, or give it the folder")
    return ok(check, f"{str(folder)!r}, mode {stat.S_IMODE(mode):04o}")


def _file_system(outbox: Path) -> Finding:
    check = "file_system"
    kind = file_system_of(outbox)
    if kind is None:
        return skipped(check, "the file system is not known on this system")
    if kind in NETWORKED:
        said = f"the outbox lies on {kind}, where SQLite's locks and shared memory are unreliable"
        return fail(check, said, "put the outbox on a local disk")
    if kind in ("tmpfs", "ramfs"):
        return warn(check, f"the outbox lies on {kind}: it is lost when the machine stops", "put it on a disk")
    return ok(check, kind)


def file_system_of(path: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the file system of ``path``; ``None`` if the system does not tell."""
    real = Path(os.path.realpath(path))
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    best: tuple[int, str] | None = None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or not kinds:
            continue
        # Spaces and the like are escaped in octal.
        point = _OCTAL.sub(lambda escape: chr(int(escape[1], 8)), fields[4])
        # The last of several mounts at one path covers the others.
        if (best is None or len(point) >= best[0]) and real.is_relative_to(point):
            best = (len(point), kinds[0])
    return None if best is None else best[1]


def _disk(outbox: Path) -> Finding:
    check = "disk"
    free = shutil.disk_usage(outbox.absolute().parent).free
    said = f"{_size(free)} free"
    if free < CRITICAL_DISK_BYTES:
        return fail(check, f"only {said}: appends are about to fail", "free space on the outbox's disk")
    if free < LOW_DISK_BYTES:
        return warn(check, f"only {said}", "free space on the outbox's disk: an outage of the store will need it")
    return ok(check, said)


def _wal(outbox: Path) -> Finding:
    check = "wal"
    try:
        size = _beside(outbox, "-wal").stat().st_size
    except FileNotFoundError:
        return ok(check, "no WAL: no process has the outbox open")
    if size > LARGE_WAL_BYTES:
        return warn(check, f"the WAL has grown to {_size(size)}", describe_readers(outbox))
    return ok(check, _size(size))


def _beside(outbox: Path, suffix: str) -> Path:
    return outbox.with_name(outbox.name + suffix)


def _mode_of(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def _size(octets: int) -> str:
    value = float(octets)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
