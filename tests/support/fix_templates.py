"""Create SQLite files in this process as the migration created the first one: running Alembic each time costs more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest
import sqlalchemy as sa

from letopis.store.database.migrations import Migrations, upgrade

_READS: Final = ("SELECT", "PRAGMA")


@pytest.fixture(scope="session", autouse=True)
def quick_creation() -> Iterator[None]:
    """Replay the statements of the migration on an empty file; whoever asks for `upgrade` itself gets Alembic."""
    scripts: dict[Any, list[tuple[str, Any]]] = {}

    def replay(
        connection: sa.Connection, migrations: Migrations, *, attributes: Mapping[str, Any] | None = None
    ) -> None:
        tables = "SELECT count(*) FROM sqlite_master"
        if connection.dialect.name != "sqlite" or connection.exec_driver_sql(tables).scalar_one():
            upgrade(connection, migrations, attributes=attributes)
            return
        key = (migrations, *sorted((attributes or {}).items()))
        if key not in scripts:
            scripts[key] = _recorded(connection, migrations, attributes)
            return
        for statement, parameters in scripts[key]:  # SQLite itself makes the identity of a store, another each time
            connection.exec_driver_sql(statement, parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("letopis.store._components.upgrade", replay)
        patch.setattr("letopis.outbox.file.opening.upgrade", replay)
        yield


def _recorded(
    connection: sa.Connection, migrations: Migrations, attributes: Mapping[str, Any] | None
) -> list[tuple[str, Any]]:
    """Migrate, and return the statements that have changed the file."""
    script: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.lstrip().startswith(_READS):
            script.append((statement.lstrip(), parameters))

    sa.event.listen(connection, "after_cursor_execute", note)
    try:
        upgrade(connection, migrations, attributes=attributes)
    finally:
        sa.event.remove(connection, "after_cursor_execute", note)
    return script
