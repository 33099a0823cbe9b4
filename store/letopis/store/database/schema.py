"""Describe the tables of the history store, the same on SQLite, PostgreSQL and MariaDB."""

# Every key of a conversation's tables and of the owners' starts with the partition, so that these can be partitioned or
# distributed without change. Times are UTC microseconds since 1970. Identifiers compare byte by byte.

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import event

metadata: Final = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _exact_text(length: int, *, mariadb: str) -> sa.String:
    """Return the type of text that compares byte by byte."""
    return (
        sa.String(length)
        .with_variant(sa.String(length, collation="C"), "postgresql")
        .with_variant(sa.String(length, collation=mariadb), "mysql", "mariadb")
    )


Identifier: Final = _exact_text(255, mariadb="utf8mb4_nopad_bin")
"""An id, case-sensitive. ``nopad`` because ``utf8mb4_bin`` ignores trailing spaces when it compares."""
Name: Final = _exact_text(64, mariadb="ascii_bin")
"""A name that Letopis defines: an event type, a role, a state."""
LaneName: Final = _exact_text(264, mariadb="utf8mb4_nopad_bin")
"""The name of a lane or a scope of records: an id or, for records, one with a mark before it and, for a space, a number
behind it."""


class LongText(sa.types.TypeDecorator[str]):
    """Text of any length: MariaDB's own TEXT ends at 64 KiB."""

    # The types of a server are imported where they are used: a bot on SQLite needs none of them.
    impl = sa.Text
    cache_ok = True

    def __init__(self, charset: str, *, tsvector: bool = False) -> None:
        super().__init__()
        self.charset = charset
        self.tsvector = tsvector  # on PostgreSQL in its type for full-text search

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects.mysql import LONGTEXT

            return dialect.type_descriptor(LONGTEXT(charset=self.charset, collation=f"{self.charset}_bin"))
        if dialect.name == "postgresql" and self.tsvector:
            from sqlalchemy.dialects.postgresql import TSVECTOR

            return dialect.type_descriptor(TSVECTOR())
        return super().load_dialect_impl(dialect)


Json: Final = LongText("utf8mb4")
"""JSON text as orjson wrote it. Not a JSON column: those reorder keys, which a prompt cache would notice (ADR 0036)."""


