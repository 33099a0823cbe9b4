"""Build the selects of windows of messages and of their positions on the path."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from letopis.store.database.schema import conversations, events, lanes, messages
from letopis.store.model.event_types import MessageAppended
from letopis.store.read.paging import WindowShape
from letopis.store.read.task_marks import any_mark, erased, is_on_path, left_at, message_columns, shown_digest
from letopis.store.rules.fold import PathPosition


def messages_select(shape: WindowShape, *, as_of: bool = False, with_head: bool = False) -> sa.Select[Any]:
    """Return the select of a window: each message with the events of its origin, content and delivery.

    :param as_of: read what was there, or on the path, after the version that is bound as ``as_of``.
    :param with_head: with each message, the head of the conversation, as for :func:`plain_select`.
    """
    # A message on the path has left it neither by its row nor by a mark.
    columns: Any = sa.select(*message_columns(messages)) if as_of or shape.every else sa.select(messages)
    return whole(_page(columns, shape, as_of=as_of), with_head=with_head, past=as_of)


def _page(page: sa.Select[Any], shape: WindowShape, *, as_of: bool = False, marks: bool = True) -> sa.Select[Any]:
    """Return a select of messages, restricted to a window.

    :param marks: whether messages that have left the path by a mark are left out, too.
    """
    # The page is cut out of the small index first. As one flat join, SQLite and MariaDB begin with the events and sort.
    page = page.where(
        messages.c.partition == sa.bindparam("partition"), messages.c.conversation_id == sa.bindparam("conversation")
    )
    if as_of:
        page = page.where(messages.c.version <= sa.bindparam("as_of"))
    if shape.every and not as_of:
        # A deleted conversation shows nothing, also not what has left its path.
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
        on_path = is_on_path(messages) if marks else messages.c.left_at.is_(None)
        page = page.where(sa.or_(on_path, left_at(messages) > sa.bindparam("as_of")) if as_of else on_path)
    if shape.roles is not None:
        roles = (messages.c.role == sa.bindparam(f"role_{place}") for place in range(len(shape.roles)))
        page = page.where(sa.or_(sa.false(), *roles))
    if shape.prefixed:
        # Not LIKE: its wildcards and its case differ by database.
        start = sa.func.substr(messages.c.message_id, 1, sa.bindparam("prefix_length", type_=sa.Integer))
        page = page.where(start == sa.bindparam("prefix", type_=sa.String))
    if shape.before:
        page = page.where(messages.c.version < sa.bindparam("before"))
    if shape.after:
        page = page.where(messages.c.version > sa.bindparam("after"))
    if shape.limited:
        page = page.order_by(messages.c.version.desc() if shape.last else messages.c.version)
        page = page.limit(sa.bindparam("limit") if shape.limit is None else sa.literal_column(str(shape.limit)))
    return page


def plain_select(shape: WindowShape, *, with_head: bool = False) -> sa.Select[Any]:
    """Return the select of a window, each message with what most have.

    ``more`` tells that a message has something else, which only :func:`whole` returns. ``marked`` tells that the
    conversation has marks, of which this select knows nothing: then only :func:`messages_select` returns the window. It
    is the faster select, because nearly all that the others add is NULL for most messages.

    :param with_head: with each message, the columns of :func:`head_select`, as a second statement would cost more.
    """
    # As narrow as possible: MariaDB writes the page into a table, with room for the longest value of each column.
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
    m = _page(narrow, shape, marks=False).subquery("m")
    e = events.alias("e")
    more = sa.or_(
        m.c.more,
        e.c.salt.is_(None),
        e.c.type != MessageAppended.type,
        e.c.schema_version != MessageAppended.schema_version,
    )
    columns: list[sa.ColumnElement[Any]] = [
        m.c.version,
        # As the driver returns them: most callers never look at these ids.
        sa.type_coerce(e.c.event_id, sa.types.NullType()),
        sa.type_coerce(e.c.origin_id, sa.types.NullType()),
        e.c.sequence,
        e.c.data,
        e.c.occurred_at,
        e.c.recorded_at,
        more.label("more"),
        any_mark().label("marked"),
    ]
    source = m.join(e, _event_at(e, m, m.c.version))
    if with_head:
        head = head_select().subquery("s")
        columns += [head.c.delivered, head.c.seen, head.c.fork]
        source = source.join(head, head.c.partition == m.c.partition)
    found: sa.Select[Any] = sa.select(*columns).select_from(source)
    return _by_version(found, e)


def head_select() -> sa.Select[Any]:
    """Return the select of a conversation's head: partition, applied sequence of a lane, version, whether a fork."""
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


