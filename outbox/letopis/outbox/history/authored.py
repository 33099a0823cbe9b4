"""Find the messages of an author in all conversations, pending ones included."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import groupby
from typing import Final

from letopis.outbox.event_log.lookups import messages_by
from letopis.outbox.history.readable import ReadableHistory
from letopis.store.conversation_store import ConversationStore
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.read.paging import AsOf
from letopis.store.read.reader import Reader

PAGE: Final = 500


async def conversation_of(
    source: ReadableHistory | ConversationStore, conversation_id: str, *, as_of: AsOf | None = None
) -> Conversation | None:
    """Return what a history, or a store alone, knows of a conversation."""
    if isinstance(source, ConversationStore):
        return await source.conversation(conversation_id, as_of=as_of)
    return await source.chat(conversation_id).conversation(as_of=as_of)


async def authored(
    source: ReadableHistory | ConversationStore, author: str, *, merge: bool = True
) -> AsyncIterator[tuple[Conversation, list[RecordedMessage]]]:
    """Yield an author's messages in pages, each of one conversation, pending ones and pending changes included.

    With ``merge=False``, stored messages come without pending changes, and with references for large content. A message
    that was replaced comes twice. Deleted conversations are left out.
    """
    waiting, store = dict[str, list[str]](), source if isinstance(source, ConversationStore) else source.store
    if isinstance(source, ReadableHistory):
        # The file first: what is delivered and pruned after that is in the store.
        waiting = await source.outbox.read(lambda file: messages_by(file, author))
    after: tuple[str, int] | None = None
    while True:
        stored = await store.runtime.read(Reader.authored, author, after=after, limit=PAGE)
        for name, group in groupby(stored, lambda message: message.conversation_id):
            if after is not None and after[0] != name:
                async for page in _held(source, after[0], waiting.pop(after[0], ())):
                    yield page
            messages = list(group)
            after = name, messages[-1].version or 0
            conversation = await conversation_of(source, name)
            if conversation is None or conversation.state == "deleted":
                continue
            known = {message.id for message in messages}
            waiting[name] = [message_id for message_id in waiting.get(name, ()) if message_id not in known]
            if merge and conversation.pending and isinstance(source, ReadableHistory):
                messages = await _merged(source, name, [message.id for message in messages])
            elif merge:
                messages = list(await store.runtime.with_contents(Page(tuple(messages))))
            yield conversation, messages
        if len(stored) < PAGE:
            break
    for name in sorted(waiting):
        async for page in _held(source, name, waiting[name]):
            yield page


async def _held(
    source: ReadableHistory | ConversationStore, name: str, ids: Sequence[str]
) -> AsyncIterator[tuple[Conversation, list[RecordedMessage]]]:
    """Yield messages that the file holds and the store did not, when it was read."""
    if not ids or isinstance(source, ConversationStore):
        return
    conversation = await conversation_of(source, name)
    if conversation is not None and conversation.state != "deleted":
        yield conversation, await _merged(source, name, ids)


async def _merged(history: ReadableHistory, name: str, ids: Sequence[str]) -> list[RecordedMessage]:
    messages = [await history.chat(name).message(message_id) for message_id in ids]
    return [message for message in messages if message is not None]
