"""Build the selects of a reader once each: windows of messages, positions on the path, and lists."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import sqlalchemy as sa

from letopis.store.database.dialects import Dialect
from letopis.store.database.row_mapping import MARKED
from letopis.store.database.schema import (
    conversations,
    events,
    lanes,
    log_heads,
    messages,
    of_conversation,
    owners,
    same_conversation,
)
from letopis.store.model.event_types import MessageAppended
from letopis.store.read.paging import Window, WindowShape
from letopis.store.read.task_marks import (
    any_mark,
    erased,
    event_columns,
    is_on_path,
    left_at,
    message_columns,
    shown_digest,
)
from letopis.store.rules.fold import PathPosition

MAX_FIXED_LIMITS: Final = 32
"""Statements with a limit written into them; callers that page with more different limits have theirs bound."""


class ReadStatements:
    """The selects of a reader, each built and compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        self.conversation = sa.select(conversations).where(*of_conversation(conversations))
        # A statement of its own, as no conversation names the partition of its owner.
        self.markers = sa.select(owners.c.owner_id, owners.c.active_conversation_id).where(
            dialect.among(owners.c.partition, "partitions"), dialect.among(owners.c.owner_id, "owners")
        )
        named = dialect.among(messages.c.message_id, "ids")
        self.path_of, self.places_of = path_select(named), path_select(named, counted=False)
        self._among_states = dialect.among(conversations.c.state, "states")
        self.view = (
            sa.select(conversations, lanes.c.sequence)
            .select_from(conversations.outerjoin(lanes, _own_lane()))
            .where(*of_conversation(conversations))
        )
        self._among_types = dialect.among(events.c.type, "types")
        message = sa.select(*message_columns(messages)).where(*of_conversation(messages))
        self.named = whole(message.where(named))
        self.versions = whole(message.where(dialect.among(messages.c.version, "versions")))
        self.head = head_select()
        self.conversations_of = (
            sa.select(messages.c.conversation_id)
            .where(messages.c.message_id == sa.bindparam("message"))
            .distinct()
            .limit(sa.bindparam("limit"))
        )
        self.authored = _authored(joins_pages=dialect.joins_pages)
        self.owned = sa.select(conversations.c.conversation_id, conversations.c.updated_at).where(
            *dialect.of_conversations(conversations), conversations.c.owner_id == sa.bindparam("owner")
        )
        latest = messages.alias("latest")
        newest = sa.select(latest.c.version).where(same_conversation(latest, conversations), is_on_path(latest))
        newest = newest.order_by(latest.c.version.desc()).limit(1).correlate(conversations)
        at_newest = sa.and_(same_conversation(messages, conversations), messages.c.version == newest.scalar_subquery())
        ends = sa.select(*message_columns(messages)).select_from(conversations.join(messages, at_newest))
        self.last_messages = whole(ends.where(*dialect.of_conversations(conversations)))
        self._log = sa.select(*event_columns(events, read_in=conversations)).select_from(
            events.outerjoin(conversations, same_conversation(conversations, events))
        )
        self.log = (
            self._log.where(events.c.partition == sa.bindparam("partition"), events.c.position > sa.bindparam("after"))
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
        ).where(*of_conversation(events), dialect.among(events.c.event_id, "ids"))
        self.lanes = sa.select(lanes.c.conversation_id, lanes.c.sequence, lanes.c.floor).where(
            *dialect.of_conversations(lanes), lanes.c.origin_id == sa.bindparam("origin")
        )
        # Those that arrived erased leave the path with what a reset with a bound erases.
        arrived = messages.c.redacted_at == messages.c.version
        stays = (messages.c.version > sa.bindparam("after"), is_on_path(messages), sa.case((arrived, 1)).is_(None))
        self.beyond = sa.select(sa.func.count()).select_from(messages).where(*of_conversation(messages), *stays)
        self._windows: dict[tuple[WindowShape, bool], sa.Select[Any]] = {}
        self._plain_windows: dict[tuple[WindowShape, bool], sa.Select[Any]] = {}

    def conversations(self, *, owned: bool, going_on: bool, oldest_first: bool = False) -> sa.Executable:
        updated, name = conversations.c.updated_at, conversations.c.conversation_id
        statement = sa.select(conversations).where(self._among_states)
        if owned:
            statement = statement.where(conversations.c.owner_id == sa.bindparam("owner"))
        if going_on:
            last: sa.BindParameter[Any] = sa.bindparam("updated")
            last_name: sa.BindParameter[Any] = sa.bindparam("conversation")
            within, beyond = (updated >= last, updated > last) if oldest_first else (updated <= last, updated < last)
            later_name = name > last_name if oldest_first else name < last_name
            # The first condition is what an index can use; MariaDB makes no range of a comparison of pairs.
            statement = statement.where(within, sa.or_(beyond, sa.and_(updated == last, later_name)))
        order = (updated, name) if oldest_first else (updated.desc(), name.desc())
        return statement.order_by(*order).limit(sa.bindparam("limit"))

    def events(self, *, newest: bool, typed: bool) -> sa.Executable:
        """Return the select of events of a conversation between two versions."""
        statement = self._log.where(
            *of_conversation(events),
            events.c.version > sa.bindparam("after"),
            events.c.version < sa.bindparam("before"),
        )
        if typed:
            statement = statement.where(self._among_types)
        order = events.c.version.desc() if newest else events.c.version
        return statement.order_by(order).limit(sa.bindparam("limit"))

    def window(self, window: Window, *, with_head: bool = False) -> sa.Executable:
        key = (window.shape, with_head)
        if (select := self._windows.get(key)) is None:
            select = self._windows[key] = messages_select(window.shape, with_head=with_head)
        return select

    def plain_window(self, window: Window, *, with_head: bool = False) -> sa.Executable:
        """Return the select of a window, each message with what most of them have alone."""
        # With the limit written into it: PostgreSQL plans a statement again for each limit that is bound.
        key = (window.shape._replace(limit=window.values.get("limit")), with_head)
        if key not in self._plain_windows and len(self._plain_windows) >= MAX_FIXED_LIMITS:
            key = (window.shape, with_head)
        if (select := self._plain_windows.get(key)) is None:
            select = self._plain_windows[key] = plain_select(key[0], with_head=with_head)
        return select


