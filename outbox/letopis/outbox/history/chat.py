"""Read and change one conversation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING, Any

from letopis.outbox.concurrency.home_loop import at_home
from letopis.outbox.history.receipts import Receipt
from letopis.store.errors import InvalidInput, StoreUnavailable
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.event_types import (
    ConversationAnnotated,
    ConversationArchived,
    ConversationDeleted,
    ConversationRenamed,
    ConversationRestored,
    ConversationRewound,
    ConversationTagged,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
)
from letopis.store.model.events import RecordedEvent
from letopis.store.model.identifiers import Owner, check_identifier, owner_id
from letopis.store.model.messages import Message
from letopis.store.model.parts import Content
from letopis.store.read.paging import AsOf

if TYPE_CHECKING:
    from letopis.outbox.history.opening import Parts
    from letopis.outbox.history.sharing import SharedAccess
    from letopis.store.rules.filter import Filter


@at_home()
class Chat:
    """One conversation of a history. Made by ``History.chat()``, which reads and checks nothing.

    ::

        chat = history.chat("chat-1")
        await chat.edit(message_id, "A cup of tea.")
        await chat.undo()

    Messages are appended and read with ``History.append``, ``messages`` and ``context``, replies written with
    ``History.reply``. A conversation that was deleted raises ``ConversationGone`` where something is written.

    :ivar conversation_id: its id.
    """

    def __init__(self, conversation_id: str, home: SharedAccess) -> None:
        self.conversation_id = conversation_id
        self._home = home

    @property
    def _parts(self) -> Parts:
        return self._home.parts

    async def conversation(
        self,
        *,
        as_of: AsOf | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - for one request to the store, with an error of its own
    ) -> Conversation | None:
        """Return what is known of the conversation, pending events included; ``None`` if there is none.

        While the history store is unreachable, it is what the outbox retains, which may be less than all.

        :param as_of: as it was after this version, or after the last event that occurred by this moment; ``None`` is
            returned if it had not begun. All its events up to there are read, which takes seconds for hundreds of
            thousands. ``active`` is not known of the past.
        :param timeout: with ``as_of``: seconds that the history store may take, instead of ``read_timeout``.
        :raises InvalidInput: an argument is wrong.
        :raises ReadTimeout: the past could not be read in that time.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold that past.
        """
        return await self._parts.reader.conversation(self.conversation_id, as_of=as_of, timeout=timeout)

    async def message(self, message_id: str) -> RecordedMessage | None:
        """Return one of its own messages, on the path or off it, pending events included; ``None`` if there is none.

        An inherited message is its own conversation's.

        :raises InvalidInput: an argument is wrong.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold the message.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        check_identifier(self.conversation_id, "conversation")
        return await self._parts.finder.find(message_id, self.conversation_id)

    async def count(self, *, where: Filter | None = None) -> int:
        """Count the messages on the path, pending and inherited ones included.

        Without a filter, and where nothing is inherited, the count is kept, and not made by reading all messages.

        :param where: count only messages that this filter wants.
        :raises InvalidInput: an argument is wrong.
        :raises StoreUnavailable: the history store is unreachable, so that not all messages are known.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.reader.count(self.conversation_id, where=where)

    async def events(
        self,
        *,
        after: int | str = 0,
        first: int = 500,
        last: int | None = None,
        before: int | str | None = None,
        types: Collection[str] | None = None,
    ) -> Page[RecordedEvent]:
        """Return a page of its events, in order, pending ones (no version yet) last.

        By default the ``first`` ones after a version; with ``last``, the newest ones. Page forward with
        ``after=page.next``, or backward with ``last=50, before=page.next``.

        :param after: the ``next`` of the page before, or a version.
        :param last: return the newest events, as many as this.
        :param before: with ``last``: the ``next`` of the page, or a version.
        :param types: return only events of these types.
        :raises InvalidInput: an argument is wrong.
        """
        return await self._parts.reader.events(
            self.conversation_id, after=after, first=first, last=last, before=before, types=types
        )

    async def answers(self, question_id: str) -> tuple[tuple[RecordedMessage, ...], ...]:
        """Return all answers to a question, regenerated ones included, each with its tool calls and results, in order.

        ``on_path`` of their messages says which one is shown. The log is read from the question on. A fork knows the
        answers to questions of its own.

        :param question_id: the id of a user message; consecutive ones have the same answers.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold all of them.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        from letopis.outbox.history.context import read_answers

        return await read_answers(self._parts.reader, self._parts.finder, self.conversation_id, question_id)

    async def transcript(self, *, last: int | None = None, locale: str | None = None, tz: tzinfo = UTC) -> str:
        """Return the conversation as text; empty if there is none. All of it is read into memory.

        :param last: only the newest ``last`` messages.
        :param locale: ``ru`` for Russian, as platforms give it; everything else is English.
        :param tz: the time zone of the times.
        :raises InvalidInput: an argument is wrong.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        from letopis.outbox.history.context import read_transcript

        return await read_transcript(self._parts.reader, self.conversation_id, last=last, locale=locale, tz=tz)

    # Change a message.

    async def edit(self, message_id: str, content: Content, *, reason: str | None = None) -> Receipt:
        """Give a message new content; the log keeps the old one.

        If another outbox has redacted the message meanwhile, the edit is set aside on delivery: see
        ``Receipt.superseded()``.

        :raises InvalidInput: there is no such message, or its content was erased; nothing was written. While the
            history store is unreachable, a message that the outbox does not hold is assumed to exist, here and in all
            methods that name a message; if it does not, the event has no effect.
        """
        body = MessageEdited(message_id=message_id, content=content, reason=reason)
        return await self._parts.appender.change(self.conversation_id, body)

    async def redact(self, message_id: str, *more: str, by: str | None = None, reason: str | None = None) -> Receipt:
        """Erase the content of messages for good, in the outbox at once, in the history store with the delivery.

        Their places, roles, reactions and token counts stay. Of several messages, all are erased or none.

        :param more: ids of further messages of the conversation.
        :param by: who asked for it; kept in the log.
        :param reason: kept in the log.
        :raises InvalidInput: there is no such message; nothing was written.
        :raises Held: an operator holds the conversation, its owner, or the author of a message; nothing was written.
        """
        ids = dict.fromkeys(check_identifier(name, "message_id") for name in (message_id, *more))
        for author in {None, *[await self._author_of(name) for name in ids]}:
            await self._parts.conversations.check_not_held(self.conversation_id, author)
        bodies = (MessageRedacted(message_id=name, by=by, reason=reason) for name in ids)
        return await self._parts.appender.change(self.conversation_id, *bodies)

    async def _author_of(self, message_id: str) -> str | None:
        try:
            message = await self.message(message_id)
        except StoreUnavailable:
            return None
        return None if message is None else message.message.author

    async def react(
        self, message_id: str, key: str, *, actor: str | None = None, value: int | float | str | None = None
    ) -> Receipt:
        """Add a reaction to a message; a new ``value`` replaces the old one of the same key and actor.

        A rating is a reaction with the key ``rating`` and a ``value``, one for each actor.

        :param key: an emoji or a word, of 1 to 255 characters.
        :param actor: who reacts.
        :raises InvalidInput: there is no such message, or an argument is wrong; nothing was written.
        """
        body = ReactionAdded(message_id=message_id, key=key, actor=actor, value=value)
        return await self._parts.appender.change(self.conversation_id, body)

    async def unreact(self, message_id: str, key: str, *, actor: str | None = None) -> Receipt:
        """Remove a reaction; removing one that is not there is no error.

        :raises InvalidInput: there is no such message, or an argument is wrong; nothing was written.
        """
        return await self._parts.appender.change(
            self.conversation_id, ReactionRemoved(message_id=message_id, key=key, actor=actor)
        )

    # Report what the platform did.

    async def sent(
        self,
        message_id: str,
        *,
        platform_ids: Mapping[str, Any] | None = None,
        sent_as: str | None = None,
        file_path: str | None = None,
    ) -> Receipt:
        """Record that the platform accepted a message.

        :param platform_ids: the ids that the platform gave it.
        :param sent_as: how it was sent, for example ``file``.
        :param file_path: the file that it was sent as.
        :raises InvalidInput: there is no such message, or an argument cannot be kept; nothing was written.
        """
        body = MessageSent(message_id=message_id, platform_ids=platform_ids, sent_as=sent_as, file_path=file_path)
        return await self._parts.appender.change(self.conversation_id, body)

    async def failed(self, message_id: str, *, reason: str | None = None) -> Receipt:
        """Record that the platform rejected a message; the message itself stays.

        :raises InvalidInput: there is no such message, or an argument cannot be kept; nothing was written.
        """
        return await self._parts.appender.change(
            self.conversation_id, MessageFailed(message_id=message_id, reason=reason)
        )

    async def send(self, message_id: str) -> bool:
        """Leave an unconfirmed reply of this process to the history's ``sender``, as ``Reply.send`` does.

        :raises OutboxUnavailable: the outbox file cannot be written.
        """
        check_identifier(self.conversation_id, "conversation_id")
        return await self._parts.replies.hand_over(self.conversation_id, check_identifier(message_id, "message_id"))

    # Change the conversation.

    async def rename(self, title: str) -> Receipt:
        """Give the conversation a new title.

        :raises InvalidInput: there is no such conversation; nothing was written. While the history store is
            unreachable, one that the outbox does not hold is assumed to exist, here and in :meth:`annotate` and
            :meth:`tag`.
        """
        return await self._parts.conversations.describe(self.conversation_id, ConversationRenamed(title=title))

    async def annotate(self, metadata: Mapping[str, Any]) -> Receipt:
        """Set keys of its own metadata; other keys stay.

        ``None`` removes a key, and :data:`~letopis.store.NULL` stores a null.
        """
        return await self._parts.conversations.describe(self.conversation_id, ConversationAnnotated(metadata=metadata))

    async def tag(self, *tags: str, remove: Sequence[str] = ()) -> Receipt:
        """Add tags to it, and remove others. Rules of retention are given by tag; ``pinned`` keeps all its content.

        At most 32 tags; an append that would make more has no effect. A deletion and a reset remove them.
        """
        return await self._parts.conversations.describe(
            self.conversation_id, ConversationTagged(add=tags or None, remove=remove or None)
        )

    async def activate(self, *, owner: Owner | None = None) -> Receipt:
        """Make it its owner's active one; an archived one returns to the everyday list.

        Of the activations of one outbox the last one wins, whatever is delivered first.

        :param owner: the owner, if the conversation has none yet.
        :raises InvalidInput: there is no such conversation, or it has no owner; nothing was written.
        :raises ConversationGone: it was deleted; nothing was written. The methods below raise both, too.
        """
        return await self._parts.conversations.activate(self.conversation_id, owner=owner_id(owner))

    async def archive(self, *, reason: str | None = None) -> Receipt:
        """Take it out of the everyday list; none of its content is lost.

        If it was active, the owner's live conversation with the newest activity until then becomes active, if there is
        one.
        """
        return await self._parts.conversations.write(self.conversation_id, ConversationArchived(reason=reason))

    async def restore(self) -> Receipt:
        """Put it back from the archive into the everyday list; it does not become the active one."""
        return await self._parts.conversations.write(self.conversation_id, ConversationRestored())

    async def delete(self, *, reason: str | None = None) -> Receipt:
        """Delete the conversation for good; its id and number are never used again.

        Once the receipt is ``saved()``, none of its content can be read. The bytes of more than 2,000 events are erased
        in steps after that: ``store_tasks`` of the status counts them. Nothing can be appended to it. Forks keep what
        they read of it. If it was active, the next one becomes active, as for :meth:`archive`.

        :param reason: kept in the log.
        :raises Held: an operator holds the conversation or its owner; nothing was written.
        """
        return await self._parts.conversations.erase(self.conversation_id, ConversationDeleted(reason=reason))

    async def reset(self, *, reason: str | None = None, everywhere: bool = False) -> Receipt:
        """Erase the conversation as :meth:`delete` does, and let it go on, empty, under the same id.

        Its messages, title and metadata are erased with the delivery. The owner, the number and the counts of tokens
        stay, and versions go on. Forks keep what they read of it. Ids of erased messages are never used again.

        Words that another outbox holds pending arrive readable after it. With ``everywhere`` they arrive erased: the
        history store records the erasure first, as ``letopis history erase`` has it do, and every other outbox erases
        what it holds of the conversation before it delivers anything more. What is appended through it until then
        counts as said before the reset. What is appended here after the reset is new.

        :param reason: kept in the log, and in the record.
        :param everywhere: erase it in every outbox. If the process ends in between, reset it again.
        :raises Held: an operator holds the conversation or its owner; nothing was written.
        :raises StoreUnavailable: with ``everywhere``: the history store is unreachable; nothing was written.
        :raises StoreFault: with ``everywhere``: the history store cannot record it; nothing was appended.
        """
        if not isinstance(everywhere, bool):
            raise InvalidInput("everywhere", f"must be True or False, not {type(everywhere).__name__}")
        body = ConversationRewound(reason=reason, erase=True)
        if everywhere:
            body = await self._parts.conversations.register_reset(self.conversation_id, reason=reason)
        return await self._parts.conversations.erase(self.conversation_id, body)

    # Change the path. While the history store is unreachable, this works as far as the outbox reaches back.

    async def rewind(self, *, to: str | None, reason: str | None = None) -> Receipt:
        """Take the messages after one off the path, or all of them with ``to=None``. The log keeps them.

        While the history store is unreachable, a target that the outbox does not hold is assumed to exist; if it does
        not, the rewind has no effect.

        :param to: the id of the last message that stays; in a fork also of an inherited one.
        :raises InvalidInput: there is no such message on the path; nothing was written.
        """
        return await self._parts.path.rewind(self.conversation_id, to=to, reason=reason)

    async def undo(self, turns: int = 1) -> Receipt | None:
        """Take the last turns off the path. A turn begins with a user message; consecutive ones begin one turn.

        If there are fewer turns, all of them go; what comes before the first one, such as a system message, stays.
        Without any turn, nothing is written and ``None`` is returned.

        :raises InvalidInput: ``turns`` is not a whole number from 1.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not reach back far enough.
        :raises VersionConflict: messages came faster than they could be read; nothing was written.
        """
        return await self._parts.path.undo(self.conversation_id, turns)

    async def pop(self) -> RecordedMessage | None:
        """Take the last message off the path and return it; ``None`` if there is none.

        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold the message before it.
        :raises VersionConflict: messages came faster than they could be read; nothing was written.
        """
        return await self._parts.path.pop(self.conversation_id)

    async def regenerate(self) -> tuple[RecordedMessage, ...]:
        """Take the last answer off the path, and return the user messages that are to be answered again.

        Everything after the last user message leaves the path, tool calls and results too. Consecutive user messages
        before the answer are returned together, oldest first. If they have no answer yet, nothing is written; without a
        user message, the tuple is empty and nothing is written.

        :raises StoreUnavailable: the history store is unreachable, and the outbox does not reach back far enough.
        :raises VersionConflict: messages came faster than they could be read; nothing was written.
        """
        return await self._parts.path.regenerate(self.conversation_id)

    async def replace(
        self, messages: Iterable[Message], *, owner: Owner | None = None, reason: str = "replace"
    ) -> Receipt | None:
        """Make ``messages`` the whole path, in one append: all of it or nothing.

        What the path begins with already stays untouched: the first messages that have the same id and content. The
        rest leaves the path, and the rest of ``messages`` is appended; a message that was there before comes under a
        new id (``Receipt.message_ids``), as an id is used once. If nothing differs but such ids, nothing is written and
        ``None`` is returned, so a retry is safe if the ids are yours.

        If another outbox writes to the conversation before the delivery, the history store sets all of it aside: see
        ``Receipt.superseded()``. Another outbox reads the old path or the new one; of more than 5,000 messages, or
        16 MiB, it may read the first ones without the rest for a moment.

        While the history store is unreachable, messages that the outbox file no longer holds cannot be recognised, and
        keep their ids. Those that the store already has are off the path once all is delivered: see
        ``Receipt.superseded()``.

        :param messages: with ids of their own; none takes all messages off the path.
        :param owner: whose conversation it is; remembered from then on.
        :param reason: kept in the log.
        :raises InvalidInput: an id occurs twice, or something cannot be kept; nothing was written.
        :raises IdReused: an id holds other content, or its message was erased; nothing was written. A message that
            is on the path may come with the content that is shown, edits included.
        :raises VersionConflict: messages came faster than they could be read; nothing was written.
        :raises ConversationGone: the conversation was deleted; nothing was written.
        """
        return await self._parts.path.replace(self.conversation_id, messages, owner=owner_id(owner), reason=reason)

    async def fork(
        self,
        fork_id: str | None = None,
        *,
        at: int | str | None = None,
        owner: Owner | None = None,
        title: str | None = None,
        activate: bool = False,
    ) -> Receipt:
        """Begin a conversation that reads this one up to a point; the receipt holds its id.

        Nothing is copied: ``messages`` of the fork returns those of its parent first. Later events of the parent do not
        show in the fork, except that redacted content is gone here too. If the parent is deleted, the fork keeps what
        it reads, once the history store has both. The parent may be a fork itself.

        :param fork_id: of the new conversation; by default a new UUIDv7.
        :param at: the fork point: now (``None``), a version, or the id of the last message to inherit.
        :param owner: by default the parent's.
        :param activate: make the fork its owner's active conversation.
        :raises InvalidInput: there is no such parent, version or message, or the fork's id is in use; nothing was
            written.
        :raises ConversationGone: the parent was deleted; nothing was written.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold the fork point.
        """
        return await self._parts.path.fork(
            fork_id, of=self.conversation_id, at=at, owner=owner_id(owner), title=title, activate=activate
        )