def path_select(named: sa.ColumnElement[bool], *, counted: bool = True) -> sa.Select[Any]:
    """Return the select of positions: id, version, when the path was left, how many are on it up to there, redaction.

    :param named: the condition on their ids.
    :param counted: ``False`` to return 0 as their number: counting reads the index of the whole conversation.
    """
    earlier = messages.alias("earlier")
    count = (
        sa.select(sa.func.count())
        .select_from(earlier)
        .where(
            earlier.c.partition == messages.c.partition,
            earlier.c.conversation_id == messages.c.conversation_id,
            earlier.c.version <= messages.c.version,
            is_on_path(earlier),
        )
        .scalar_subquery()
        .label("on_path_count")
    )
    last: Any = count if counted else sa.literal_column("0").label("on_path_count")
    marked = {column.name: column for column in message_columns(messages)}
    found: Any = sa.select(
        *(marked[name] for name in ("message_id", "version", "left_at")), last, marked["redacted_at"]
    )
    found = found.where(
        messages.c.partition == sa.bindparam("partition"),
        messages.c.conversation_id == sa.bindparam("conversation"),
        named,
    )
    select: sa.Select[Any] = found
    return select


def positions_from_rows(rows: Iterable[tuple[str, int, int | None, int, int | None]]) -> dict[str, PathPosition]:
    """Return the positions of messages on the path from rows of :func:`path_select`, by id."""
    found: dict[str, PathPosition] = {}
    for name, version, left, count, redacted_at in sorted(rows, key=lambda row: (row[2] is None, row[1])):
        redacted = redacted_at is not None and (name not in found or found[name].redacted)
        found[name] = PathPosition(version=version, on_path=left is None, count=count, redacted=redacted)
    return found


def whole(page: sa.Select[Any], *, with_head: bool = False, past: bool = False) -> sa.Select[Any]:
    """Return the select of messages with the events of their origin, content and delivery.

    :param page: a select of messages alone.
    :param with_head: with each message, the head of the conversation, as for :func:`plain_select`.
    :param past: with each message, whether a mark has erased the content of its event since.
    """
    m = page.subquery("m")
    e, c, d = events.alias("e"), events.alias("c"), events.alias("d")
    # Not ordered: sorting a page here is faster than in a database.
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
        shown_digest(e).label("e_digest"),
        e.c.occurred_at.label("e_occurred_at"),
        e.c.recorded_at.label("e_recorded_at"),
        c.c.type.label("c_type"),
        c.c.schema_version.label("c_schema_version"),
        c.c.data.label("c_data"),
        shown_digest(c).label("c_digest"),
        d.c.type.label("d_type"),
        d.c.schema_version.label("d_schema_version"),
        d.c.data.label("d_data"),
    )
    source: Any = (
        m.join(e, _event_at(e, m, m.c.version))
        .outerjoin(c, sa.and_(m.c.content_version != m.c.version, _event_at(c, m, m.c.content_version)))
        .outerjoin(d, _event_at(d, m, m.c.delivery_version))
    )
    if past:
        columns = columns.add_columns(erased(e).label("e_erased"))
    if with_head:
        head = head_select().subquery("s")
        columns = columns.add_columns(head.c.delivered, head.c.seen, head.c.fork)
        source = source.join(head, head.c.partition == m.c.partition)
    found: sa.Select[Any] = columns.select_from(source)
    return _by_version(found, e, c, d)


def _by_version(select: sa.Select[Any], *event_tables: Any) -> sa.Select[Any]:
    """Return a select that finds events by their versions, whatever MariaDB's statistics say.

    While those are of an empty table, MariaDB takes the index of the log to be as good, and reads a whole partition for
    each message.
    """
    for event in event_tables:
        for dialect in ("mysql", "mariadb"):
            select = select.with_hint(event, "FORCE INDEX (uq_letopis_events_version)", dialect)
    return select


def _event_at(event: Any, m: Any, version: Any) -> sa.ColumnElement[bool]:
    return sa.and_(
        event.c.partition == m.c.partition,
        event.c.conversation_id == m.c.conversation_id,
        event.c.version == version,
    )
