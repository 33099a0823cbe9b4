"""The SQLite files of tests are those that the migration makes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ConversationStore
from letopis.store.database.migrations import upgrade


async def create(folder: Path) -> tuple[list[str], bytes]:
    """Create an outbox and a store; return all that they hold, and the identity of the store."""
    folder.mkdir()
    await (await OutboxFile.open(folder / "outbox.db")).close()
    async with ConversationStore.open(folder / "store.db", migrate=True):
        pass
    tables, rows = "SELECT type, name, sql FROM sqlite_master ORDER BY name", "SELECT * FROM letopis_log_heads"
    held = []
    for name, also in (("outbox.db", "SELECT * FROM letopis_outbox_version"), ("store.db", rows)):
        with closing(sqlite3.connect(folder / name)) as connection:
            held += [repr(row) for statement in (tables, also) for row in connection.execute(statement)]
            if name == "store.db":
                [(identity,)] = connection.execute("SELECT store_id FROM letopis_store").fetchall()
    return held, identity


async def test_a_file_from_the_template_is_one_from_the_migration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(tmp_path / "recorded")
    replayed, second = await create(tmp_path / "replayed")
    for user in ("letopis.store._components", "letopis.outbox.file.opening"):
        monkeypatch.setattr(f"{user}.upgrade", upgrade)
    migrated, third = await create(tmp_path / "migrated")

    assert len(migrated) > 60
    assert replayed == migrated
    assert second != third
