"""A flush reaches the medium also where fsync does not."""

import os
from pathlib import Path

import pytest

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import private_files


def test_a_flush_is_a_full_one_where_the_system_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync"))
    monkeypatch.setattr(private_files.fcntl, "fcntl", lambda descriptor, command: calls.append(command))
    with (tmp_path / "file").open("wb") as file:
        private_files.flush_to_disk(file.fileno())
        monkeypatch.setattr(private_files, "_FULL", 51)
        private_files.flush_to_disk(file.fileno())

    assert calls == ["fsync", 51]


async def test_sqlite_flushes_checkpoints_in_full_too(tmp_path: Path) -> None:
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    try:
        found = [
            await outbox.read(lambda connection, name=name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())  # type: ignore[misc]
            for name in ("synchronous", "fullfsync", "checkpoint_fullfsync")
        ]
    finally:
        await outbox.close()

    assert found == [2, 1, 1]
