"""Selects: the statement that reads a window of messages."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from letopis.store.asking import Shape
from letopis.store.schema import conversations, events, lanes, messages
from letopis.store.vocabulary import MessageAppended


def messages_select(shape: Shape, *, as_of: bool = False) -> sa.Select[Any]:
    """Return the select of a window: each message with the events of its origin, content and delivery.

    :param as_of: those that were there, or on the path, after the version that is bound as ``as_of``.
    """
    return whole(_page(sa.select(messages), shape, as_of=as_of))


def _page(page: sa.Select[Any], shape: Shape, *, as_of: bool = False) -> sa.Select[Any]:
    """Return a select of messages, of those of a window alone."""
    # The page is cut out of the small index first. As one flat join, SQLite and MariaDB begin with the events and sort.
    page = page.where(
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
        page = page.limit(sa.bindparam("limit") if shape.limit is None else sa.literal_column(str(shape.limit)))
    return page


def plain_select(shape: Shape, *, stands: bool = False) -> sa.Select[Any]:
    """Return the select of a window, each message with what most have.

    ``more`` tells that a message has something else, which only :func:`whole` returns.

    It takes half the time of :func:`messages_select`, because most of what that returns is NULL nearly always.

    :param stands: with each, as a second statement would cost more: how far an outbox's lane has got, the version of
        the conversation, and whether that is a fork.
    """
    # As narrow as can be: MariaDB writes the page into a table, with room for all that each column might hold.
    narrow: Any = sa.select(
        messages.c.partition,
        messages.c.conversation_id,
        messages.c.version,
        sa.or_(
            messages.c.left_at.is_not(None),
            messages.c.redacted_at.is_not(None),
            messages.c.content_version != messages.c.version,
            messages.c.delivery_version.is_not(None),
            messages.c.reactions.is_not(None),
        ).label("more"),
    )
    m = _page(narrow, shape).subquery("m")
    e = events.alias("e")
    more = sa.or_(
        m.c.more,
        e.c.digest.is_(None),
        e.c.type != MessageAppended.type,
        e.c.schema_version != MessageAppended.schema_version,
    )
    columns: list[sa.ColumnElement[Any]] = [
        m.c.version,
        e.c.event_id,
        e.c.origin_id,
        e.c.sequence,
        e.c.data,
        e.c.occurred_at,
        e.c.recorded_at,
        more.label("more"),
    ]
    source = m.join(e, _event_at(e, m, m.c.version))
    if stands:
        standing = _standing().subquery("s")
        columns += [standing.c.delivered, standing.c.seen, standing.c.fork]
        source = source.join(standing, standing.c.partition == m.c.partition)
    found: sa.Select[Any] = sa.select(*columns).select_from(source)
    return _by_version(found, e)


def _standing() -> sa.Select[Any]:
    lane = sa.and_(
        lanes.c.partition == conversations.c.partition,
        lanes.c.conversation_id == conversations.c.conversation_id,
        lanes.c.origin_id == sa.bindparam("origin"),
    )
    columns: Any = sa.select(
        conversations.c.partition,
        sa.func.coalesce(lanes.c.sequence, 0).label("delivered"),
        conversations.c.version.label("seen"),
        conversations.c.forked_from_id.is_not(None).label("fork"),
    )
    found: sa.Select[Any] = columns.select_from(conversations.outerjoin(lanes, lane)).where(
        conversations.c.partition == sa.bindparam("partition"),
        conversations.c.conversation_id == sa.bindparam("conversation"),
    )
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
    return _by_version(found, e, c, d)


def _by_version(select: sa.Select[Any], *looked_up: Any) -> sa.Select[Any]:
    """Return a select that finds events by their versions, whatever MariaDB believes of the table.

    While its statistics are those of an empty table, it takes the index of the log for as good, and reads a whole
    partition for each message.
    """
    for event in looked_up:
        for dialect in ("mysql", "mariadb"):
            select = select.with_hint(event, "FORCE INDEX (uq_letopis_events_version)", dialect)
    return select


def _event_at(event: Any, m: Any, version: Any) -> sa.ColumnElement[bool]:
    return sa.and_(
        event.c.partition == m.c.partition,
        event.c.conversation_id == m.c.conversation_id,
        event.c.version == version,
    )
