"""Read the messages that a filter wants, page by page over any read of messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from letopis.store.model.conversations import Page, RecordedMessage
from letopis.store.read.paging import Window
from letopis.store.rules.filter import Filter

MIN_PAGE_SIZE: Final = 64
MAX_PAGE_SIZE: Final = 2_000
"""Messages that are held in memory while the wanted ones are picked out."""


async def read_filtered(
    read: Callable[[Window], Awaitable[Page[RecordedMessage]]], window: Window, where: Filter | None, *, offset: int = 0
) -> Page[RecordedMessage]:
    """Return the messages of a window that are wanted, without the first ``offset`` from its end.

    The database narrows what it returns by role and id; all else is decided here, for stored and pending messages
    alike. So the cost is that of reading all messages up to the last one that is returned.

    :param read: reads a window.
    :param offset: how many wanted messages to leave out: the newest where the window begins at the newest, or else the
        oldest.
    """
    limit = None if window.limit is None else window.limit + offset
    if where is None:
        page = await read(window if limit is None else window.resized(limit))
        return replace(page, items=_without(page.items, offset, window))
    window = window.narrowed(roles=where.roles, id_prefix=where.id_prefix)
    found: list[RecordedMessage] = []
    complete, seen, size = True, None, MIN_PAGE_SIZE
    while True:
        left = None if limit is None else limit - len(found)
        page = await read(window if left is None else window.resized(max(size, left)))
        wanted = where.of(page)
        while left is not None and len(wanted) > left:
            # The page ends where the last wanted message does; if the path has changed meanwhile, it is cut again.
            page = await read(window.resized(_length(page.items, where, left, newest=window.last is not None)))
            wanted = where.of(page)
        seen, complete = seen or page.seen, complete and page.complete
        found = [*wanted, *found] if window.last is not None else [*found, *wanted]
        if page.next is None or (limit is not None and len(found) >= limit):
            return Page(_without(tuple(found), offset, window), next=page.next, complete=complete, seen=seen)
        window, size = window.after_page(page.next), min(size * 2, MAX_PAGE_SIZE)


async def count_filtered(
    read: Callable[[Window], Awaitable[Page[RecordedMessage]]], where: Filter | None
) -> tuple[int, bool]:
    """Return how many messages are wanted, and whether the history store was reached."""
    window = Window(first=MAX_PAGE_SIZE)
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
    for length, one in enumerate(reversed(items) if newest else items, 1):
        wanted -= where.matches(one)
        if wanted == 0:
            return length
    return len(items)


def _without(items: tuple[RecordedMessage, ...], offset: int, window: Window) -> tuple[RecordedMessage, ...]:
    if window.last is not None:
        return items[: len(items) - offset] if offset < len(items) else ()
    return items[offset:]
