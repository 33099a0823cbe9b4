"""Read the newest part of a conversation for a model, or all of it as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import tzinfo
from typing import TYPE_CHECKING, Any, Final, Protocol

from letopis.outbox.alerting.language import language_of
from letopis.store.errors import InvalidInput, StoreUnavailable
from letopis.store.model.conversations import Page, RecordedMessage
from letopis.store.model.event_types import ConversationRewound, MessageAppended
from letopis.store.model.events import RecordedEvent
from letopis.store.model.identifiers import check_identifier
from letopis.store.model.messages import INSTRUCTIONS
from letopis.store.read.paging import MAX_PAGE
from letopis.store.rules.answers import answers_by_question
from letopis.store.rules.context_window import Context, FittedWindow, WindowBudget, fit_window, is_visible
from letopis.store.rules.transcript import transcript

if TYPE_CHECKING:
    from letopis.outbox.history.find_message import MessageFinder
    from letopis.outbox.history.read import HistoryReader

MIN_PAGE_SIZE: Final = 64  # messages of the first page; each page back is twice as long as the one before it
MAX_PAGE_SIZE: Final = 2_000  # messages of the longest page
FIRST_PAGE_SIZE: Final = 8  # messages of a page that looks for the system messages at the beginning
PATH_TYPES: Final = (MessageAppended.type, ConversationRewound.type)  # of the events that make and change a path

Cut = Callable[[Sequence[RecordedMessage]], list[RecordedMessage] | None]
"""Returns the messages of a window out of the newest ones, or ``None`` if the last one of the window is not in them."""


class ReadPage(Protocol):
    """Reads a page of messages, as ``History.messages`` and ``ConversationStore.messages`` do."""

    async def __call__(
        self, *, last: int | None = None, first: int | None = None, before: str | None = None, after: str | None = None
    ) -> Page[RecordedMessage]: ...


async def read_transcript(
    reader: HistoryReader, conversation_id: str, *, last: int | None, locale: str | None, tz: tzinfo
) -> str:
    """Return a conversation as text, as ``History.transcript`` does."""
    if locale is not None and not isinstance(locale, str):
        raise InvalidInput("locale", f"must be text, such as ru or en-GB, not {type(locale).__name__}")
    if not isinstance(tz, tzinfo):
        raise InvalidInput("tz", f"must be a time zone, not {type(tz).__name__}")
    page = await reader.messages(conversation_id, last=last)
    conversation = await reader.conversation(conversation_id)
    if conversation is None and not page:
        return ""
    whole = page.complete and page.next is None
    return transcript(conversation, page, locale="ru" if language_of(locale) == "ru" else "en", tz=tz, whole=whole)


async def read_window(reader: HistoryReader, conversation_id: str, budget: WindowBudget, until: str | None) -> Context:
    """Return the window that ``History.context`` returns."""

    async def read(**window: Any) -> Page[RecordedMessage]:
        return await reader.messages(conversation_id, **window)

    if until is None:
        return await read_context(read, budget)
    return await read_context(read, budget, ending_with(check_identifier(until, "until")))


def ending_with(message_id: str) -> Cut:
    """Return a cut after a message, which must be visible: on the path and not redacted."""

    def cut(messages: Sequence[RecordedMessage]) -> list[RecordedMessage] | None:
        ends = (index for index, message in enumerate(messages, 1) if message.id == message_id and is_visible(message))
        end = next(ends, None)
        return None if end is None else list(messages[:end])

    return cut


async def read_context(read: ReadPage, budget: WindowBudget, cut: Cut = list) -> Context:
    """Read backwards, in growing pages, until the window is full, and return it."""
    size = MIN_PAGE_SIZE if budget.last is None else max(MIN_PAGE_SIZE, min(budget.last, MAX_PAGE_SIZE))
    page = await read(last=size)
    seen = page.seen
    messages, reached = list(page), page.complete
    system: list[RecordedMessage] | None = None if budget.keep_system else []
    looked_back = False
    while page.next is not None:
        if (kept := cut(messages)) is not None:
            if system is None:
                system, known = await _beginning(read)
                system = cut(system) or system
                reached = reached and known
            window = _fit_newest(kept, budget, system)
            # A result may have been recorded a little before its call, so one more page is read.
            if window.full and (looked_back or not window.context.made_up):
                return replace(window.context, reached=reached, seen=seen)
            looked_back = window.full
        size = min(size * 2, MAX_PAGE_SIZE)
        page = await read(last=size, before=page.next)
        messages[:0] = page
        reached = reached and page.complete
    if (kept := cut(messages)) is None:
        if not reached:
            raise StoreUnavailable("the message that the context ends with")
        raise InvalidInput("until", "must be the id of a message on the path of the conversation that is not redacted")
    if reached:
        return replace(fit_window(kept, budget).context, seen=seen)
    # The outbox may hold a part that begins inside a turn; system messages at its beginning are all that are known.
    if not system and budget.keep_system:
        system = _leading_system(kept)
    return replace(_fit_newest(kept, budget, system or []).context, reached=False, seen=seen)


def _fit_newest(
    messages: Sequence[RecordedMessage], budget: WindowBudget, system: Sequence[RecordedMessage]
) -> FittedWindow:
    """Return what fits of the newest messages of a conversation that begins with ``system``."""
    kept = {message.event_id for message in system}
    rest = [message for message in messages if message.event_id not in kept] if kept else messages
    return fit_window(rest, budget, beginning=False, system=[message.message for message in system])


async def _beginning(read: ReadPage) -> tuple[list[RecordedMessage], bool]:
    """Return the system messages that a conversation begins with, and whether the history store was reached."""
    leading: list[RecordedMessage] = []
    after: str | None = None
    reached = True
    while True:
        page = await read(first=FIRST_PAGE_SIZE, after=after)
        reached = reached and page.complete
        visible = sum(map(is_visible, page))
        system = _leading_system(page)
        leading += system
        if len(system) < visible or page.next is None:
            return leading, reached
        after = page.next


def _leading_system(messages: Sequence[RecordedMessage]) -> list[RecordedMessage]:
    leading = []
    for message in filter(is_visible, messages):
        if message.role not in INSTRUCTIONS:
            break
        leading.append(message)
    return leading


async def read_answers(
    reader: HistoryReader, finder: MessageFinder, conversation_id: str, question_id: str
) -> tuple[tuple[RecordedMessage, ...], ...]:
    """Return the answers to a question as ``Chat.answers`` does."""
    question = await finder.find(question_id, conversation_id)
    if question is None or question.conversation_id != conversation_id:
        return ()
    after: int | str | None = max(0, (question.version or 1) - 1)
    events: list[RecordedEvent] = []
    while after is not None:
        page = await reader.events(conversation_id, after=after, first=MAX_PAGE, types=PATH_TYPES)
        events += page
        after = page.next
    answers = answers_by_question(events).get(question_id, ())
    messages = [[await finder.find(name, conversation_id) for name in answer] for answer in answers]
    return tuple(tuple(message for message in answer if message is not None) for answer in messages)
