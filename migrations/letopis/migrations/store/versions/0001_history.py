"""Create the tables of the history store.

Revises: nothing
"""

from __future__ import annotations

import sqlite3
from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql, postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

identifier = (
    sa.String(255)
    .with_variant(sa.String(255, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_nopad_bin"), "mysql", "mariadb")
)
name = (
    sa.String(64)
    .with_variant(sa.String(64, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)
json = sa.Text().with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
uuid16 = (
    sa.LargeBinary(16)
    .with_variant(postgresql.UUID(as_uuid=True), "postgresql")
    .with_variant(mysql.BINARY(16), "mysql", "mariadb")
)
digest = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
salt = sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
tokens = (
    sa.Text()
    .with_variant(postgresql.TSVECTOR(), "postgresql")
    .with_variant(mysql.LONGTEXT(charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)
lane_name = (
    sa.String(264)
    .with_variant(sa.String(264, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(264, charset="utf8mb4", collation="utf8mb4_nopad_bin"), "mysql", "mariadb")
)
record_key = sa.LargeBinary(512).with_variant(mysql.VARBINARY(512), "mysql", "mariadb")
value = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")

INSERT = "INSERT INTO letopis_search_words(rowid, scope, document) VALUES (new.id, new.scope, new.document);"
DELETE = (
    "INSERT INTO letopis_search_words(letopis_search_words, rowid, scope, document)"
    " VALUES ('delete', old.id, old.scope, old.document);"
)
SQLITE_FULL_TEXT = (
    # The rows are those of letopis_search; only their index is here.
    (
        "CREATE VIRTUAL TABLE IF NOT EXISTS letopis_search_words USING fts5"
        "(scope, document, content='letopis_search', content_rowid='id', tokenize='ascii')"
    ),
    f"CREATE TRIGGER IF NOT EXISTS letopis_search_insert AFTER INSERT ON letopis_search BEGIN {INSERT} END",
    f"CREATE TRIGGER IF NOT EXISTS letopis_search_delete AFTER DELETE ON letopis_search BEGIN {DELETE} END",
    (
        "CREATE TRIGGER IF NOT EXISTS letopis_search_update AFTER UPDATE OF id, scope, document ON letopis_search"
        f" BEGIN {DELETE} {INSERT} END"
    ),
)
SQLITE_SECURE_DELETE = "INSERT INTO letopis_search_words(letopis_search_words, rank) VALUES ('secure-delete', 1)"
INSERT_STORE_ID = {
    dialect: f"INSERT INTO letopis_store (id, store_id, created_at) SELECT 1, {new_id}, {now}"  # noqa: S608
    " WHERE NOT EXISTS (SELECT 1 FROM letopis_store)"
    for dialect, new_id, now in (
        ("sqlite", "randomblob(16)", "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"),
        ("postgresql", "gen_random_uuid()", "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"),
        ("mysql", "UNHEX(REPLACE(UUID(), '-', ''))", "CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)"),
        ("mariadb", "UNHEX(REPLACE(UUID(), '-', ''))", "CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)"),
    )
}


def upgrade() -> None:
    """Create what an interrupted upgrade has not created yet: MariaDB commits each table separately."""
    create_tables()
    create_index("ix_letopis_conversations_owner", "letopis_conversations", "owner_id", "updated_at", "conversation_id")
    create_index("ix_letopis_conversations_updated", "letopis_conversations", "updated_at", "conversation_id")
    create_index("uq_letopis_events_version", "letopis_events", "partition", "conversation_id", "version")
    create_index("uq_letopis_events_event_id", "letopis_events", "event_id", "partition", "conversation_id")
    create_index("ix_letopis_messages_message_id", "letopis_messages", "message_id", "conversation_id", "partition")
    create_author_index()
    create_index("ix_letopis_conversations_forked", "letopis_conversations", "forked_from_id")
    create_full_text_index()
    insert_log_heads()
    # The database generates the identity, so that printed SQL gives each database that runs it one of its own.
    op.execute(INSERT_STORE_ID[op.get_context().dialect.name])


def create_tables() -> None:
    """Create the tables."""
    create(
        "letopis_store",
        key("id", sa.SmallInteger()),
        required("store_id", uuid16),
        required("created_at", sa.BigInteger()),
        sa.Column("moved_to", sa.Text()),
        sa.Column("moved_at", sa.BigInteger()),
        comment="One row: the identity of this store, which backups, replicas and moves keep.",
    )
    create(
        "letopis_log_heads",
        key("partition", sa.Integer()),
        required("position", sa.BigInteger()),
        required("closed", sa.SmallInteger(), default="0"),
        required("erasures", sa.BigInteger(), default="0"),
        sa.Column("erasure_id", uuid16),
        comment="One row a partition, fixed when the store is created: the position given out last.",
    )
    create(
        "letopis_origins",
        key("origin_id", uuid16),
        required("epoch", sa.BigInteger()),
        required("name", sa.Text()),
        required("first_seen_at", sa.BigInteger()),
        required("last_seen_at", sa.BigInteger()),
        required("erasures", sa.BigInteger(), default="0"),
        comment="The outbox files that deliver here.",
    )
    create(
        "letopis_erasures",
        key("number", sa.BigInteger()),
        required("erasure_id", uuid16),
        required("kind", name),
        required("subject", identifier),
        required("how", name),
        sa.Column("reason", sa.Text()),
        sa.Column("requested_by", sa.Text()),
        sa.Column("origin_id", uuid16),
        required("answers", sa.SmallInteger(), default="0"),
        required("positions", json),
        required("recorded_at", sa.BigInteger()),
        comment="Erasures of all that someone said, in order: every outbox carries each out in its own file.",
    )
    create(
        "letopis_holds",
        key("kind", name),
        key("subject", identifier),
        required("reason", sa.Text()),
        sa.Column("requested_by", sa.Text()),
        required("held_at", sa.BigInteger()),
        comment="What must not be erased until it is released.",
    )
    create(
        "letopis_lanes",
        key("partition", sa.Integer()),
        key("conversation_id", lane_name),
        key("origin_id", uuid16),
        required("sequence", sa.BigInteger()),
        required("duplicates", sa.BigInteger()),
        required("floor", sa.BigInteger()),
        required("records", sa.BigInteger()),
        comment="How far each outbox has got in each lane: what makes a delivery take effect once.",
    )
    create(
        "letopis_conversations",
        key("partition", sa.Integer()),
        key("conversation_id", identifier),
        sa.Column("owner_id", identifier),
        sa.Column("number", sa.BigInteger()),
        sa.Column("title", json),
        required("state", name),
        required("version", sa.BigInteger()),
        required("message_count", sa.BigInteger()),
        required("tokens", sa.BigInteger()),
        required("created_at", sa.BigInteger()),
        required("updated_at", sa.BigInteger()),
        sa.Column("forked_from_id", identifier),
        sa.Column("forked_from_version", sa.BigInteger()),
        sa.Column("metadata", json),
        sa.Column("forked_from_event", uuid16),
        required("inherits", sa.SmallInteger(), default="0"),
        sa.Column("inherited_to", identifier),
        required("retained", sa.BigInteger(), default="0"),
        required("rules", sa.SmallInteger(), default="1"),
        sa.Column("tags", json),
        required("trimmed", sa.BigInteger(), default="0"),
        required("reset_to", sa.BigInteger(), default="0"),
        comment="One row a conversation, folded from its events.",
    )
    create(
        "letopis_events",
        key("partition", sa.Integer()),
        key("position", sa.BigInteger()),
        required("conversation_id", identifier),
        required("version", sa.BigInteger()),
        required("event_id", uuid16),
        required("origin_id", uuid16),
        required("sequence", sa.BigInteger()),
        required("type", name),
        required("schema_version", sa.SmallInteger()),
        required("data", json),
        sa.Column("metadata", json),
        required("digest", digest),
        sa.Column("salt", salt),
        required("occurred_at", sa.BigInteger()),
        required("recorded_at", sa.BigInteger()),
        comment="The log. Rows are never changed but by redaction.",
    )
    create(
        "letopis_messages",
        key("partition", sa.Integer()),
        key("conversation_id", identifier),
        key("version", sa.BigInteger()),
        required("message_id", identifier),
        required("content_version", sa.BigInteger()),
        sa.Column("delivery_version", sa.BigInteger()),
        required("role", name),
        required("state", name),
        sa.Column("left_at", sa.BigInteger()),
        sa.Column("redacted_at", sa.BigInteger()),
        sa.Column("reactions", json),
        sa.Column("author", identifier),
        comment="An index over the log: which event holds a message, its current content and its delivery.",
    )
    create(
        "letopis_owners",
        key("partition", sa.Integer()),
        key("owner_id", identifier),
        sa.Column("active_conversation_id", identifier),
        sa.Column("active_partition", sa.Integer()),
        required("next_number", sa.BigInteger()),
        sa.Column("activated_by", uuid16),
        sa.Column("activated_order", sa.BigInteger()),
        comment="One row an owner: the active conversation, and the number that the next one gets.",
    )
    create(
        "letopis_checkpoints",
        key("name", name),
        key("version", sa.Integer()),
        key("partition", sa.Integer()),
        required("position", sa.BigInteger()),
        required("replay_to", sa.BigInteger()),
        required("updated_at", sa.BigInteger()),
        comment="How far each version of each catch-up projection has read each partition of the log.",
    )
    create(
        "letopis_search",
        key("partition", sa.Integer()),
        key("generation", sa.Integer()),
        key("conversation_id", identifier),
        key("version", sa.BigInteger()),
        required("content_version", sa.BigInteger()),
        required("position", sa.BigInteger()),
        required("occurred_at", sa.BigInteger()),
        required("scope", tokens),
        required("document", tokens),
        comment="The full-text index: one row a message that is on the path, as codes of its words.",
    )
    create(
        "letopis_tasks",
        key("partition", sa.Integer()),
        key("conversation_id", identifier),
        key("kind", name),
        key("version", sa.BigInteger()),
        required("after", sa.BigInteger()),
        required("upto", sa.BigInteger()),
        required("created_at", sa.BigInteger()),
        comment="What events did to very many rows: heeded by readers at once, carried out in steps.",
    )
    create_record_tables()


def create_record_tables() -> None:
    """Create the tables of records that are not there yet."""
    create(
        "letopis_records",
        key("partition", sa.Integer()),
        key("record_id", uuid16),
        required("scope", lane_name),
        required("namespace", record_key),
        required("record_key", record_key),
        required("revision", uuid16),
        required("media", name),
        required("size", sa.BigInteger()),
        required("parts", sa.Integer()),
        sa.Column("body", value),
        sa.Column("tags", json),
        required("digest", digest),
        required("salt", salt),
        required("updated_at", sa.BigInteger()),
        comment="What frameworks keep beside the messages: the last version of each record.",
    )
    create(
        "letopis_record_parts",
        key("partition", sa.Integer()),
        key("record_id", uuid16),
        key("part", sa.Integer()),
        required("body", value),
        comment="The values of records that are too large for a row.",
    )
    create(
        "letopis_record_tags",
        key("name", record_key),
        key("value", record_key),
        key("partition", sa.Integer()),
        key("record_id", uuid16),
        comment="The tags of records, to find them across scopes.",
    )
    create(
        "letopis_record_ledger",
        key("partition", sa.Integer()),
        key("conversation_id", lane_name),
        key("origin_id", uuid16),
        key("sequence", sa.BigInteger()),
        required("event_id", uuid16),
        required("digest", digest),
        required("superseded", sa.SmallInteger()),
        comment="The changes of records that an outbox could still send again: what makes each take effect once.",
    )
    create_index("uq_letopis_records_key", "letopis_records", "partition", "scope", "namespace", "record_key")
    create_index("ix_letopis_record_tags_record", "letopis_record_tags", "partition", "record_id")


def create(table: str, *columns: sa.Column[Any], comment: str) -> None:
    """Create a table that is not there yet."""
    names = [column.name for column in columns if column.info.get("key")]
    keys: list[Any] = [sa.PrimaryKeyConstraint(*names, name=f"pk_{table}")]
    if table == "letopis_search" and op.get_context().dialect.name == "sqlite":
        # The full-text index refers to rows by a number that VACUUM does not change.
        keys = [sa.Column("id", sa.Integer(), primary_key=True), sa.UniqueConstraint(*names, name=f"uq_{table}")]
        columns = tuple(sa.Column(column.name, column.type, nullable=False) for column in columns)
    op.create_table(
        table,
        *keys,
        *columns,
        comment=comment,
        if_not_exists=True,
        **{
            f"{dialect}_{option}": value
            for dialect in ("mysql", "mariadb")
            for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
        },
    )


def key(column: str, kind: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    """Return a column of the primary key whose values the database must not generate."""
    return sa.Column(column, kind, autoincrement=False, nullable=False, info={"key": True})


def required(column: str, kind: sa.types.TypeEngine[Any], *, default: str | None = None) -> sa.Column[Any]:
    """Return a column that is never NULL."""
    return sa.Column(column, kind, nullable=False, server_default=default)


def create_index(index: str, table: str, *columns: str) -> None:
    """Create an index that is not there yet."""
    op.create_index(index, table, list(columns), unique=index.startswith("uq_"), if_not_exists=True)


def create_author_index() -> None:
    """Create the index over the messages that have an author; MariaDB indexes the others as well."""
    has_author = sa.text("author IS NOT NULL")
    op.create_index(
        "ix_letopis_messages_author",
        "letopis_messages",
        ["author", "partition", "conversation_id", "version"],
        if_not_exists=True,
        sqlite_where=has_author,
        postgresql_where=has_author,
    )


def create_full_text_index() -> None:
    """Create the index over the rows of the search table."""
    if op.get_context().dialect.name == "sqlite":
        for statement in SQLITE_FULL_TEXT:
            op.execute(statement)
        # Without it deleted words stay in the file until the index is merged.
        if sqlite3.sqlite_version_info >= (3, 42):
            op.execute(SQLITE_SECURE_DELETE)
        return
    create_index("ix_letopis_search_newest", "letopis_search", "occurred_at", "position")
    op.create_index(
        "ix_letopis_search_words",
        "letopis_search",
        ["scope", "document"],
        if_not_exists=True,
        postgresql_using="gin",
        # With fast updates, rows since the last vacuum are in a list that each search reads from end to end.
        postgresql_with={"fastupdate": "off"},
        mysql_prefix="FULLTEXT",
        mariadb_prefix="FULLTEXT",
    )


def insert_log_heads() -> None:
    """Insert a counter for each partition that has none."""
    heads = sa.table("letopis_log_heads", sa.column("partition", sa.Integer), sa.column("position", sa.BigInteger))
    existing: set[int] = set()
    if not context.is_offline_mode():
        existing.update(op.get_bind().execute(sa.select(heads.c.partition)).scalars())
    if counters := [{"partition": number, "position": 0} for number in range(partitions()) if number not in existing]:
        op.bulk_insert(heads, counters)


def partitions() -> int:
    """Return how many partitions the log gets, which cannot be changed later."""
    number = int(context.config.attributes.get("partitions", 1))
    if not 1 <= number <= 1024:
        raise ValueError("partitions must be between 1 and 1024")
    return number


def downgrade() -> None:
    """Drop the tables, and the history with them."""
    if op.get_context().dialect.name == "sqlite":
        op.execute("DROP TABLE letopis_search_words")
    tables = (
        "record_ledger record_tags record_parts records"
        " tasks search checkpoints owners messages events conversations lanes holds erasures origins log_heads store"
    )
    for table in tables.split():
        op.drop_table(f"letopis_{table}")
