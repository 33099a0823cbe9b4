"""The rebuilder of disks: the trace is read right, and each model leaves what it says."""

import random
from pathlib import Path

import pytest

from tests.proof.power.disk import SECTOR, Disk, Kind, Model, NotUnderstood, Operation, read_trace

FOLDER, ACKS = Path("/d"), Path("/a")


def escaped(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def trace(*lines: str) -> list[Operation]:
    """Read lines in which <...> and "..." are given as plain text."""
    told = []
    for line in lines:
        parts = line.split("'")
        told.append("".join(part if place % 2 == 0 else escaped(part) for place, part in enumerate(parts)))
    return list(read_trace(told, FOLDER, acks=ACKS, ignore=("-shm",)))


def test_a_trace_is_read_in_the_order_in_which_calls_ended() -> None:
    found = trace(
        "7 openat(AT_FDCWD<'/'>, \"'/d/x'\", O_RDWR|O_CREAT, 0600) = 3<'/d/x'>",
        "7 openat(AT_FDCWD<'/'>, \"'/d/none'\", O_RDWR|O_CREAT, 0600) = -1 ENOSPC (No space left on device)",
        "7 pwrite64(3<'/d/x'>, \"'abc'\", 3, 512) = 3",
        "7 pwrite64(3<'/d/x-shm'>, \"'abc'\", 3, 512) = 3",
        "8 fdatasync(3<'/d/x'> <unfinished ...>",
        "7 pwrite64(3<'/d/x'>, \"'defg'\", 4, 0) = 2",
        "8 <... fdatasync resumed>) = 0",
        "7 fdatasync(3<'/d'>) = 0",
        "7 write(4<'/a'>, \"'[]'\", 2) = 2",
        "7 unlink(\"'/d/x'\") = 0",
    )

    assert [(one.kind, one.name, one.offset, one.data) for one in found] == [
        (Kind.CREATE, "x", 0, b""),
        (Kind.WRITE, "x", 512, b"abc"),
        (Kind.SYNC_BEGIN, "x", 0, b""),
        (Kind.WRITE, "x", 0, b"de"),
        (Kind.SYNC, "x", 0, b""),
        (Kind.SYNC_BEGIN, "", 0, b""),
        (Kind.SYNC, "", 0, b""),
        (Kind.ACK, "", 0, b"[]"),
        (Kind.UNLINK, "x", 0, b""),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "7 pwritev(3<'/d/x'>, [{iov_base=\"'abc'\", iov_len=3}], 1, 0) = 3",
        "7 rename(\"'/d/x'\", \"'/d/y'\") = 0",
        "7 fallocate(3<'/d/x'>, 0, 0, 4096) = 0",
        "7 pwrite64(3<'/d/x'>, \"'abc'\"..., 9, 0) = 9",
    ],
)
def test_what_is_not_understood_is_an_error(line: str) -> None:
    with pytest.raises(NotUnderstood):
        trace(line)


def disk(*operations: Operation) -> Disk:
    made = Disk()
    for operation in (*operations,):
        made.apply(operation)
    return made


def written(data: bytes, offset: int = 0) -> Operation:
    return Operation(kind=Kind.WRITE, name="x", data=data, offset=offset)


BEGUN = (
    Operation(kind=Kind.CREATE, name="x"),
    Operation(kind=Kind.SYNC_BEGIN, name=""),
    Operation(kind=Kind.SYNC, name=""),
)
SYNC = (Operation(kind=Kind.SYNC_BEGIN, name="x"), Operation(kind=Kind.SYNC, name="x"))


def test_a_flush_does_not_cover_what_is_written_while_it_runs() -> None:
    made = disk(*BEGUN, written(b"old"), SYNC[0], written(b"new"), SYNC[1])

    assert made.left(Model.DROPPED, random.Random(1)) == {"x": b"old"}


def test_a_torn_write_leaves_some_sectors() -> None:
    made = disk(*BEGUN, written(b"a" * (3 * SECTOR)), *SYNC, written(b"b" * (2 * SECTOR), offset=SECTOR // 2))
    chance = random.Random(1)
    seen = {made.left(Model.TORN, chance)["x"] for _ in range(300)}

    half = SECTOR // 2
    assert len(seen) == 2**3
    assert all(one[:half] == b"a" * half and one[-half:] == b"a" * half for one in seen)


def test_a_name_and_its_end_are_durable_with_their_folder_only() -> None:
    chance = random.Random(1)
    fresh = disk(Operation(kind=Kind.CREATE, name="x"), written(b"old"), *SYNC)
    gone = disk(*BEGUN, written(b"old"), *SYNC, Operation(kind=Kind.UNLINK, name="x"))

    assert fresh.left(Model.DROPPED, chance) == {}
    assert gone.left(Model.KEPT, chance) == {}
    assert gone.left(Model.DROPPED, chance) == {"x": b"old"}
