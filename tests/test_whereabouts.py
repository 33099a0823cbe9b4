"""The files beside an outbox are missed when they are gone, and looked at no oftener than it takes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import identity
from letopis.outbox.bounds import Bounds
from letopis.outbox.headroom import Headroom
from letopis.outbox.identity import Whereabouts, place_of
from letopis.store.errors import OutboxFull, OutboxUnavailable

MiB = 1024**2


@pytest.fixture
def there(tmp_path: Path) -> tuple[Whereabouts, Path]:
    """An outbox's three files, in a folder in which nothing has changed for a while."""
    path = tmp_path / "bot.outbox.db"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").write_bytes(b"x" * 100)
    keep_time(tmp_path, time.time_ns() - 10_000_000_000)
    found = Whereabouts(path, place_of(path))
    found.settle()
    found.check()
    return found, path


def keep_time(folder: Path, moment: int) -> None:
    """Give a folder the time at which it changed, as a coarse clock does to two changes of one tick."""
    os.utime(folder, ns=(moment, moment))


def replaced(path: Path) -> None:
    """Put another file in the place of one, all of it in one tick of the folder's clock."""
    moment = path.parent.stat().st_mtime_ns
    path.rename(path.with_suffix(".away"))
    path.write_bytes(b"y" * 100)
    keep_time(path.parent, moment)


def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are looked at from here on."""
    seen: list[str] = []
    real = os.stat

    def stat(path: Any, *args: Any, **options: Any) -> os.stat_result:
        seen.append(str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(identity.os, "stat", stat)
    return seen


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_file_beside_that_goes_is_missed_at_once(there: tuple[Whereabouts, Path], suffix: str) -> None:
    found, path = there
    Path(f"{path}{suffix}").unlink()

    for _ in range(2):  # and not only the first time
        with pytest.raises(OutboxUnavailable, match=suffix):
            found.check()


def test_a_quiet_wal_is_not_looked_at_before_each_append(
    there: tuple[Whereabouts, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would have the kernel write an exact time into it, each time."""
    found, path = there
    seen = looked_at(monkeypatch)

    for _ in range(10):
        found.check()

    assert f"{path}-wal" not in seen
    assert seen.count(str(path)) == 10  # but the file itself is
    found._look_again = 0.0  # a second later
    found.check()
    assert seen.count(f"{path}-wal") == 1
    assert found.size == 300


def test_a_change_that_the_folder_does_not_show_is_missed_within_a_second(there: tuple[Whereabouts, Path]) -> None:
    found, path = there
    replaced(Path(f"{path}-wal"))
    found.check()  # the control: the folder shows nothing

    found._look_again = 0.0
    with pytest.raises(OutboxUnavailable, match="-wal"):
        found.check()


def test_in_a_folder_that_changes_just_now_its_time_is_not_trusted(there: tuple[Whereabouts, Path]) -> None:
    found, path = there
    (path.parent / "something else").touch()  # some file of the bot's, a moment ago
    found.check()
    replaced(Path(f"{path}-wal"))  # in the same tick

    with pytest.raises(OutboxUnavailable, match="-wal"):
        found.check()


def test_another_folder_in_the_place_of_ours_is_noticed(there: tuple[Whereabouts, Path], tmp_path: Path) -> None:
    found, path = there
    aside = tmp_path.with_name(f"{tmp_path.name}-aside")
    tmp_path.rename(aside)
    tmp_path.mkdir()
    try:
        (tmp_path / path.name).hardlink_to(aside / path.name)  # the same file, without what was beside it
        keep_time(tmp_path, aside.stat().st_mtime_ns)
        with pytest.raises(OutboxUnavailable, match="-wal"):
            found.check()
    finally:
        for one in tmp_path.iterdir():
            one.unlink()
        tmp_path.rmdir()
        aside.rename(tmp_path)


class _Untouched:
    """A cursor that nobody uses."""

    def execute(self, statement: str) -> None:
        raise AssertionError(statement)


def test_the_pages_in_use_are_counted_from_half_the_bound_on() -> None:
    bounds = Bounds(max_bytes=1_000_000)

    bounds.check(_Untouched(), 499_999)
    for size in (500_000, None):  # None: nobody knows
        with pytest.raises(AssertionError, match="freelist"):
            bounds.check(_Untouched(), size)


def test_a_disk_with_plenty_of_room_is_asked_again_a_tenth_of_a_second_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, now, asked = 10_000 * MiB, 100.0, 0

    def ask(self: Headroom) -> int:
        nonlocal asked
        asked += 1
        return free

    monkeypatch.setattr(Headroom, "free", ask)
    monkeypatch.setattr("letopis.outbox.headroom.time.monotonic", lambda: now)
    headroom = Headroom(tmp_path / "bot.outbox.db", watermark=16 * MiB)
    headroom.check()
    free = 1 * MiB
    headroom.check()  # it cannot have been filled by now
    assert asked == 1

    now += 0.1
    for number in (2, 3):  # where there is little, each time
        with pytest.raises(OutboxFull, match="nothing was dropped"):
            headroom.check()
        assert asked == number
    free = 500 * MiB
    headroom.check()
    headroom.check()
    assert asked == 5
