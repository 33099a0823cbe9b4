"""Check what is asked of a page: windows, points in time, sizes, cursors and states; and filter pages."""

from __future__ import annotations

import zlib
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

import orjson

from letopis.store.errors import InvalidInput
from letopis.store.model.codec import INTEGER_MAX, INTEGER_MIN
from letopis.store.model.conversations import Page, RecordedMessage
from letopis.store.model.events import to_microseconds
from letopis.store.model.identifiers import check_identifier, check_whole
from letopis.store.rules.filter import Filter

T = TypeVar("T")

FORMAT_VERSION: Final = 1
"""Version of the encoding; a cursor of another version is refused."""
MAX_CURSOR_LENGTH: Final = 40_000
"""Characters of a cursor."""
MAX_DECODED_BYTES: Final = 200_000
"""Bytes that a cursor may decompress to."""


@dataclass(frozen=True, slots=True)
class CursorCodec:
    """Encodes and decodes the cursors of one kind of page."""

    # Not signed: the reader of the values checks them as it checks any input.
    kind: str
    items: str

    def encode(self, *values: Any) -> str:
        """Return a cursor that holds JSON values."""
        plain = orjson.dumps([FORMAT_VERSION, self.kind, *values])
        return urlsafe_b64encode(zlib.compress(plain, 9)).decode("ascii").rstrip("=")

    def decode(self, cursor: object, read: Callable[..., T]) -> T:
        """Return ``read(*values)``; ``read`` raises ``TypeError`` or ``ValueError`` where a value is wrong."""
        try:
            version, kind, *values = _decompressed(cursor)
            if (version, kind) != (FORMAT_VERSION, self.kind):
                raise ValueError  # noqa: TRY301 - every wrong cursor gets one answer
            return read(*values)
        except (TypeError, ValueError, zlib.error) as error:
            raise InvalidInput("after", f"must be the `next` of a page of {self.items}") from error


def _decompressed(cursor: object) -> Any:
    if not isinstance(cursor, str) or len(cursor) > MAX_CURSOR_LENGTH:
        raise TypeError
    packed = b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    # A few bytes can be made to decompress to gigabytes.
    decompressor = zlib.decompressobj()
    plain = decompressor.decompress(packed, MAX_DECODED_BYTES)
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError
    return orjson.loads(plain)


STATES: Final = ("active", "archived", "deleted")
DEFAULT_STATES: Final = ("active",)
"""The states of conversations that a list shows by default."""
MAX_PAGE: Final = 10_000
"""Items in one page, so that a page fits in memory whatever is asked for."""
MIN_FILTERED_PAGE: Final = 64
MAX_FILTERED_PAGE: Final = 2_000
"""Messages that are held in memory while the wanted ones are picked out."""
_MAX_LIMIT: Final = INTEGER_MAX - 1
"""What every database takes as the limit of a select, with one more to see whether there are more."""
AsOf = int | datetime
"""A version, or an aware datetime."""
_CONVERSATIONS: Final = CursorCodec("conversations", "conversations")


