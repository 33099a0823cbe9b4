"""Build the statements that a rebuild reads and writes rows with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from letopis.store.database.dialects import Dialect
from letopis.store.database.schema import conversations, events, messages
from letopis.store.model.event_types import ConversationDeleted
from letopis.store.read.task_marks import erased, left_by_mark, message_columns
from letopis.store.rules.reducer import PROJECTION_RULES


class RebuildStatements:
    """The statements, built once a store.

    :ivar row: one conversation; ``locked_row`` locks it.
    :ivar events: a page of a conversation's events after a version.
    :ivar messages: a page of a conversation's messages after a version; ``messages_of_deleted`` if it was deleted.
    :ivar every: a page of the conversations that this release may rebuild.
    :ivar older: a page of those whose rows older rules made.
    :ivar lost: a page of those that have events but no row.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.row = sa.select(conversations).where(*_of(conversations))
        self.locked_row: Any = dialect.locked(self.row)
        # A pending task counts as carried out.
        self.events = (
            sa.select(*(_salt() if column.name == "salt" else column for column in events.c))
            .where(*_of(events), events.c.version > sa.bindparam("after"))
            .order_by(events.c.version)
            .limit(sa.bindparam("limit"))
        )
        columns = message_columns(messages)
        self.messages = _page_of_messages(columns)
        # In a deleted conversation, messages that a pending task takes off the path have no reactions either.
        reactions = sa.case((left_by_mark(messages).is_(None), messages.c.reactions)).label("reactions")
        self.messages_of_deleted = _page_of_messages(
            [reactions if chosen.key == "reactions" else chosen for chosen in columns]
        )
        self.delete_messages = sa.delete(messages).where(*_of(messages), dialect.among(messages.c.version, "versions"))
        self.highest_number = sa.select(sa.func.max(conversations.c.number)).where(
            conversations.c.owner_id == sa.bindparam("owner")
        )
        self.every = _keys_of(conversations).where(conversations.c.rules <= PROJECTION_RULES)
        self.older = _keys_of(conversations).where(conversations.c.rules < PROJECTION_RULES)
        # Every conversation begins with version 1.
        same = sa.and_(
            conversations.c.partition == events.c.partition, conversations.c.conversation_id == events.c.conversation_id
        )
        self.lost = (
            _keys_of(events)
            .select_from(events.outerjoin(conversations, same))
            .where(events.c.version == 1, conversations.c.conversation_id.is_(None))
        )


def _salt() -> sa.ColumnElement[Any]:
    kept = sa.or_(erased(events).is_(None), events.c.type == ConversationDeleted.type)
    return sa.case((kept, events.c.salt)).label("salt")


def _page_of_messages(columns: Sequence[sa.ColumnElement[Any]]) -> sa.Select[Any]:
    return (
        sa.select(*columns)
        .where(*_of(messages), messages.c.version > sa.bindparam("after"))
        .order_by(messages.c.version)
        .limit(sa.bindparam("limit"))
    )


def _of(table: sa.Table) -> tuple[sa.ColumnElement[bool], ...]:
    return (table.c.partition == sa.bindparam("partition"), table.c.conversation_id == sa.bindparam("conversation"))


def _keys_of(table: sa.Table) -> Any:
    """Return the select of a page of conversations after one."""
    partition, name = table.c.partition, table.c.conversation_id
    return (
        sa.select(partition, name)
        .where(
            partition >= sa.bindparam("partition"),
            sa.or_(
                partition > sa.bindparam("partition"),
                sa.and_(partition == sa.bindparam("partition"), name > sa.bindparam("conversation")),
            ),
        )
        .order_by(partition, name)
        .limit(sa.bindparam("limit"))
    )
