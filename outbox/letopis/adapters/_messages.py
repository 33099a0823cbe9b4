"""Read and convert the messages of a conversation for the adapters of frameworks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

from letopis.adapters.formats import openai_chat, to_message, with_own_items
from letopis.outbox import History
from letopis.store import InvalidInput, Message, RecordedMessage, StoreUnavailable
from letopis.store.model.messages import ROLES, Role
from letopis.store.model.parts import Content, ToolCall, UnknownPart
from letopis.store.rules.tool_calls import repair_tool_calls

Waits = Callable[[Message, ToolCall], bool]
T = TypeVar("T")
_ALL: Final = 2**31 - 1
""""All", for callers that must pass a number."""


def missing(module: str, package: str, extra: str) -> ModuleNotFoundError:
    """Return the error for an adapter whose framework is not installed."""
    return ModuleNotFoundError(f"letopis.adapters.{module} needs {package}: pip install 'letopis[{extra}]'")


async def newest(
    history: History,
    conversation_id: str,
    convert: Callable[[Iterable[Message]], list[T]],
    *,
    last: int | None,
    require_complete: bool,
    waits: Waits,
    apart: bool = False,
) -> list[T]:
    """Return the newest ``last`` converted items, oldest first; all of them with ``None``.

    They are repaired as :func:`fitting` does.

    :raises StoreUnavailable: with ``require_complete``: the history store is unreachable, and the outbox does not
        reach back far enough.
    """
    if last is not None and last <= 0:
        return []
    if last is not None and last >= _ALL:
        last = None
    page = await history.messages(conversation_id, last=last)
    found = [one.message for one in page]
    while last is not None and page.next is not None and len(convert(found)) < last:
        # Some messages have no counterpart in this framework.
        page = await history.messages(conversation_id, last=last, before=page.next)
        found = [*(one.message for one in page), *found]
    if require_complete and not page.complete and (last is None or len(convert(found)) < last):
        raise StoreUnavailable("all messages that were asked for")
    whole = page.complete and page.next is None
    return fitting(found, convert, last=last, whole=whole, waits=waits, apart=apart)


def answered(message: Message, call: ToolCall) -> bool:
    """Have every call without a result answered: the framework knows of no call that waits for its result."""
    del message, call
    return False


def fitting(
    messages: Sequence[Message],
    convert: Callable[[Iterable[Message]], list[T]],
    *,
    last: int | None,
    whole: bool,
    waits: Waits = answered,
    apart: bool = False,
) -> list[T]:
    """Return at most the newest ``last`` converted items, without a call that has no result or the reverse.

    See :func:`letopis.store.rules.tool_calls.repair_tool_calls` for what is repaired. A pair that does not fit is left
    out.

    :param whole: True if the messages begin with the first one of the conversation.
    """
    while True:
        items = convert(repair_tool_calls(messages, beginning=whole, waits=waits, apart=apart))
        excess = 0 if last is None else len(items) - last
        if excess <= 0:
            return items
        messages, whole = messages[excess:], False


def kept(item: Mapping[str, Any], *, provider: str, chat: Mapping[str, Any] | None, role: Role, text: str) -> Message:
    """Return a message that holds a framework's whole item, beside the parts of it that Letopis understands.

    :param chat: the item as a Chat Completions message, to which frameworks can convert most of theirs; ``None`` if
        there is no such form.
    :param text: the content in that case.
    :raises InvalidInput: the item holds a value that is not JSON, or has more than 64 MiB.
    """
    content: Content | None = text
    if chat is not None:
        with suppress(InvalidInput):
            role, content, _ = openai_chat.understood(chat, "message")
    name = item.get("name")
    return to_message(item, provider=provider, role=role, content=content, name=name if isinstance(name, str) else None)


def of_any_shape(item: Mapping[str, Any], provider: str) -> Message:
    """Return a message that holds an item of no shape that Letopis knows: its text, or all of it as one part.

    :raises InvalidInput: the item holds a value that is not JSON, or has more than 64 MiB.
    """
    given = item.get("role")
    role = cast("Role", given) if given in ROLES else "assistant"
    text = item.get("content")
    content: Content = text if isinstance(text, str) else (UnknownPart(item),)
    return to_message(item, provider=provider, role=role, content=content)


def items_of(
    messages: Iterable[Message | RecordedMessage], provider: str
) -> Iterator[tuple[dict[str, Any] | None, list[dict[str, Any]]]]:
    """Yield each message as its framework's item, or as Chat Completions messages if it came from elsewhere."""
    for message, own, _ in with_own_items(messages, provider):
        yield own, [] if own is not None else openai_chat.from_messages([message])