def _authored(*, joins_pages: bool) -> sa.Select[Any]:
    """Return the select of a page of an author's messages in conversations that are not deleted, by their keys."""
    m = messages.c
    partition: sa.BindParameter[Any] = sa.bindparam("partition")
    name: sa.BindParameter[Any] = sa.bindparam("conversation")
    version: sa.BindParameter[Any] = sa.bindparam("version")
    within = sa.and_(m.conversation_id == name, m.version > version)
    later = sa.or_(m.partition > partition, sa.and_(m.partition == partition, sa.or_(m.conversation_id > name, within)))
    state = sa.select(conversations.c.state).where(same_conversation(conversations, messages)).correlate(messages)
    chosen = (m.author == sa.bindparam("author"), m.partition >= partition, later, state.scalar_subquery() != "deleted")
    page: sa.Select[Any] = sa.select(*message_columns(messages)).where(*chosen)
    limit: sa.BindParameter[Any] = sa.bindparam("limit")
    if joins_pages:
        return whole(page.order_by(m.partition, m.conversation_id, m.version).limit(limit))
    return whole(page).order_by(sa.text("m.partition, m.conversation_id, m.version")).limit(limit)


def messages_select(shape: WindowShape, *, as_of: bool = False, with_head: bool = False) -> sa.Select[Any]:
    """Return the select of a window: each message with the events of its origin, content and delivery."""
    columns: Any = sa.select(*message_columns(messages))
    return whole(_page(columns, shape, as_of=as_of), with_head=with_head, past=as_of)


def _page(page: sa.Select[Any], shape: WindowShape, *, as_of: bool = False, marks: bool = True) -> sa.Select[Any]:
    """Return a select of messages, restricted to a window."""
    # The page is cut out of the small index first. As one flat join, SQLite and MariaDB begin with the events and sort.
    page = page.where(*of_conversation(messages))
    if as_of:
        page = page.where(messages.c.version <= sa.bindparam("as_of"))
    if shape.every and not as_of:
        # A deleted conversation shows nothing, also not what has left its path.
        state = sa.select(conversations.c.state).where(*of_conversation(conversations))
        page = page.where(state.scalar_subquery() != "deleted")
    elif not shape.every:
        on_path = is_on_path(messages) if marks else messages.c.left_at.is_(None)
        page = page.where(sa.or_(on_path, left_at(messages) > sa.bindparam("as_of")) if as_of else on_path)
    if shape.roles is not None:
        roles = (messages.c.role == sa.bindparam(f"role_{number}") for number in range(len(shape.roles)))
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
    """Return the select of a window, each message with what most have."""
    # ``more`` tells that a message has something that only whole() returns, or that the conversation has marks, so that
    # only messages_select() returns the window. Faster, because nearly all that others add is NULL for most.

    # As narrow as possible: MariaDB writes the page into a table, with room for the longest value of each column.
    c = messages.c
    changes = [c[name].is_not(None) for name in ("left_at", "redacted_at", "delivery_version", "reactions")]
    changed = sa.or_(*changes, c.content_version != c.version).label("more")
    narrow: Any = sa.select(c.partition, c.conversation_id, c.version, changed)
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
        # In one column: SQLite's driver hands over the interpreter's lock for each.
        sa.case(
            (any_mark(), sa.literal_column(f"{MARKED}")), (more, sa.literal_column("1")), else_=sa.literal_column("0")
        ).label("more"),
    ]
    source = m.join(e, _event_at(e, m, m.c.version))
    if with_head:
        head = head_select().subquery("s")
        columns += [head.c.delivered, head.c.seen, head.c.fork]
        source = source.join(head, _beside(head, m))
    select: sa.Select[Any] = sa.select(*columns).select_from(source)
    return _by_version(select, e)


