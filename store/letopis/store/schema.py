"""The tables of the history store, the same on SQLite, PostgreSQL and MariaDB.

Every key of a conversation's tables starts with ``partition``, so each table can be partitioned by hash or distributed
without change; ``letopis_owners`` and ``letopis_origins`` are small and stay whole. Times are UTC microseconds since
1970. Identifiers compare byte by byte. Payloads are JSON text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

metadata: Final = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

Identifier: Final = (
    sa.String(255)
    .with_variant(sa.String(255, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_nopad_bin"), "mysql", "mariadb")
)
"""An id: byte-exact and case-sensitive. ``nopad`` because ``utf8mb4_bin`` ignores trailing spaces when it compares."""

Name: Final = (
    sa.String(64)
    .with_variant(sa.String(64, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)
"""A word of Letopis's own: an event type, a role, a state."""

Json: Final = sa.Text().with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
"""JSON text as orjson wrote it. Not a JSON column: those reorder keys, and cost 18 to 35 % of the rate."""


class Uuid16(sa.types.TypeDecorator[UUID]):
    """A UUID in 16 bytes; on PostgreSQL in its own type. Always a :class:`~uuid.UUID` in Python."""

    impl = sa.LargeBinary(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """Choose the type that the database stores in 16 bytes."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.UUID(as_uuid=True))
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.BINARY(16))
        return dialect.type_descriptor(sa.LargeBinary(16))

    def process_bind_param(self, value: UUID | None, dialect: sa.Dialect) -> Any:
        """Give the driver what it takes."""
        return value if value is None or dialect.name == "postgresql" else value.bytes

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> UUID | None:
        """Give the caller a UUID."""
        if value is None or dialect.name == "postgresql":
            return value  # type: ignore[no-any-return]  # the driver made the UUID
        return UUID(bytes=bytes(value))


Digest: Final = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
Moment: Final = sa.BigInteger()
"""UTC microseconds since 1970."""
Count: Final = sa.BigInteger()
Codes: Final = (
    sa.Text()
    .with_variant(postgresql.TSVECTOR(), "postgresql")
    .with_variant(mysql.LONGTEXT(charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)
"""Codes of words, for a full-text index; see :mod:`letopis.store.search.words`."""

_MARIADB: Final[Mapping[str, Any]] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
}

log_heads: Final = sa.Table(
    "letopis_log_heads",
    metadata,
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", Count, nullable=False),
    comment="One row a partition, fixed when the store is created: the position given out last.",
    **_MARIADB,
)

origins: Final = sa.Table(
    "letopis_origins",
    metadata,
    sa.Column("origin_id", Uuid16(), primary_key=True),
    sa.Column("epoch", Count, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("first_seen_at", Moment, nullable=False),
    sa.Column("last_seen_at", Moment, nullable=False),
    comment="The outbox files that deliver here.",
    **_MARIADB,
)

lanes: Final = sa.Table(
    "letopis_lanes",
    metadata,
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("conversation_id", Identifier, primary_key=True),
    sa.Column("origin_id", Uuid16(), primary_key=True),
    sa.Column("sequence", Count, nullable=False),
    comment="How far each outbox has got in each conversation: what makes a delivery take effect once.",
    **_MARIADB,
)

conversations: Final = sa.Table(
    "letopis_conversations",
    metadata,
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("conversation_id", Identifier, primary_key=True),
    sa.Column("owner_id", Identifier),
    sa.Column("number", Count),
    sa.Column("title", Json),
    sa.Column("state", Name, nullable=False),
    sa.Column("version", Count, nullable=False),
    sa.Column("message_count", Count, nullable=False),
    sa.Column("tokens", Count, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("updated_at", Moment, nullable=False),
    # A fork reads its parent up to a version; where that was not known when it was made, up to an event.
    sa.Column("forked_from_id", Identifier),
    sa.Column("forked_from_version", Count),
    sa.Column("metadata", Json),
    sa.Column("forked_from_event", Uuid16()),
    # Of the parent's messages, whether they are on the path still, and the last one that is; NULL is all.
    sa.Column("inherits", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("inherited_to", Identifier),
    # Of a deleted conversation: events up to here keep their content, because forks read them.
    sa.Column("retained", Count, nullable=False, server_default="0"),
    # Which rules of projection made this row and its messages; `letopis db rebuild` brings older ones up to date.
    sa.Column("rules", sa.SmallInteger, nullable=False, server_default="1"),
    # The list of an owner, newest activity first, by keyset.
    sa.Index("ix_letopis_conversations_owner", "owner_id", "updated_at", "conversation_id"),
    sa.Index("ix_letopis_conversations_updated", "updated_at", "conversation_id"),
    sa.Index("ix_letopis_conversations_forked", "forked_from_id"),
    comment="One row a conversation, folded from its events.",
    **_MARIADB,
)

events: Final = sa.Table(
    "letopis_events",
    metadata,
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", Count, primary_key=True, autoincrement=False),
    sa.Column("conversation_id", Identifier, nullable=False),
    sa.Column("version", Count, nullable=False),
    sa.Column("event_id", Uuid16(), nullable=False),
    sa.Column("origin_id", Uuid16(), nullable=False),
    sa.Column("sequence", Count, nullable=False),
    sa.Column("type", Name, nullable=False),
    sa.Column("schema_version", sa.SmallInteger, nullable=False),
    sa.Column("data", Json, nullable=False),
    sa.Column("metadata", Json),
    sa.Column("digest", Digest),
    sa.Column("occurred_at", Moment, nullable=False),
    sa.Column("recorded_at", Moment, nullable=False),
    sa.Index("uq_letopis_events_version", "partition", "conversation_id", "version", unique=True),
    sa.Index("uq_letopis_events_event_id", "partition", "conversation_id", "event_id", unique=True),
    comment="The log. Rows are never changed but by redaction.",
    **_MARIADB,
)

messages: Final = sa.Table(
    "letopis_messages",
    metadata,
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("conversation_id", Identifier, primary_key=True),
    sa.Column("version", Count, primary_key=True, autoincrement=False),
    sa.Column("message_id", Identifier, nullable=False),
    sa.Column("content_version", Count, nullable=False),
    sa.Column("delivery_version", Count),
    sa.Column("role", Name, nullable=False),
    sa.Column("state", Name, nullable=False),
    # The version at which it left the active path; its own where it never was on it. NULL: it is on the path.
    sa.Column("left_at", Count),
    sa.Column("redacted_at", Count),
    sa.Column("reactions", Json),
    sa.Index("ix_letopis_messages_message_id", "partition", "conversation_id", "message_id"),
    comment="An index over the log: which event holds a message, its current content and its delivery.",
    **_MARIADB,
)

owners: Final = sa.Table(
    "letopis_owners",
    metadata,
    sa.Column("owner_id", Identifier, primary_key=True),
    sa.Column("active_conversation_id", Identifier),
    sa.Column("next_number", Count, nullable=False),
    # Which outbox moved the mark last, and the order of that in it: what it said before that moves nothing.
    sa.Column("activated_by", Uuid16()),
    sa.Column("activated_order", Count),
    comment="One row an owner: the active conversation, and the number that the next one gets.",
    **_MARIADB,
)

checkpoints: Final = sa.Table(
    "letopis_checkpoints",
    metadata,
    sa.Column("name", Name, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", Count, nullable=False),
    # What lies up to here is history that is replayed: no side effects.
    sa.Column("replay_to", Count, nullable=False),
    sa.Column("updated_at", Moment, nullable=False),
    comment="How far each version of each catch-up projection has read each partition of the log.",
    **_MARIADB,
)

search: Final = sa.Table(
    "letopis_search",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), primary_key=True),
    # The number of the rules that the codes were made by; a new one is indexed beside the old.
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("conversation_id", Identifier, nullable=False),
    sa.Column("version", Count, nullable=False),
    sa.Column("content_version", Count, nullable=False),
    # Of the event that appended the message, whatever was edited since: pages are cut by it.
    sa.Column("position", Count, nullable=False),
    sa.Column("occurred_at", Moment, nullable=False),
    # Whose it is, and its words; both empty where it is not to be found any more.
    sa.Column("scope", Codes, nullable=False),
    sa.Column("document", Codes, nullable=False),
    sa.Index("uq_letopis_search_message", "generation", "partition", "conversation_id", "version", unique=True),
    # On SQLite the virtual table letopis_search_words, which triggers keep.
    sa.Index(
        "ix_letopis_search_words",
        "scope",
        "document",
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
        mysql_prefix="FULLTEXT",
        mariadb_prefix="FULLTEXT",
        info={"not_on": "sqlite"},
    ).ddl_if(dialect=("postgresql", "mysql", "mariadb")),  # type: ignore[arg-type]  # the stub lacks the tuple
    comment="The full-text index: one row a message that is on the path, as codes of its words.",
    **_MARIADB,
)

__all__ = (
    "checkpoints",
    "conversations",
    "events",
    "lanes",
    "log_heads",
    "messages",
    "metadata",
    "origins",
    "owners",
    "search",
)
