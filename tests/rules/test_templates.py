"""The databases of tests are those that the migration makes."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ConversationStore
from letopis.store.database.migrations import upgrade
from tests.support.servers.postgresql import in_own_loop
from tests.support.servers.store_pool import MariaDBPool, PostgresPool, StorePool, migrate


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
    for user in ("letopis.store.components", "letopis.outbox.file.opening"):
        monkeypatch.setattr(f"{user}.upgrade", upgrade)
    migrated, third = await create(tmp_path / "migrated")

    assert len(migrated) > 60
    assert replayed == migrated
    assert second != third


@pytest.mark.parametrize("pool", [PostgresPool, MariaDBPool])
def test_a_database_from_the_template_is_one_from_the_migration(
    pool: type[StorePool], request: pytest.FixtureRequest, new_store_url: Callable[[str], str]
) -> None:
    kind = "postgresql" if pool is PostgresPool else "mariadb"
    stores = pool(request.getfixturevalue(f"{kind}_server"))
    urls = [new_store_url(kind) for _ in range(3)]
    for url in urls[:2]:  # recorded, if it is the first of the run, and replayed
        in_own_loop(migrate(url))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("letopis.store.components.upgrade", upgrade)
        in_own_loop(migrate(urls[2]))
    (replayed, found), (migrated, wanted) = (stores._describe(url) for url in urls[1:])

    assert replayed == migrated
    assert [(table, len(rows)) for table, rows in found.items()] == [
        (table, len(rows)) for table, rows in wanted.items()
    ]
    assert found["letopis_store"] != wanted["letopis_store"]