class WindowShape(NamedTuple):
    """What a :class:`Window` asks for, without the values; ``limit`` only where it is written into the statement."""

    last: bool
    limited: bool
    before: bool
    after: bool
    every: bool
    limit: int | None = None
    roles: tuple[str, ...] | None = None
    prefixed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which messages of a conversation: the newest ``last``, or the ``first``, or all, between two versions."""

    last: int | None = None
    first: int | None = None
    before: int | None = None
    after: int | None = None
    every: bool = False  # include messages that have left the active path
    before_depth: int = 0  # whose version ``before`` is: 0 the conversation's own, 1 its parent's
    after_depth: int = 0
    roles: tuple[str, ...] | None = None  # leave out stored messages of other roles; pending ones may be of any
    id_prefix: str | None = None  # likewise, of ids that do not begin with it

    @classmethod
    def of(
        cls,
        *,
        last: int | None,
        first: int | None,
        before: int | str | None,
        after: int | str | None,
        every: bool = False,
    ) -> Window:
        """Return the window that a caller asks for."""
        if last is not None and first is not None:
            raise InvalidInput("first", "cannot be given together with last: ask for the newest or for the oldest")
        if last is not None:
            last = min(check_whole(last, "last", 1), _MAX_LIMIT)
        if first is not None:
            first = min(check_whole(first, "first", 1), _MAX_LIMIT)
        if before is None and after is None:
            return cls(last=last, first=first, every=bool(every))
        before_depth, before = _depth_of(before)
        after_depth, after = _depth_of(after)
        return cls(
            last=last,
            first=first,
            before=check_place(before, "before"),
            after=check_place(after, "after"),
            every=bool(every),  # it chooses a statement, so anything may be given that is true or not
            before_depth=before_depth,
            after_depth=after_depth,
        )

    @property
    def limit(self) -> int | None:
        """The number of messages asked for from either end; ``None`` for all."""
        return self.last if self.last is not None else self.first

    @property
    def values(self) -> dict[str, Any]:
        """The parameters of its select; one message beyond the limit shows that there are more."""
        limit = None if self.limit is None else self.limit + 1
        values: dict[str, Any] = {"before": self.before, "after": self.after, "limit": limit}
        for number, role in enumerate(self.roles or ()):
            values[f"role_{number}"] = role
        if self.id_prefix is not None:
            values.update(prefix=self.id_prefix, prefix_length=len(self.id_prefix))
        return {name: value for name, value in values.items() if value is not None}

    @property
    def shape(self) -> WindowShape:
        """What the window asks for, without the values."""
        return WindowShape(
            last=self.last is not None,
            limited=self.limit is not None,
            before=self.before is not None,
            after=self.after is not None,
            every=self.every,
            roles=self.roles,
            prefixed=self.id_prefix is not None,
        )

    def resized(self, limit: int) -> Window:
        """Return the window with another number of messages, from the same end."""
        limit = min(limit, _MAX_LIMIT)
        return replace(self, last=limit) if self.last is not None else replace(self, first=limit)

    def narrowed(self, *, roles: Collection[str] | None, id_prefix: str | None) -> Window:
        """Return the window without stored messages of other roles or ids."""
        return replace(self, roles=None if roles is None else tuple(sorted(set(roles))), id_prefix=id_prefix)

    def after_page(self, place: str) -> Window:
        """Return the window that goes on at the ``next`` of a page of it."""
        depth, version = _depth_of(place)
        if self.last is not None:
            return replace(self, before=check_place(version, "before"), before_depth=depth)
        return replace(self, after=check_place(version, "after"), after_depth=depth)

    def at(self, depth: int) -> Window | None:
        """Return the window on the messages of one ancestor alone; ``None`` where it shows none of them."""
        if depth == self.before_depth == self.after_depth == 0:
            return self
        # A deeper ancestor is older.
        if (self.before is not None and depth < self.before_depth) or (
            self.after is not None and depth > self.after_depth
        ):
            return None
        return replace(
            self,
            before=self.before if depth == self.before_depth else None,
            after=self.after if depth == self.after_depth else None,
            every=self.every and depth == 0,
            before_depth=0,
            after_depth=0,
        )


def bounded(window: Window, upto: int | None, *, after: int = 0) -> Window:
    """Return a window without the messages outside two versions, unless it includes those off the path."""
    if window.every:
        return window
    if after:
        window = replace(window, after=max(window.after or 0, after))
    return window if upto is None else replace(window, before=min(window.before or INTEGER_MAX, upto + 1))


def _depth_of(place: object) -> tuple[int, Any]:
    """Split a place among inherited messages, ``<depth>.<version>``, which is the ``next`` of a page of a fork."""
    depth, dot, version = place.partition(".") if isinstance(place, str) else ("", "", "")
    if dot and depth.isascii() and depth.isdigit() and len(depth) <= 2:
        return int(depth), version
    return 0, place


def check_count(value: object, field: str) -> int:
    """Return ``value`` if it can be the size of a page."""
    return check_whole(value, field, 1, MAX_PAGE)


def check_place(value: object, field: str) -> int | None:
    """Return a version or a position, which a page gives as text."""
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= INTEGER_MAX:
        raise InvalidInput(field, "must be a whole number from 0, or the `next` of a page")
    return value


def check_states(states: Collection[str]) -> list[str]:
    """Return the states of conversations that are asked for, sorted."""
    if (
        not isinstance(states, Collection)
        or isinstance(states, str)
        or not states
        or not all(isinstance(state, str) and state in STATES for state in states)
    ):
        raise InvalidInput("states", f"must be some of {', '.join(STATES)}")
    return sorted(set(states))


def conversations_cursor(updated_at: int, conversation_id: str) -> str:
    """Return the cursor after a conversation in a list of conversations."""
    return _CONVERSATIONS.encode(updated_at, conversation_id)


def read_conversations_cursor(cursor: object) -> tuple[int, str]:
    """Return ``updated_at`` and the id of the conversation that a cursor stands after."""
    return _CONVERSATIONS.decode(cursor, _checked_place)


def _checked_place(updated_at: object, conversation_id: object) -> tuple[int, str]:
    if type(updated_at) is not int or not INTEGER_MIN <= updated_at <= INTEGER_MAX:
        raise ValueError("not a time")
    return updated_at, check_identifier(conversation_id, "after")


def check_as_of(value: object) -> AsOf:
    """Return ``value`` if it can name a point in time of a conversation."""
    if isinstance(value, datetime):
        try:
            to_microseconds(value)
        except InvalidInput as error:
            raise InvalidInput("as_of", error.reason) from error
        return value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= INTEGER_MAX:
        raise InvalidInput("as_of", "must be a version, which is a whole number from 0, or an aware datetime")
    return value


def page_of(found: Mapping[int, RecordedMessage], window: Window) -> Page[RecordedMessage]:
    """Return messages of a window, given by version, as its page; one beyond the limit shows that there are more."""
    order, limit = sorted(found, reverse=window.last is not None), window.limit
    following = None
    if limit is not None and len(order) > limit:
        del order[limit:]
        following = str(order[-1])
    if window.last is not None:
        order.reverse()
    return Page(tuple(map(found.__getitem__, order)), next=following)


async def read_filtered(
    read: Callable[[Window], Awaitable[Page[RecordedMessage]]], window: Window, where: Filter | None, *, offset: int = 0
) -> Page[RecordedMessage]:
    """Return the messages of a window that are wanted, without the first ``offset`` from its end."""
    # The database narrows what it returns by role and id; all else is decided here, for stored and pending messages
    # alike. So the cost is that of reading all messages up to the last one that is returned.
    limit = None if window.limit is None else window.limit + offset
    if where is None:
        page = await read(window if limit is None else window.resized(limit))
        return replace(page, items=_without(page.items, offset, window))
    window = window.narrowed(roles=where.roles, id_prefix=where.id_prefix)
    messages: list[RecordedMessage] = []
    complete, seen, size = True, None, MIN_FILTERED_PAGE
    while True:
        left = None if limit is None else limit - len(messages)
        page = await read(window if left is None else window.resized(max(size, left)))
        wanted = where.of(page)
        while left is not None and len(wanted) > left:
            # The page ends where the last wanted message does; if the path has changed meanwhile, it is cut again.
            page = await read(window.resized(_length(page.items, where, left, newest=window.last is not None)))
            wanted = where.of(page)
        seen, complete = seen or page.seen, complete and page.complete
        messages = [*wanted, *messages] if window.last is not None else [*messages, *wanted]
        if page.next is None or (limit is not None and len(messages) >= limit):
            return Page(_without(tuple(messages), offset, window), next=page.next, complete=complete, seen=seen)
        window, size = window.after_page(page.next), min(size * 2, MAX_FILTERED_PAGE)


async def count_filtered(
    read: Callable[[Window], Awaitable[Page[RecordedMessage]]], where: Filter | None
) -> tuple[int, bool]:
    """Return how many messages are wanted, and whether the history store was reached."""
    window = Window(first=MAX_FILTERED_PAGE)
    if where is not None:
        window = window.narrowed(roles=where.roles, id_prefix=where.id_prefix)
    count = 0
    while True:
        page = await read(window)
        count += len(page) if where is None else len(where.of(page))
        if page.next is None or not page.complete:
            return count, page.complete
        window = window.after_page(page.next)


def _length(items: tuple[RecordedMessage, ...], where: Filter, wanted: int, *, newest: bool) -> int:
    """Return how many messages from the end of a page hold as many wanted ones."""
    for length, message in enumerate(reversed(items) if newest else items, 1):
        wanted -= where.matches(message)
        if wanted == 0:
            return length
    return len(items)


def _without(items: tuple[RecordedMessage, ...], offset: int, window: Window) -> tuple[RecordedMessage, ...]:
    if window.last is not None:
        return items[: len(items) - offset] if offset < len(items) else ()
    return items[offset:]
