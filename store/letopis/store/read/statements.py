"""Build the selects of a reader once each."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from letopis.store.database.dialects import Dialect
from letopis.store.database.schema import conversations, events, lanes, log_heads, messages, owners
from letopis.store.read.paging import Window, WindowShape
from letopis.store.read.queries import messages_select, path_select, plain_select, whole
from letopis.store.read.task_marks import erased, event_columns, message_columns

MAX_FIXED_LIMITS: Final = 32
"""Statements with a limit written into them; callers that page with more different limits have theirs bound."""


class ReadStatements:
    """The selects of a reader, each built and compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        of_it = (
            conversations.c.partition == sa.bindparam("partition"),
            conversations.c.conversation_id == sa.bindparam("conversation"),
        )
        self.conversation = sa.select(conversations).where(*of_it)
        # A statement of its own, as no conversation names the partition of its owner.
        self.markers = sa.select(owners.c.owner_id, owners.c.active_conversation_id).where(
            dialect.among(owners.c.partition, "partitions"), dialect.among(owners.c.owner_id, "owners")
        )
        lane = sa.and_(
            lanes.c.partition == conversations.c.partition,
            lanes.c.conversation_id == conversations.c.conversation_id,
            lanes.c.origin_id == sa.bindparam("origin"),
        )
        named = dialect.among(messages.c.message_id, "ids")
        self.path_of, self.places_of = path_select(named), path_select(named, counted=False)
        self._among_states = dialect.among(conversations.c.state, "states")
        self.view = (
            sa.select(conversations, lanes.c.sequence).select_from(conversations.outerjoin(lanes, lane)).where(*of_it)
        )
        self._among_types = dialect.among(events.c.type, "types")
        self.named = whole(
            sa.select(*message_columns(messages)).where(
                messages.c.partition == sa.bindparam("partition"),
                messages.c.conversation_id == sa.bindparam("conversation"),
                dialect.among(messages.c.message_id, "ids"),
            )
        )
        self.conversations_of = (
            sa.select(messages.c.conversation_id)
            .where(messages.c.message_id == sa.bindparam("message"))
            .distinct()
            .limit(sa.bindparam("limit"))
        )
        self.owned = sa.select(conversations.c.conversation_id, conversations.c.updated_at).where(
            dialect.among(conversations.c.partition, "partitions"),
            dialect.among(conversations.c.conversation_id, "conversations"),
            conversations.c.owner_id == sa.bindparam("owner"),
        )
        self.log = (
            sa.select(*event_columns(events))
            .where(events.c.partition == sa.bindparam("partition"), events.c.position > sa.bindparam("after"))
            .order_by(events.c.position)
            .limit(sa.bindparam("limit"))
        )
        self.heads = (
            sa.select(log_heads.c.partition, log_heads.c.position)
            .where(dialect.among(log_heads.c.partition, "partitions"))
            .order_by(log_heads.c.partition)
        )
        self.digests = sa.select(
            events.c.event_id, events.c.digest, sa.case((erased(events).is_(None), events.c.salt)).label("salt")
        ).where(
            events.c.partition == sa.bindparam("partition"),
            events.c.conversation_id == sa.bindparam("conversation"),
            dialect.among(events.c.event_id, "ids"),
        )
        self.lanes = sa.select(lanes.c.conversation_id, lanes.c.sequence, lanes.c.floor).where(
            dialect.among(lanes.c.partition, "partitions"),
            dialect.among(lanes.c.conversation_id, "conversations"),
            lanes.c.origin_id == sa.bindparam("origin"),
        )
        self._windows: dict[tuple[WindowShape, bool], sa.Select[Any]] = {}
        self._plain_windows: dict[tuple[WindowShape, bool], sa.Select[Any]] = {}

    def conversations(self, *, owned: bool, going_on: bool, oldest_first: bool = False) -> sa.Executable:
        """Return the select of a page of conversations.

        :param owned: those of one owner.
        :param going_on: those after a place in the list.
        """
        updated, name = conversations.c.updated_at, conversations.c.conversation_id
        statement = sa.select(conversations).where(self._among_states)
        if owned:
            statement = statement.where(conversations.c.owner_id == sa.bindparam("owner"))
        # The first condition is what an index can use; MariaDB makes no range of a comparison of pairs.
        if going_on and oldest_first:
            statement = statement.where(
                updated >= sa.bindparam("updated"),
                sa.or_(
                    updated > sa.bindparam("updated"),
                    sa.and_(updated == sa.bindparam("updated"), name > sa.bindparam("conversation")),
                ),
            )
        elif going_on:
            statement = statement.where(
                updated <= sa.bindparam("updated"),
                sa.or_(
                    updated < sa.bindparam("updated"),
                    sa.and_(updated == sa.bindparam("updated"), name < sa.bindparam("conversation")),
                ),
            )
        order = (updated, name) if oldest_first else (updated.desc(), name.desc())
        return statement.order_by(*order).limit(sa.bindparam("limit"))

    def events(self, *, newest: bool, typed: bool) -> sa.Executable:
        """Return the select of events of a conversation between two versions.

        :param newest: the newest first.
        :param typed: of some types alone.
        """
        statement = sa.select(*event_columns(events)).where(
            events.c.partition == sa.bindparam("partition"),
            events.c.conversation_id == sa.bindparam("conversation"),
            events.c.version > sa.bindparam("after"),
            events.c.version < sa.bindparam("before"),
        )
        if typed:
            statement = statement.where(self._among_types)
        order = events.c.version.desc() if newest else events.c.version
        return statement.order_by(order).limit(sa.bindparam("limit"))

    def window(self, window: Window, *, with_head: bool = False) -> sa.Executable:
        """Return the select of a window: each message with the events of its origin, content and delivery.

        :param with_head: with each message, the head of the conversation.
        """
        key = (window.shape, with_head)
        if (found := self._windows.get(key)) is None:
            found = self._windows[key] = messages_select(window.shape, with_head=with_head)
        return found

    def plain_window(self, window: Window, *, with_head: bool = False) -> sa.Executable:
        """Return the select of a window, each message with what most of them have alone."""
        # With the limit written into it: PostgreSQL plans a statement again for each limit that is bound.
        key = (window.shape._replace(limit=window.values.get("limit")), with_head)
        if key not in self._plain_windows and len(self._plain_windows) >= MAX_FIXED_LIMITS:
            key = (window.shape, with_head)
        if (found := self._plain_windows.get(key)) is None:
            found = self._plain_windows[key] = plain_select(key[0], with_head=with_head)
        return found