class Uuid16(sa.types.TypeDecorator[UUID]):
    """A UUID in 16 bytes; on PostgreSQL in its own type. Always a :class:`~uuid.UUID` in Python."""

    impl = sa.LargeBinary(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(sa.Uuid())
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(sa.BINARY(16))
        return dialect.type_descriptor(sa.LargeBinary(16))

    def process_bind_param(self, value: UUID | None, dialect: sa.Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else value.bytes

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> UUID | None:
        if value is None or dialect.name == "postgresql":
            return value  # type: ignore[no-any-return]  # the driver made the UUID
        return UUID(bytes=bytes(value))


class MediumBlob(sa.types.TypeDecorator[bytes]):
    """Bytes, up to 16 MiB: MariaDB's own BLOB ends at 64 KiB."""

    impl = sa.LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects.mysql import MEDIUMBLOB

            return dialect.type_descriptor(MEDIUMBLOB())
        return super().load_dialect_impl(dialect)


Digest: Final = sa.LargeBinary(32).with_variant(sa.BINARY(32), "mysql", "mariadb")
Salt: Final = sa.LargeBinary(16).with_variant(sa.BINARY(16), "mysql", "mariadb")
Timestamp: Final = sa.BigInteger()
"""UTC microseconds since 1970."""
Counter: Final = sa.BigInteger()
Codes: Final = LongText("ascii", tsvector=True)
"""Codes of words, for a full-text index; see :mod:`letopis.store.search.analysis`."""


def _table(name: str, *columns: sa.schema.SchemaItem, comment: str, not_on: str | None = None) -> sa.Table:
    return sa.Table(name, metadata, *columns, comment=comment, info={"not_on": not_on})


store: Final = _table(
    "letopis_store",
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("store_id", Uuid16(), nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    # Where the history was moved to, without secrets; NULL while it is here.
    sa.Column("moved_to", sa.Text),
    sa.Column("moved_at", Timestamp),
    comment="One row: the identity of this store, which backups, replicas and moves keep.",
)

log_heads: Final = _table(
    "letopis_log_heads",
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", Counter, nullable=False),
    # A LogState; deliveries are accepted at 0 only. In the row that every apply locks, so none commits after it is set.
    sa.Column("closed", sa.SmallInteger, nullable=False, server_default="0"),
    # The number of the last erasure, the same in each row: an outbox that lacks it has its delivery refused.
    sa.Column("erasures", Counter, nullable=False, server_default="0"),
    # Its id: a store that was restored from a backup gives a number out again.
    sa.Column("erasure_id", Uuid16()),
    comment="One row a partition, fixed when the store is created: the position given out last.",
)

origins: Final = _table(
    "letopis_origins",
    sa.Column("origin_id", Uuid16(), primary_key=True),
    sa.Column("epoch", Counter, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("first_seen_at", Timestamp, nullable=False),
    sa.Column("last_seen_at", Timestamp, nullable=False),
    # The last erasure that it has carried out and acknowledged.
    sa.Column("erasures", Counter, nullable=False, server_default="0"),
    comment="The outbox files that deliver here.",
)

erasures: Final = _table(
    "letopis_erasures",
    sa.Column("number", Counter, primary_key=True, autoincrement=False),
    # Kept when it is recorded again, under another number, in a store that was restored from before it.
    sa.Column("erasure_id", Uuid16(), nullable=False),
    # Whose words: `owner` or `person`, and the id.
    sa.Column("kind", Name, nullable=False),
    sa.Column("subject", Identifier, nullable=False),
    # What becomes of the conversations: `reset` or `delete`.
    sa.Column("how", Name, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("requested_by", sa.Text),
    # The outbox through which it was asked for.
    sa.Column("origin_id", Uuid16()),
    # 1: with the answers to a person's messages.
    sa.Column("answers", sa.SmallInteger, nullable=False, server_default="0"),
    # The last position of each partition of the log when it was recorded: what comes later was said later.
    sa.Column("positions", Json, nullable=False),
    sa.Column("recorded_at", Timestamp, nullable=False),
    comment="Erasures of all that someone said, in order: every outbox carries each out in its own file.",
)

holds: Final = _table(
    "letopis_holds",
    # What is held: an `owner` or a `conversation`, and the id.
    sa.Column("kind", Name, primary_key=True),
    sa.Column("subject", Identifier, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("requested_by", sa.Text),
    sa.Column("held_at", Timestamp, nullable=False),
    comment="What must not be erased until it is released.",
)

lanes: Final = _table(
    "letopis_lanes",
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    # A lane of records has a name that begins with U+0001.
    sa.Column("conversation_id", LaneName, primary_key=True),
    sa.Column("origin_id", Uuid16(), primary_key=True),
    sa.Column("sequence", Counter, nullable=False),
    # Sequences up to it that the log does not have, because another place held the same event already.
    sa.Column("duplicates", Counter, nullable=False),
    # The ledger of a lane of records begins after it: its outbox can send nothing again from before.
    sa.Column("floor", Counter, nullable=False),
    # Records that its deliveries have added, less those that they have removed: the lanes of a partition add up to its
    # records. A conversation that is deleted removes its records in its own lane.
    sa.Column("records", Counter, nullable=False),
    comment="How far each outbox has got in each lane: what makes a delivery take effect once.",
)

conversations: Final = _table(
    "letopis_conversations",
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("conversation_id", Identifier, primary_key=True),
    sa.Column("owner_id", Identifier),
    sa.Column("number", Counter),
    sa.Column("title", Json),
    sa.Column("state", Name, nullable=False),
    sa.Column("version", Counter, nullable=False),
    sa.Column("message_count", Counter, nullable=False),
    sa.Column("tokens", Counter, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp, nullable=False),
    # A fork reads its parent up to a version or, if that was unknown when it was created, up to an event.
    sa.Column("forked_from_id", Identifier),
    sa.Column("forked_from_version", Counter),
    sa.Column("metadata", Json),
    sa.Column("forked_from_event", Uuid16()),
    # Whether the parent's messages are still on the path, and the last one that is; NULL is all.
    sa.Column("inherits", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("inherited_to", Identifier),
    # Events of a deleted conversation up to here keep their content, because forks read them.
    sa.Column("retained", Counter, nullable=False, server_default="0"),
    # The rules of projection that made this row and its messages; `letopis db rebuild` updates older ones.
    sa.Column("rules", sa.SmallInteger, nullable=False, server_default="1"),
    sa.Column("tags", Json),
    # The version up to which retention has taken the content away.
    sa.Column("trimmed", Counter, nullable=False, server_default="0"),
    # The version up to which a reset or the deletion has erased everything.
    sa.Column("reset_to", Counter, nullable=False, server_default="0"),
    # An owner's list, newest activity first, by keyset.
    sa.Index("ix_letopis_conversations_owner", "owner_id", "updated_at", "conversation_id"),
    sa.Index("ix_letopis_conversations_updated", "updated_at", "conversation_id"),
    sa.Index("ix_letopis_conversations_forked", "forked_from_id"),
    comment="One row a conversation, folded from its events.",
)

events: Final = _table(
    "letopis_events",
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", Counter, primary_key=True, autoincrement=False),
    sa.Column("conversation_id", Identifier, nullable=False),
    sa.Column("version", Counter, nullable=False),
    sa.Column("event_id", Uuid16(), nullable=False),
    sa.Column("origin_id", Uuid16(), nullable=False),
    sa.Column("sequence", Counter, nullable=False),
    sa.Column("type", Name, nullable=False),
    sa.Column("schema_version", sa.SmallInteger, nullable=False),
    sa.Column("data", Json, nullable=False),
    sa.Column("metadata", Json),
    sa.Column("digest", Digest, nullable=False),
    # Erased with the content, while the digest stays.
    sa.Column("salt", Salt),
    sa.Column("occurred_at", Timestamp, nullable=False),
    sa.Column("recorded_at", Timestamp, nullable=False),
    sa.Index("uq_letopis_events_version", "partition", "conversation_id", "version", unique=True),
    sa.Index("uq_letopis_events_event_id", "event_id", "partition", "conversation_id", unique=True),
    comment="The log. Rows are never changed but by redaction.",
)

messages: Final = _table(
    "letopis_messages",
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("conversation_id", Identifier, primary_key=True),
    sa.Column("version", Counter, primary_key=True, autoincrement=False),
    sa.Column("message_id", Identifier, nullable=False),
    sa.Column("content_version", Counter, nullable=False),
    sa.Column("delivery_version", Counter),
    sa.Column("role", Name, nullable=False),
    sa.Column("state", Name, nullable=False),
    # The version at which it left the active path; its own if it was never on it. NULL: it is on the path.
    sa.Column("left_at", Counter),
    sa.Column("redacted_at", Counter),
    sa.Column("reactions", Json),
    sa.Column("author", Identifier),
    # The id leads, so that a message is found without its conversation.
    sa.Index("ix_letopis_messages_message_id", "message_id", "conversation_id", "partition"),
    # A person's messages, in all conversations. Rows without an author are in no index, but for MariaDB's.
    sa.Index("ix_letopis_messages_author", "author", "partition", "conversation_id", "version"),
    comment="An index over the log: which event holds a message, its current content and its delivery.",
)

owners: Final = _table(
    "letopis_owners",
    # Of the owner's id, as a conversation's partition is of its own.
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner_id", Identifier, primary_key=True),
    sa.Column("active_conversation_id", Identifier),
    # The conversation's, so that a join names it.
    sa.Column("active_partition", sa.Integer),
    sa.Column("next_number", Counter, nullable=False),
    # The outbox that moved the marker last, and its order there: earlier activations have no effect.
    sa.Column("activated_by", Uuid16()),
    sa.Column("activated_order", Counter),
    comment="One row an owner: the active conversation, and the number that the next one gets.",
)

checkpoints: Final = _table(
    "letopis_checkpoints",
    sa.Column("name", Name, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", Counter, nullable=False),
    # Events up to here are replayed: no side effects.
    sa.Column("replay_to", Counter, nullable=False),
    sa.Column("updated_at", Timestamp, nullable=False),
    comment="How far each version of each catch-up projection has read each partition of the log.",
)

search: Final = _table(
    "letopis_search",
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    # The rules that made the codes; a new generation is indexed beside the old one.
    sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("conversation_id", Identifier, primary_key=True),
    sa.Column("version", Counter, primary_key=True, autoincrement=False),
    sa.Column("content_version", Counter, nullable=False),
    # Of the event that appended the message, not of a later edit: pages end at it.
    sa.Column("position", Counter, nullable=False),
    sa.Column("occurred_at", Timestamp, nullable=False),
    # The owner and the words; both empty if it must no longer be found.
    sa.Column("scope", Codes, nullable=False),
    sa.Column("document", Codes, nullable=False),
    sa.Index("ix_letopis_search_words", "scope", "document"),
    # Of a word that is in very many messages, the newest are ranked.
    sa.Index("ix_letopis_search_newest", "occurred_at", "position"),
    comment="The full-text index: one row a message that is on the path, as codes of its words.",
    # There the migration makes it with a row number, which the virtual table letopis_search_words refers to.
    not_on="sqlite",
)

tasks: Final = _table(
    "letopis_tasks",
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("conversation_id", Identifier, primary_key=True),
    sa.Column("kind", Name, primary_key=True),
    sa.Column("version", Counter, primary_key=True, autoincrement=False),
    # Pending are the versions after the one and up to the other.
    sa.Column("after", Counter, nullable=False),
    sa.Column("upto", Counter, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    comment="What events did to very many rows: heeded by readers at once, carried out in steps.",
)

RecordKey: Final = sa.LargeBinary(512).with_variant(sa.VARBINARY(512), "mysql", "mariadb")
"""A namespace or a key, encoded: bytes compare alike on all three, and a prefix is one range."""
Value: Final = MediumBlob()

records: Final = _table(
    "letopis_records",
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    # Derived from scope, namespace and key, so that what belongs to a record has a short key.
    sa.Column("record_id", Uuid16(), primary_key=True),
    sa.Column("scope", LaneName, nullable=False),
    sa.Column("namespace", RecordKey, nullable=False),
    sa.Column("record_key", RecordKey, nullable=False),
    sa.Column("revision", Uuid16(), nullable=False),
    sa.Column("media", Name, nullable=False),
    sa.Column("size", Counter, nullable=False),
    # Where the value is in parts, their number; otherwise 0.
    sa.Column("parts", sa.Integer, nullable=False),
    sa.Column("body", Value),
    sa.Column("tags", Json),
    # Over all of the row, under the salt of its put.
    sa.Column("digest", Digest, nullable=False),
    sa.Column("salt", Salt, nullable=False),
    sa.Column("updated_at", Timestamp, nullable=False),
    sa.Index("uq_letopis_records_key", "partition", "scope", "namespace", "record_key", unique=True),
    comment="What frameworks keep beside the messages: the last version of each record.",
)

record_parts: Final = _table(
    "letopis_record_parts",
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("record_id", Uuid16(), primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", Value, nullable=False),
    comment="The values of records that are too large for a row.",
)

record_tags: Final = _table(
    "letopis_record_tags",
    sa.Column("name", RecordKey, primary_key=True),
    sa.Column("value", RecordKey, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("record_id", Uuid16(), primary_key=True),
    # A put replaces the tags of the record that it replaces.
    sa.Index("ix_letopis_record_tags_record", "partition", "record_id"),
    comment="The tags of records, to find them across scopes.",
)

record_ledger: Final = _table(
    "letopis_record_ledger",
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("conversation_id", LaneName, primary_key=True),
    sa.Column("origin_id", Uuid16(), primary_key=True),
    sa.Column("sequence", Counter, primary_key=True, autoincrement=False),
    sa.Column("event_id", Uuid16(), nullable=False),
    sa.Column("digest", Digest, nullable=False),
    sa.Column("superseded", sa.SmallInteger, nullable=False),
    comment="The changes of records that an outbox could still send again: what makes each take effect once.",
)


@event.listens_for(metadata, "before_create")
def _set_server_options(target: sa.MetaData, connection: sa.Connection, **_: Any) -> None:
    """Set what only a server's own dialect knows: as an argument of a table it would import that dialect at once."""
    dialect = connection.dialect.name
    words = next(index for index in search.indexes if index.name == "ix_letopis_search_words")
    authors = next(index for index in messages.indexes if index.name == "ix_letopis_messages_author")
    if dialect in ("sqlite", "postgresql"):
        authors.dialect_kwargs[f"{dialect}_where"] = messages.c.author.is_not(None)
    if dialect == "postgresql":
        words.dialect_kwargs.update(postgresql_using="gin", postgresql_with={"fastupdate": "off"})
    elif dialect in ("mysql", "mariadb"):
        words.dialect_kwargs.update({f"{dialect}_prefix": "FULLTEXT"})
        for table in target.tables.values():
            table.dialect_kwargs.update(
                {f"{dialect}_engine": "InnoDB", f"{dialect}_charset": "utf8mb4", f"{dialect}_collate": "utf8mb4_bin"}
            )


def of_conversation(table: Any) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions that select the rows of one conversation: ``:partition`` and ``:conversation``."""
    return table.c.partition == sa.bindparam("partition"), table.c.conversation_id == sa.bindparam("conversation")


def same_conversation(left: Any, right: Any, *also: str) -> sa.ColumnElement[bool]:
    """Return the condition that rows of two tables are of one conversation, and equal in other columns ``also``."""
    return sa.and_(*(left.c[name] == right.c[name] for name in ("partition", "conversation_id", *also)))
