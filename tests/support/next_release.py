"""Write the code of a next release: this one, with a second revision of both ends.

Its code does not use what the revisions add, so that it is this release's in all else.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from letopis.outbox.event_log.schema import metadata as outbox_metadata
from letopis.outbox.file.inspection import OUTBOX_MIGRATIONS
from letopis.store.database.migrations import STORE, Migrations
from letopis.store.database.schema import metadata as store_metadata
from tests.support.paths import ROOT

NEXT: Final = f"{int(STORE.head) + 1:04}"
_PACKAGES: Final = ("store", "outbox", "migrations")

_HEADER: Final = '''"""Add what a second revision adds.

Revises: BEFORE
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "NEXT"
down_revision = "BEFORE"
branch_labels = None
depends_on = None
'''

# It expands as each later revision has to: columns with a default or none, a table, an index, and values for the rows
# that are there; each step unless an upgrade that was interrupted has done it.
_STORE: Final = (
    _HEADER
    + """
COLUMNS = (
    ("letopis_conversations", "pinned", sa.SmallInteger(), "0"),
    ("letopis_messages", "note", sa.Text(), None),
    ("letopis_owners", "plan", sa.BigInteger(), "7"),
)


def upgrade() -> None:
    for table, column, kind, default in COLUMNS:
        if column not in columns_of(table):
            op.add_column(table, sa.Column(column, kind, nullable=default is None, server_default=default))
    op.create_index("ix_letopis_conversations_pinned", "letopis_conversations", ["pinned"], if_not_exists=True)
    op.create_table(
        "letopis_labels",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_letopis_labels"),
        if_not_exists=True,
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )
    op.execute("INSERT INTO letopis_labels (id, label) SELECT 1, 'all' WHERE NOT EXISTS (SELECT 1 FROM letopis_labels)")


def columns_of(table: str) -> set[str]:
    if context.is_offline_mode():
        return set()
    return {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}


def downgrade() -> None:
    op.drop_table("letopis_labels")
    op.drop_index("ix_letopis_conversations_pinned", "letopis_conversations")
    for table, column, _, _ in reversed(COLUMNS):
        op.drop_column(table, column)
"""
)
_OUTBOX: Final = (
    _HEADER
    + """
STATEMENTS = (
    "ALTER TABLE letopis_outbox_lanes ADD COLUMN pinned INTEGER DEFAULT '0' NOT NULL",
    "CREATE TABLE letopis_outbox_labels (id INTEGER NOT NULL, label TEXT NOT NULL, PRIMARY KEY (id))",
    "CREATE INDEX ix_letopis_outbox_labels_label ON letopis_outbox_labels (label)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("letopis_outbox_labels")
    op.execute("ALTER TABLE letopis_outbox_lanes DROP COLUMN pinned")
"""
)


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
    for end, code, before in (("store", _STORE, STORE.head), ("outbox", _OUTBOX, OUTBOX_MIGRATIONS.head)):
        path = revisions / end / "versions" / f"{NEXT}_next.py"
        path.write_text(code.replace("NEXT", NEXT).replace("BEFORE", before), encoding="utf-8")
    return NextRelease(
        tree=tree,
        roots=tuple(str(tree / package) for package in _PACKAGES),
        store=Migrations(location=str(revisions / "store"), version_table=STORE.version_table, head=NEXT),
    )


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name} does not hold {old} once"
    path.write_text(text.replace(old, new), encoding="utf-8")


def next_store_tables() -> sa.MetaData:
    """Return the tables of the history store at the second revision."""
    found = _copied(store_metadata)
    conversations = found.tables["letopis_conversations"]
    conversations.append_column(sa.Column("pinned", sa.SmallInteger, nullable=False, server_default="0"))
    found.tables["letopis_messages"].append_column(sa.Column("note", sa.Text))
    found.tables["letopis_owners"].append_column(sa.Column("plan", sa.BigInteger, nullable=False, server_default="7"))
    sa.Index("ix_letopis_conversations_pinned", conversations.c.pinned)
    sa.Table(
        "letopis_labels",
        found,
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("label", sa.Text, nullable=False),
    )
    return found


def next_outbox_tables() -> sa.MetaData:
    """Return the tables of the outbox file at the second revision."""
    found = _copied(outbox_metadata)
    found.tables["letopis_outbox_lanes"].append_column(
        sa.Column("pinned", sa.Integer, nullable=False, server_default="0")
    )
    labels = sa.Table(
        "letopis_outbox_labels",
        found,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("label", sa.Text, nullable=False),
    )
    sa.Index("ix_letopis_outbox_labels_label", labels.c.label)
    return found


def _copied(metadata: sa.MetaData) -> sa.MetaData:
    copy = sa.MetaData(naming_convention=metadata.naming_convention)
    for table in metadata.tables.values():
        copied = table.to_metadata(copy)
        copied.info.update(table.info)
        information = {index.name: index.info for index in table.indexes}  # SQLAlchemy does not copy it
        for index in copied.indexes:
            index.info.update(information[index.name])
    return copy
