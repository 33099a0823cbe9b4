"""Read and convert the messages of a conversation for the adapters of frameworks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from letopis.adapters.formats import openai_chat
from letopis.outbox import History
from letopis.store import InvalidInput, Message, RecordedMessage, StoreUnavailable
from letopis.store.model.parts import Content

T = TypeVar("T")
_ALL: Final = 2**31 - 1
"""How callers say "all" who must give a number."""


def missing(module: str, package: str, extra: str) -> ImportError:
    """Return the error for an adapter whose framework is not installed."""
    return ImportError(f"letopis.adapters.{module} needs {package}: install letopis[{extra}]")


async def newest(
    history: History,
    conversation_id: str,
    convert: Callable[[Iterable[RecordedMessage]], list[T]],
    *,
    last: int | None,
    require_complete: bool,
) -> list[T]:
    """Return the newest ``last`` items that messages are converted to, oldest first; all of them with ``None``.

    :raises StoreUnavailable: with ``require_complete``: the history store is unreachable, and the outbox does not
        reach back far enough.
    """
    if last is not None and last <= 0:
        return []
    if last is not None and last >= _ALL:
        last = None
    page = await history.messages(conversation_id, last=last)
    found = list(page)
    items = convert(found)
    while last is not None and len(items) < last and page.next is not None:
        # Some messages are no item of this framework.
        page = await history.messages(conversation_id, last=last, before=page.next)
        found = [*page, *found]
        items = convert(found)
    if require_complete and not page.complete and (last is None or len(items) < last):
        raise StoreUnavailable("all messages that were asked for")
    return items if last is None else items[-last:]


def content_of(item: Mapping[str, Any], text: str) -> Content:
    """Return what a message of Chat Completions says, or its text if it is none.

    Frameworks export most of their messages in this format, and fail for what it has no place for.
    """
    try:
        (message,) = openai_chat.to_messages([item])
    except InvalidInput:
        return text
    return text if message.content is None else message.content


def as_chat(message: Message) -> list[dict[str, Any]]:
    """Return a message that came from elsewhere, or was edited, as messages of Chat Completions."""
    return openai_chat.from_messages([message])
