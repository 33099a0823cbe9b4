"""Write the code of a next release: this one, with a second revision of both ends.

Its code does not use what the revisions add, so that it is this release's in all else.
"""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox.event_log.schema import metadata as outbox_metadata
from letopis.outbox.file.inspection import OUTBOX_MIGRATIONS
from letopis.store.database.migrations import STORE, Migrations
from letopis.store.database.schema import metadata as store_metadata
from tests.support.paths import ROOT

NEXT: Final = f"{int(STORE.head) + 1:04}"
_PACKAGES: Final = ("store", "outbox", "migrations")
_STORE: Final = (
    ("letopis_conversations", "pinned", "SmallInteger", "0"),
    ("letopis_messages", "note", "Text", None),
    ("letopis_owners", "plan", "BigInteger", "7"),
)
_OUTBOX: Final = (("letopis_outbox_lanes", "pinned", "Integer", "0"),)
# It expands as each later revision has to: columns with a default or none, a table, an index, and values for the rows
# that are there; each step unless an upgrade that was interrupted has done it.
_REVISION: Final = '''"""Add what a second revision adds.

Revises: BEFORE
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "NEXT"
down_revision = "BEFORE"
branch_labels = None
depends_on = None
COLUMNS = (ADDED)
PINNED = COLUMNS[0][0]


def upgrade() -> None:
    for table, column, kind, default in COLUMNS:
        if column not in columns_of(table):
            added = sa.Column(column, getattr(sa, kind)(), nullable=default is None, server_default=default)
            op.add_column(table, added)
    op.create_index(f"ix_{PINNED}_pinned", PINNED, ["pinned"], if_not_exists=True)
    op.create_table(
        "LABELS",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_LABELS"),
        if_not_exists=True,
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )
    op.execute("INSERT INTO LABELS (id, label) SELECT 1, 'all' WHERE NOT EXISTS (SELECT 1 FROM LABELS)")


def columns_of(table: str) -> set[str]:
    if context.is_offline_mode():
        return set()
    return {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}


def downgrade() -> None:
    op.drop_table("LABELS")
    op.drop_index(f"ix_{PINNED}_pinned", PINNED)
    for table, column, _, _ in reversed(COLUMNS):
        op.drop_column(table, column)
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class NextRelease:
    tree: Path
    roots: tuple[str, ...]
    store: Migrations


def write_next_release(tree: Path) -> NextRelease:
    """Copy this release's packages into a folder, and add the second revisions."""
    for package in _PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    _replace(tree / "store/letopis/store/database/migrations.py", f'head="{STORE.head}"', f'head="{NEXT}"')
    _replace(tree / "outbox/letopis/outbox/file/inspection.py", f'head="{OUTBOX_MIGRATIONS.head}"', f'head="{NEXT}"')
    revisions = tree / "migrations/letopis/migrations"
    for end, columns, before in (("store", _STORE, STORE.head), ("outbox", _OUTBOX, OUTBOX_MIGRATIONS.head)):
        code = _REVISION.replace("NEXT", NEXT).replace("BEFORE", before).replace("(ADDED)", repr(columns))
        path = revisions / end / "versions" / f"{NEXT}_next.py"
        path.write_text(code.replace("LABELS", _labels(columns)), encoding="utf-8")
    return NextRelease(
        tree=tree,
        roots=tuple(str(tree / package) for package in _PACKAGES),
        store=Migrations(location=str(revisions / "store"), version_table=STORE.version_table, head=NEXT),
    )


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name} does not hold {old} once"
    path.write_text(text.replace(old, new), encoding="utf-8")


def _labels(columns: Any) -> str:
    return "letopis_outbox_labels" if columns is _OUTBOX else "letopis_labels"


def _next_tables(metadata: sa.MetaData, columns: Any) -> sa.MetaData:
    copy = sa.MetaData(naming_convention=metadata.naming_convention)
    for table in metadata.tables.values():
        copied = table.to_metadata(copy)
        copied.info.update(table.info)
        information = {index.name: index.info for index in table.indexes}  # SQLAlchemy does not copy it
        for index in copied.indexes:
            index.info.update(information[index.name])
    for name, column, kind, default in columns:
        added = sa.Column(column, getattr(sa, kind), nullable=default is None, server_default=default)
        copy.tables[name].append_column(added)
    pinned = copy.tables[columns[0][0]]
    sa.Index(f"ix_{pinned.name}_pinned", pinned.c.pinned)
    key = sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False)
    sa.Table(_labels(columns), copy, key, sa.Column("label", sa.Text, nullable=False))
    return copy


next_store_tables: Final = partial(_next_tables, store_metadata, _STORE)
next_outbox_tables: Final = partial(_next_tables, outbox_metadata, _OUTBOX)
