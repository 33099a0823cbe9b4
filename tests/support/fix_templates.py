"""Create databases in this process as the migration created the first one: running Alembic each time costs more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest
import sqlalchemy as sa

from letopis.store.database.migrations import Migrations, SchemaState, exclude_other_migrations, revision_state, upgrade

_NO_CHANGES: Final = ("SELECT", "SHOW", "DESCRIBE", "PRAGMA", "SET", "COMMIT")


@pytest.fixture(scope="session", autouse=True)
def quick_creation() -> Iterator[None]:
    """Replay the statements of the migration on an empty database; whoever asks for `upgrade` itself gets Alembic."""
    scripts: dict[Any, list[tuple[str, Any]]] = {}

    def replay(
        connection: sa.Connection, migrations: Migrations, *, attributes: Mapping[str, Any] | None = None
    ) -> None:
        dialect = connection.dialect
        key = (dialect.name, dialect.server_version_info, migrations, *sorted((attributes or {}).items()))
        if sa.inspect(connection).get_table_names():
            upgrade(connection, migrations, attributes=attributes)
        elif key not in scripts:
            scripts[key] = _recorded(connection, migrations, attributes)
        else:
            with exclude_other_migrations(connection):
                if revision_state(connection, migrations).state is SchemaState.MISSING:
                    for statement, parameters in scripts[key]:  # the database itself makes the identity of a store
                        connection.exec_driver_sql(statement, parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("letopis.store._components.upgrade", replay)
        patch.setattr("letopis.outbox.file.opening.upgrade", replay)
        yield


def _recorded(
    connection: sa.Connection, migrations: Migrations, attributes: Mapping[str, Any] | None
) -> list[tuple[str, Any]]:
    script: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.lstrip().startswith(_NO_CHANGES):
            script.append((statement.lstrip(), parameters))

    sa.event.listen(connection, "after_cursor_execute", note)
    try:
        upgrade(connection, migrations, attributes=attributes)
    finally:
        sa.event.remove(connection, "after_cursor_execute", note)
    return script
