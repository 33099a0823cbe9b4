"""Erase all that an owner or a person said, or a conversation, in the history store and in every outbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from letopis.outbox.event_log.bound_store import read_binding
from letopis.outbox.event_log.erasures import delete_again
from letopis.outbox.event_log.known_erasures import highest_number, missing_erasures
from letopis.outbox.event_log.lookups import holds_records_of
from letopis.outbox.history.authored import authored
from letopis.outbox.history.conversations import register
from letopis.outbox.history.readable import ReadableHistory
from letopis.outbox.relay.erasures import ErasureCarrier
from letopis.store.database.store_identity import expect_store
from letopis.store.erasures import Erasure, How, Kind
from letopis.store.errors import ConversationGone, Held, StoreUnavailable
from letopis.store.model.conversations import Conversation
from letopis.store.model.event_types import ConversationDeleted, ConversationRewound, MessageAppended

_PAGE: Final = 200
_STATES: Final = ("active", "archived")


def _ignore(_: object) -> None: ...


async def erase(
    history: ReadableHistory,
    kind: Kind,
    subject: str,
    *,
    how: How,
    reason: str | None,
    requested_by: str | None,
    answers: bool = False,
    erased: Callable[[str], object] | None = None,
    held: Callable[[Held], object] | None = None,
    recorded: Callable[[int], Awaitable[object]] | None = None,
) -> Erasure:
    """Record an erasure, begin it in this outbox, and append what carries it out in the history store.

    :param recorded: awaited with its number once it is recorded, before anything is erased.
    """
    erasure = await register(
        history.outbox,
        history.store,
        kind,
        subject,
        how=how,
        reason=reason,
        requested_by=requested_by,
        answers=answers,
    )
    if recorded is not None:
        await recorded(erasure.number)
    # Before it is begun here: a conversation of this outbox alone is ended by that.
    words = await find_words(history, kind, subject, answers=answers)
    await ErasureCarrier(history.outbox, history.store).begin(erasure)
    await _append(history, erasure, words, erased=erased or _ignore, held=held or _ignore)
    return erasure


async def repeat_erasures(
    history: ReadableHistory,
    *,
    erased: Callable[[str], object] = _ignore,
    held: Callable[[Held], object] = _ignore,
) -> list[Erasure]:
    """Repeat the erasures that this outbox has carried out and a restored history store has forgotten.

    Each is recorded again, under its id and a new number, and reaches as far as it did: what was delivered since the
    restore stays. Set holds that the store lost again before. After an interruption, run it again.

    :param held: called with the error for each erasure, or conversation, that a hold forbids.
    :raises StoreUnavailable: the history store cannot be read.
    :raises StoreFault: the history store cannot record it.
    """
    bound, repeated = await history.outbox.read(read_binding), list[Erasure]()
    for erasure in await history.outbox.read(missing_erasures):
        used = await history.outbox.read(highest_number)
        try:
            with expect_store(bound.store_id):
                erasure = await history.store.erasures.repeat(erasure, store_id=bound.store_id, used=used)
        except Held as error:
            held(error)
            continue
        words = await find_words(history, erasure.kind, erasure.subject, answers=erasure.answers)
        await _append(history, erasure, words, erased=erased, held=held, repeated=True)
        repeated.append(erasure)
    return repeated


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureScope:
    """What an erasure is about, as the history store and this outbox know it.

    :ivar messages: of a person in conversations of others: ids by conversation, with the versions of the messages.
    :ivar records: whether the owner has any.
    """

    conversations: Sequence[Conversation] = ()
    messages: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    records: bool = False

    def __bool__(self) -> bool:
        return bool(self.conversations or self.messages or self.records)


async def find_words(history: ReadableHistory, kind: Kind, subject: str, *, answers: bool = False) -> ErasureScope:
    """Return what an erasure would be about now.

    :raises StoreUnavailable: the history store cannot be read.
    """
    if kind == "conversation":
        conversation = await history.chat(subject).conversation()
        alive = conversation is not None and conversation.state != "deleted"
        return ErasureScope(conversations=[conversation] if conversation is not None and alive else ())
    conversations = [conversation async for conversation in _owned(history, subject)]
    messages: dict[str, dict[str, int]] = {}
    if kind == "person":
        # What is pending may be an earlier part of the same erasure: a message redacted twice is redacted once.
        async for conversation, page in authored(history, subject, merge=False):
            if conversation.owner_id != subject:
                name, versions = conversation.conversation_id, messages.setdefault(conversation.conversation_id, {})
                versions.update({message.id: message.version or 0 for message in page if not message.redacted})
                if answers:
                    versions.update(await _answers_to(history, name, {message.id for message in page}))
    named = {name: versions for name, versions in messages.items() if versions}
    return ErasureScope(conversations=conversations, messages=named, records=await _has_records(history, subject))


async def _answers_to(history: ReadableHistory, name: str, message_ids: Set[str]) -> dict[str, int]:
    """Return the messages of a conversation that say that they answer one of some, with their versions."""
    answers: dict[str, int] = {}
    after: int | str = 0
    while True:
        page = await history.chat(name).events(after=after, types=(MessageAppended.type,))
        for event in page:
            about = event.data.get("metadata") or {}
            named = (place.get("answers") for place in (about, about.get("telegram")) if isinstance(place, Mapping))
            if not message_ids.isdisjoint(filter(None, named)):
                answers[event.data["message_id"]] = event.version or 0
        if page.next is None:
            return answers
        after = page.next


async def _append(
    history: ReadableHistory,
    erasure: Erasure,
    words: ErasureScope,
    *,
    erased: Callable[[str], object],
    held: Callable[[Held], object],
    repeated: bool = False,
) -> None:
    """Append what carries an erasure out in the history store: of what was said until it was recorded, and no more."""
    names = [*(conversation.conversation_id for conversation in words.conversations), *words.messages]
    with expect_store((await history.outbox.read(read_binding)).store_id):
        bounds = await history.store.erasures.erasure_bounds(erasure.number, names)
    for conversation in words.conversations:
        name = conversation.conversation_id
        if conversation.version and name not in bounds:
            continue  # it began later
        try:
            await _append_to(history, name, erasure, bounds.get(name, 0), repeated=repeated)
        except Held as error:
            if not repeated:
                raise
            held(error)
        else:
            erased(name)
    if erasure.kind != "conversation":
        await _erase_records(history, erasure, repeated=repeated)
    for name, versions in words.messages.items():
        ids = [message_id for message_id, version in versions.items() if version <= bounds.get(name, 0)]
        try:
            if ids:
                await history.chat(name).redact(*ids, by=erasure.requested_by, reason=erasure.reason)
                erased(name)
        except Held as error:
            held(error)


async def _append_to(history: ReadableHistory, name: str, erasure: Erasure, upto: int, *, repeated: bool) -> None:
    conversations = history._parts.conversations
    if erasure.how == "reset":
        await conversations.erase(name, ConversationRewound(reason=erasure.reason, erase=True, upto=upto))
        return
    try:
        await conversations.erase(name, ConversationDeleted(reason=erasure.reason))
    except ConversationGone:  # this outbox has deleted it already
        if repeated:  # and the store has forgotten it
            now_us = history.outbox.now_us()
            await history.outbox.write(partial(delete_again, name=name, reason=erasure.reason, now_us=now_us))


async def _erase_records(history: ReadableHistory, erasure: Erasure, *, repeated: bool) -> None:
    records = history.records(owner=erasure.subject)
    if not repeated:
        await records.erase()
        return
    after: str | None = None
    while True:
        page = await records.list(limit=_PAGE, after=after, values=False)
        for record in page:
            if record.updated_at <= erasure.recorded_at:
                await records.delete(record.namespace, record.key, expected=record.revision)
        if (after := page.next) is None:
            return


async def _owned(history: ReadableHistory, owner: str) -> AsyncIterator[Conversation]:
    """Yield the living conversations of an owner."""
    after: str | None = None
    while True:
        page = await history.conversations(owner=owner, after=after, limit=_PAGE, states=_STATES)
        if not page.complete:
            raise StoreUnavailable("all conversations of this owner")
        for conversation in page:
            yield conversation
        if (after := page.next) is None:
            return


async def _has_records(history: ReadableHistory, owner: str) -> bool:
    """Return True if the history store has records of an owner, or the outbox tells anything of them."""
    if await history.outbox.read(lambda connection: holds_records_of(connection, owner)):
        return True
    after: str | None = None
    while True:
        page = await history.records(owner=owner).list(limit=1, after=after, values=False)
        if len(page) or (after := page.next) is None:
            return len(page) > 0
