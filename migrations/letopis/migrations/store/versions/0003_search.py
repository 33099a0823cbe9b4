"""The full-text index.

Revises: 0002
"""

from __future__ import annotations

import sqlite3

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

identifier = (
    sa.String(255)
    .with_variant(sa.String(255, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_nopad_bin"), "mysql", "mariadb")
)
codes = (
    sa.Text()
    .with_variant(postgresql.TSVECTOR(), "postgresql")
    .with_variant(mysql.LONGTEXT(charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)

INSERT = "INSERT INTO letopis_search_words(rowid, scope, document) VALUES (new.id, new.scope, new.document);"
DELETE = (
    "INSERT INTO letopis_search_words(letopis_search_words, rowid, scope, document)"
    " VALUES ('delete', old.id, old.scope, old.document);"
)
SQLITE = (
    # The rows are those of letopis_search; only their index is here.
    (
        "CREATE VIRTUAL TABLE IF NOT EXISTS letopis_search_words USING fts5"
        "(scope, document, content='letopis_search', content_rowid='id', tokenize='ascii')"
    ),
    "CREATE TRIGGER IF NOT EXISTS letopis_search_insert AFTER INSERT ON letopis_search BEGIN " + INSERT + " END",
    "CREATE TRIGGER IF NOT EXISTS letopis_search_delete AFTER DELETE ON letopis_search BEGIN " + DELETE + " END",
    "CREATE TRIGGER IF NOT EXISTS letopis_search_update AFTER UPDATE OF id, scope, document ON letopis_search BEGIN "
    + DELETE
    + " "
    + INSERT
    + " END",
)
SECURE_DELETE = "INSERT INTO letopis_search_words(letopis_search_words, rank) VALUES ('secure-delete', 1)"


def upgrade() -> None:
    """Create the table and its full-text index, each unless an upgrade that was cut off has done it."""
    op.create_table(
        "letopis_search",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("conversation_id", identifier, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("content_version", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False),
        sa.Column("scope", codes, nullable=False),
        sa.Column("document", codes, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_letopis_search"),
        comment="The full-text index: one row a message that is on the path, as codes of its words.",
        if_not_exists=True,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
    )
    op.create_index(
        "uq_letopis_search_message",
        "letopis_search",
        ["generation", "partition", "conversation_id", "version"],
        unique=True,
        if_not_exists=True,
    )
    if op.get_context().dialect.name == "sqlite":
        for statement in SQLITE:
            op.execute(statement)
        # Else what is taken out stays in the file until the index is merged.
        if sqlite3.sqlite_version_info >= (3, 42):
            op.execute(SECURE_DELETE)
    else:
        op.create_index(
            "ix_letopis_search_words",
            "letopis_search",
            ["scope", "document"],
            if_not_exists=True,
            postgresql_using="gin",
            # Else what was indexed since the last vacuum lies in a list, which each search reads from end to end.
            postgresql_with={"fastupdate": "off"},
            mysql_prefix="FULLTEXT",
            mariadb_prefix="FULLTEXT",
        )


def downgrade() -> None:
    """Drop the index; a later upgrade makes it again from the log."""
    if op.get_context().dialect.name == "sqlite":
        op.execute("DROP TABLE letopis_search_words")
    op.drop_table("letopis_search")
    op.execute("DELETE FROM letopis_checkpoints WHERE name = 'search'")
