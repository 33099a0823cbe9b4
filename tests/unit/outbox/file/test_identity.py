"""A missing file beside the outbox is noticed, and looked at no more often than needed."""

import os
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from letopis import Message, OutboxFull, OutboxUnavailable
from letopis.outbox import History
from letopis.outbox.file.identity import FileIdentityGuard, file_id_of
from letopis.outbox.file.limits import DiskReserve
from tests.support.platforms import posix_only

MiB = 1024**2


@pytest.fixture
def there(tmp_path: Path) -> tuple[FileIdentityGuard, Path]:
    """An outbox's three files, in a folder in which nothing has changed for a while."""
    path = tmp_path / "bot.outbox.db"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").write_bytes(b"x" * 100)
    keep_time(tmp_path, time.time_ns() - 10_000_000_000)
    found = FileIdentityGuard(path, file_id_of(path))
    found.capture()
    found.verify()
    return found, path


def keep_time(folder: Path, moment: int) -> None:
    """Give a folder the time at which it changed, as a coarse clock does to two changes of one tick."""
    os.utime(folder, ns=(moment, moment))


def replaced(path: Path) -> None:
    """Replace a file by another one, within one tick of the folder's clock."""
    moment = path.parent.stat().st_mtime_ns
    path.rename(path.with_suffix(".away"))
    path.write_bytes(b"y" * 100)
    keep_time(path.parent, moment)


def test_a_change_that_the_folder_does_not_show_is_missed_within_a_second(
    there: tuple[FileIdentityGuard, Path],
) -> None:
    found, path = there
    replaced(Path(f"{path}-wal"))
    found.verify()  # the control: the folder shows nothing
    found._verify_beside_at = 0.0
    with pytest.raises(OutboxUnavailable, match="-wal"):
        found.verify()


def test_in_a_folder_that_changes_just_now_its_time_is_not_trusted(there: tuple[FileIdentityGuard, Path]) -> None:
    found, path = there
    (path.parent / "something else").touch()  # some file of the bot's, a moment ago
    found.verify()
    replaced(Path(f"{path}-wal"))  # in the same tick
    with pytest.raises(OutboxUnavailable, match="-wal"):
        found.verify()


def test_another_folder_in_the_place_of_ours_is_noticed(there: tuple[FileIdentityGuard, Path], tmp_path: Path) -> None:
    found, path = there
    aside = tmp_path.with_name(f"{tmp_path.name}-aside")
    tmp_path.rename(aside)
    tmp_path.mkdir()
    try:
        (tmp_path / path.name).hardlink_to(aside / path.name)  # the same file, without what was beside it
        keep_time(tmp_path, aside.stat().st_mtime_ns)
        with pytest.raises(OutboxUnavailable, match="-wal"):
            found.verify()
    finally:
        for one in tmp_path.iterdir():
            one.unlink()
        tmp_path.rmdir()
        aside.rename(tmp_path)


def test_a_disk_with_plenty_of_room_is_asked_again_a_tenth_of_a_second_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, now = Mock(return_value=10_000 * MiB), Mock(return_value=100.0)
    monkeypatch.setattr(DiskReserve, "free", free)
    monkeypatch.setattr("letopis.outbox.file.limits.time.monotonic", now)
    reserve = DiskReserve(tmp_path / "bot.outbox.db", watermark=16 * MiB)
    reserve.check()
    free.return_value = 1 * MiB
    reserve.check()  # it cannot have been filled by now
    assert free.call_count == 1

    now.return_value += 0.1
    for number in (2, 3):  # where there is little, each time
        with pytest.raises(OutboxFull, match="nothing was dropped"):
            reserve.check()
        assert free.call_count == number
    free.return_value = 500 * MiB
    reserve.check()
    reserve.check()
    assert free.call_count == 5


@posix_only("file names are text on Windows")
async def test_a_file_with_a_name_that_is_no_text_is_delivered(tmp_path: Path) -> None:
    """The store was given the file's name with lone surrogates in it, which no driver writes: nothing was delivered."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bot\xff.outbox.db"))
    async with History(path, store=tmp_path / "history.db") as history:
        receipt = await history.append("c1", Message.user("one"))
        assert await receipt.saved(timeout=20)
