"""Selects: the statement that reads a window of messages."""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa

from letopis.store.schema import conversations, events, messages
from letopis.store.vocabulary import MessageAppended


class Shape(NamedTuple):
    """What a window asks for, without the values.

    :ivar last: the newest, not the oldest. ``limited``: only so many. ``before``, ``after``: of these versions.
    :ivar every: those that have left the path too.
    """

    last: bool
    limited: bool
    before: bool
    after: bool
    every: bool


def messages_select(shape: Shape, *, as_of: bool = False) -> sa.Select[Any]:
    """Return the select of a window: each message with the events of its origin, content and delivery.

    :param as_of: those that were there, or on the path, after the version that is bound as ``as_of``.
    """
    return whole(_page(shape, as_of=as_of))


def _page(shape: Shape, *, as_of: bool = False) -> sa.Select[Any]:
    """Return the select of the messages of a window alone."""
    # The page is cut out of the small index first. As one flat join, SQLite and MariaDB begin with the events and sort.
    page = sa.select(messages).where(
        messages.c.partition == sa.bindparam("partition"), messages.c.conversation_id == sa.bindparam("conversation")
    )
    if as_of:
        page = page.where(messages.c.version <= sa.bindparam("as_of"))
    if shape.every and not as_of:
        # Of a deleted conversation, nothing is on the path, and nothing else is shown either.
        page = page.where(
            sa.select(conversations.c.state)
            .where(
                conversations.c.partition == sa.bindparam("partition"),
                conversations.c.conversation_id == sa.bindparam("conversation"),
            )
            .scalar_subquery()
            != "deleted"
        )
    elif not shape.every:
        stays = messages.c.left_at.is_(None)
        page = page.where(sa.or_(stays, messages.c.left_at > sa.bindparam("as_of")) if as_of else stays)
    if shape.before:
        page = page.where(messages.c.version < sa.bindparam("before"))
    if shape.after:
        page = page.where(messages.c.version > sa.bindparam("after"))
    if shape.limited:
        page = page.order_by(messages.c.version.desc() if shape.last else messages.c.version)
        page = page.limit(sa.bindparam("limit"))
    return page


def plain_select(shape: Shape) -> sa.Select[Any]:
    """Return the select of a window, each message with what most have.

    ``more`` tells that a message has something else, which only :func:`whole` returns.

    It takes half the time of :func:`messages_select`, because most of what that returns is NULL nearly always.
    """
    m = _page(shape).subquery("m")
    e = events.alias("e")
    more = sa.or_(
        m.c.left_at.is_not(None),
        m.c.redacted_at.is_not(None),
        m.c.content_version != m.c.version,
        m.c.delivery_version.is_not(None),
        m.c.reactions.is_not(None),
        e.c.digest.is_(None),
        e.c.type != MessageAppended.type,
        e.c.schema_version != MessageAppended.schema_version,
    )
    columns: Any = sa.select(
        m.c.version,
        e.c.event_id,
        e.c.origin_id,
        e.c.sequence,
        e.c.data,
        e.c.occurred_at,
        e.c.recorded_at,
        more.label("more"),
    )
    found: sa.Select[Any] = columns.select_from(m.join(e, _event_at(e, m, m.c.version)))
    return found


def versions_select() -> sa.Select[Any]:
    """Return the select of the messages of the versions that are bound as a list in JSON; on SQLite."""
    versions = sa.func.json_each(sa.bindparam("versions", type_=sa.Text)).table_valued("value")
    return whole(
        sa.select(messages).where(
            messages.c.partition == sa.bindparam("partition"),
            messages.c.conversation_id == sa.bindparam("conversation"),
            messages.c.version.in_(sa.select(versions.c.value)),
        )
    )


def whole(page: sa.Select[Any]) -> sa.Select[Any]:
    """Return the select of messages with the events of their origin, content and delivery.

    :param page: of the messages alone.
    """
    m = page.subquery("m")
    e, c, d = events.alias("e"), events.alias("c"), events.alias("d")
    # Not ordered: whoever reads sorts a page faster than a database does.
    columns: Any = sa.select(
        m.c.conversation_id.label("m_conversation_id"),
        m.c.version.label("m_version"),
        m.c.message_id.label("m_message_id"),
        m.c.role.label("m_role"),
        m.c.left_at.label("m_left_at"),
        m.c.redacted_at.label("m_redacted_at"),
        m.c.content_version.label("m_content_version"),
        m.c.delivery_version.label("m_delivery_version"),
        m.c.reactions.label("m_reactions"),
        e.c.event_id.label("e_event_id"),
        e.c.origin_id.label("e_origin_id"),
        e.c.sequence.label("e_sequence"),
        e.c.type.label("e_type"),
        e.c.schema_version.label("e_schema_version"),
        e.c.data.label("e_data"),
        e.c.digest.label("e_digest"),
        e.c.occurred_at.label("e_occurred_at"),
        e.c.recorded_at.label("e_recorded_at"),
        c.c.type.label("c_type"),
        c.c.schema_version.label("c_schema_version"),
        c.c.data.label("c_data"),
        c.c.digest.label("c_digest"),
        d.c.type.label("d_type"),
        d.c.schema_version.label("d_schema_version"),
        d.c.data.label("d_data"),
    )
    found: sa.Select[Any] = columns.select_from(
        m.join(e, _event_at(e, m, m.c.version))
        .outerjoin(c, sa.and_(m.c.content_version != m.c.version, _event_at(c, m, m.c.content_version)))
        .outerjoin(d, _event_at(d, m, m.c.delivery_version))
    )
    return found


def _event_at(event: Any, m: Any, version: Any) -> sa.ColumnElement[bool]:
    return sa.and_(
        event.c.partition == m.c.partition,
        event.c.conversation_id == m.c.conversation_id,
        event.c.version == version,
    )