def head_select() -> sa.Select[Any]:
    """Return the select of a conversation's head: partition, applied sequence of a lane, version, whether a fork."""
    columns: Any = sa.select(
        conversations.c.partition,
        sa.func.coalesce(lanes.c.sequence, 0).label("delivered"),
        conversations.c.version.label("seen"),
        conversations.c.forked_from_id.is_not(None).label("fork"),
    )
    source = conversations.outerjoin(lanes, _own_lane())
    select: sa.Select[Any] = columns.select_from(source).where(*of_conversation(conversations))
    return select


def _own_lane() -> sa.ColumnElement[bool]:
    """Return the condition that a lane is the outbox's and a conversation's."""
    return sa.and_(same_conversation(lanes, conversations), lanes.c.origin_id == sa.bindparam("origin"))


def path_select(named: sa.ColumnElement[bool], *, counted: bool = True) -> sa.Select[Any]:
    """Return the select of positions: id, version, when they left the path, messages on it up to there."""
    earlier = messages.alias("earlier")
    count = (
        sa.select(sa.func.count())
        .select_from(earlier)
        .where(same_conversation(earlier, messages), earlier.c.version <= messages.c.version, is_on_path(earlier))
        .scalar_subquery()
        .label("on_path_count")
    )
    last: Any = count if counted else sa.literal_column("0").label("on_path_count")
    marked = {column.name: column for column in message_columns(messages)}
    columns: Any = sa.select(*(marked[name] for name in ("message_id", "version", "left_at")), last)
    select: sa.Select[Any] = columns.where(*of_conversation(messages), named)
    return select


def positions_from_rows(rows: Iterable[tuple[str, int, int | None, int]]) -> dict[str, PathPosition]:
    """Return the positions of messages on the path from rows of :func:`path_select`, by id."""
    return {
        name: PathPosition(version=version, on_path=left is None, count=count)
        for name, version, left, count in sorted(rows, key=lambda row: (row[2] is None, row[1]))
    }


def whole(page: sa.Select[Any], *, with_head: bool = False, past: bool = False) -> sa.Select[Any]:
    """Return the select of messages with the events of their origin, content and delivery."""
    m = page.subquery("m")
    e, c, d = events.alias("e"), events.alias("c"), events.alias("d")
    # Not ordered: sorting a page here is faster than in a database.
    columns: Any = sa.select(
        *_labelled("m", m, "conversation_id version message_id role left_at redacted_at"),
        *_labelled("m", m, "content_version delivery_version reactions"),
        *_labelled("e", e, "event_id origin_id sequence type schema_version data digest occurred_at recorded_at"),
        *_labelled("c", c, "type schema_version data digest"),
        *_labelled("d", d, "type schema_version data"),
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
        source = source.join(head, _beside(head, m))
    select: sa.Select[Any] = columns.select_from(source)
    return _by_version(select, e, c, d)


def _labelled(prefix: str, table: Any, names: str) -> list[Any]:
    """Return columns of a table under a prefix, digests as they are shown."""
    shown: dict[str, Any] = {"digest": shown_digest(table)} if "digest" in names else {}
    return [shown.get(name, table.c[name]).label(f"{prefix}_{name}") for name in names.split()]


def _by_version(select: sa.Select[Any], *event_tables: Any) -> sa.Select[Any]:
    """Return a select that finds events by their versions, whatever MariaDB's statistics say."""
    # While those are of an empty table, MariaDB takes the index of the log to be as good, and reads a whole partition
    # for each message.
    for event in event_tables:
        for dialect in ("mysql", "mariadb"):
            select = select.with_hint(event, "FORCE INDEX (uq_letopis_events_version)", dialect)
    return select


def _beside(head: Any, m: Any) -> sa.ColumnElement[bool]:
    # There is one head. Joined by an equal partition, it has PostgreSQL infer that an event's partition is a constant
    # too: without statistics, as in a new store, it then reads the partition's whole log for each message of the page.
    condition: sa.ColumnElement[bool] = head.c.partition >= m.c.partition
    return condition


def _event_at(event: Any, m: Any, version: Any) -> sa.ColumnElement[bool]:
    return sa.and_(same_conversation(event, m), event.c.version == version)
