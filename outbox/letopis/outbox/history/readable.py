"""Open and close a history, and read its conversations, messages and records, pending ones included."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from letopis.outbox.concurrency.home_loop import HomeLoop, at_home
from letopis.outbox.history.chat import Chat
from letopis.outbox.history.options import DEFAULT_PAGE_SIZE, Options, Unconfirmed, keywords_of, known_owner
from letopis.outbox.history.receipts import wait_until_drained
from letopis.outbox.history.records import AllRecords
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.identifiers import Owner, owner_id
from letopis.store.read.paging import DEFAULT_STATES, AsOf

if TYPE_CHECKING:
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.history.opening import Parts
    from letopis.outbox.operations.status import Status
    from letopis.outbox.relay.relay import Relay
    from letopis.store.conversation_store import ConversationStore
    from letopis.store.rules.context_window import Context, TokenCounter
    from letopis.store.rules.filter import Filter
    from letopis.store.rules.statistics import Statistics
    from letopis.store.search.results import Hit


@at_home(besides=("close",))
class ReadableHistory:
    """A history that is read: opened on first use, its outbox shared with others on the same file, closed."""

    @keywords_of(Options)
    def __init__(self, options: Options) -> None:
        # With the first history rather than with its class: the relay, the readers and what else works in one.
        from letopis.outbox.history.opening import HistorySettings
        from letopis.outbox.history.sharing import SharedAccess

        self._home = SharedAccess(HistorySettings.of(options))

    async def __aenter__(self) -> Self:
        try:
            await self.prepare()
        except BaseException:  # a cancellation too, also one that comes when it is open
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def prepare(self) -> None:
        """Open the outbox now instead of on the first use. Idempotent.

        A failure leaves nothing open, and the next use tries again.

        :raises ConfigurationError: the file cannot be an outbox, or it is open in this process with other options.
        :raises OutboxUnavailable: the file cannot be used at present.
        :raises Closed: the history is closed, or was opened before this process was forked off.
        """

    async def close(self) -> None:
        """Close the history; nothing has to be delivered first. Idempotent; from any task, event loop and thread.

        The last history on a file closes its outbox: that cuts off open replies, and waits some seconds for the batch
        in flight; the rest stays on disk.

        :raises OutboxUnavailable: this task holds a transaction on the outbox, or the loop that the outbox is open in
            stands still.
        """
        await self._home.close()

    @property
    def outbox(self) -> OutboxFile:
        """The outbox file, once it is open; to be used in the event loop that it is open in."""
        return self._parts.outbox

    @property
    def store(self) -> ConversationStore:
        """The history store, once the outbox is open; to be used in the event loop that it is open in."""
        return self._parts.store

    @property
    def relay(self) -> Relay | None:
        """The relay of this process, once the outbox is open; ``None`` if another process delivers."""
        return self._parts.relay

    @property
    def _parts(self) -> Parts:
        return self._home.parts

    async def _find_home(self) -> HomeLoop:
        return await self._home.prepare()

    async def status(self) -> Status:
        """Return the state of the outbox and the relay, without contacting the history store.

        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        from letopis.outbox.operations.status import read_status

        return await self.outbox.read(lambda connection: read_status(connection, now_us=self.outbox.now_us()))

    async def drained(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the answer is False, no error
        """Wait until nothing is pending, at most ``timeout`` seconds, and return True if that is so.

        Returns False at once if all pending events wait for an operator. Without a relay, here or in another process,
        it waits for ever: give a timeout.

        :raises InvalidInput: ``timeout`` is not a number of seconds.
        """
        return await wait_until_drained(self.outbox, timeout)

    async def unconfirmed(self, *, owner: Owner | None = None) -> tuple[Unconfirmed, ...]:
        """Return the replies that were neither confirmed as sent nor as failed, the oldest first.

        These are the replies of this outbox, also those that are being sent at this moment, which are not
        ``abandoned``. ``sent`` or ``failed`` takes a reply off the list. After 30 days it leaves the list too, once the
        outbox does not hold the message any more.

        :raises InvalidInput: the owner is wrong.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.replies.unconfirmed(owner=owner_id(owner))

    @property
    def records(self) -> AllRecords:
        """What frameworks keep beside the messages: call it for the records of a conversation, an owner or a space."""
        return AllRecords(self._home)

    def chat(self, conversation_id: str) -> Chat:
        """Return a conversation, with what changes it and reads more of it than its messages."""
        return Chat(conversation_id, self._home)

    async def messages(
        self,
        conversation_id: str,
        *,
        last: int | None = DEFAULT_PAGE_SIZE,
        first: int | None = None,
        before: int | str | None = None,
        after: int | str | None = None,
        every: bool = False,
        where: Filter | None = None,
        offset: int = 0,
        as_of: AsOf | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - for one request to the store, with an error of its own
    ) -> Page[RecordedMessage]:
        """Return the newest ``last`` messages, or the ``first``, oldest first, pending ones included.

        Page backward with ``before=page.next``, or forward with ``first=50, after=page.next``. ``last=None`` returns
        all messages. Those that a fork inherits come first, with the id and the versions of their own conversation.
        While the history store is unreachable, the page holds what the outbox retains, and its ``complete`` is
        ``False``; so it is while an ancestor of a fork is neither here nor there.

        :param before: the ``next`` of a page, or a version of the conversation itself.
        :param after: the ``next`` of a page, or a version of the conversation itself.
        :param every: include its own messages that left the active path: rewound, or superseded.
        :param where: return only messages that this filter wants. All messages up to the last one that is returned are
            read, in pages; the last page may be empty.
        :param offset: leave out as many of them, the newest with ``last`` and the oldest with ``first``; they are read.
        :param as_of: as they were after this version, or after the last event that occurred by this moment. Pending
            events have no version and belong to moments only. Content that was erased since is not returned.
        :param timeout: with ``as_of``: seconds that the history store may take, instead of ``read_timeout``.
        :raises InvalidInput: an argument is wrong.
        :raises ReadTimeout: the past could not be read in that time.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.reader.messages(
            conversation_id,
            last=None if first is not None and last == DEFAULT_PAGE_SIZE else last,
            first=first,
            before=before,
            after=after,
            every=every,
            where=where,
            offset=offset,
            as_of=as_of,
            timeout=timeout,
        )

    async def message(self, message_id: str) -> RecordedMessage | None:
        """Return one message of any conversation by its id, as ``Chat.message`` does within one.

        :raises InvalidInput: an argument is wrong, or several conversations have a message of this id.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold the message.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.finder.find(message_id, None)

    async def context(
        self,
        conversation_id: str,
        *,
        last: int | None = None,
        turns: int | None = None,
        tokens: int | None = None,
        count: TokenCounter | None = None,
        keep_system: bool = True,
        until: str | None = None,
    ) -> Context:
        """Return the newest part of a conversation that fits a model, pending messages included.

        ::

            context = await history.context("chat-1", turns=20)
            answer = await model.complete(context.messages)
            await history.append("chat-1", Message.assistant(answer), after=context)

        The limits, and how tool calls stay with their results, are those of
        :func:`letopis.store.rules.context_window.window`. Only as much is read as the window needs, and the beginning
        for its system messages; so of a long conversation ``orphans`` is not known, and a call whose result was
        recorded long before it counts as interrupted. While the history store is unreachable, ``reached`` is ``False``.

        :param until: the id of the message that the window ends with, such as the question to answer if later messages
            may be recorded already; by default the newest. ``seen`` covers the later ones, too.
        :raises InvalidInput: a limit is wrong, the system messages alone exceed it, or ``until`` is not on the path or
            is redacted.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold ``until``.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        from letopis.outbox.history.context import read_window
        from letopis.store.rules.context_window import WindowBudget

        budget = WindowBudget(last=last, turns=turns, tokens=tokens, count=count, keep_system=keep_system)
        return await read_window(self._parts.reader, conversation_id, budget, until)

    @overload
    async def active(self, owner: Owner, *, create: Literal[True] = True) -> Conversation: ...

    @overload
    async def active(self, owner: Owner, *, create: bool) -> Conversation | None: ...

    async def active(self, owner: Owner, *, create: bool = True) -> Conversation | None:
        """Return the owner's active conversation, pending events included; begin one if there is none.

        Concurrent calls of this history begin only one; two processes may each begin one, of which one is active.
        While the history store is unreachable, it is the one that this outbox activated last, or the owner's
        conversation with the newest activity in it.

        :param create: ``False`` to return ``None`` if there is none.
        :raises InvalidInput: ``owner`` cannot be one.
        """
        return await self._parts.conversations.active(known_owner(owner), create=create)

    async def conversations(
        self,
        *,
        owner: Owner | None = None,
        after: str | None = None,
        limit: int = 50,
        states: Collection[str] = DEFAULT_STATES,
        oldest_first: bool = False,
        last_message: bool = False,
    ) -> Page[Conversation]:
        """Return a page of conversations by last activity, the newest first, pending ones included.

        With ``owner``, only that owner's conversations, the active one first. A page may hold fewer than ``limit``
        although there are more: go on while ``next`` is not ``None``. A conversation that is written to meanwhile moves
        to the front, so later pages may miss it.

        :param after: the ``next`` of the page before.
        :param states: which to return: ``active``, ``archived``, ``deleted``.
        :param oldest_first: begin with the oldest activity, also of an owner's conversations. One that is written to
            meanwhile moves to the end, and shows again.
        :param last_message: read the last message of each, too.
        :raises InvalidInput: an argument is wrong.
        """
        reader, place = self._parts.reader, dict[str, Any](after=after, limit=limit, states=states)
        if owner is not None and not oldest_first:
            page = await self._parts.conversations.list_of(known_owner(owner), **place)
        else:
            page = await reader.conversations(owner=owner_id(owner), oldest_first=bool(oldest_first), **place)
        return await reader.with_last_messages(page) if last_message else page

    async def search(
        self,
        query: str,
        *,
        owner: Owner | None = None,
        conversation: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> Page[Hit]:
        """Return a page of the messages that contain all words of ``query``, the best ones first.

        ::

            for hit in await history.search('green tea "no sugar" -coffee', owner=42):
                print(hit.message.text)

        ``"quoted words"`` match literally and next to each other, and ``-word`` excludes a word. Case, accents and the
        dots of ``ё`` do not matter; Russian and English words match in their other forms.

        Pending messages are found too, and come first, the newest first. Edits, redactions, rewinds and deletions that
        were made here count at once.

        Pages show what was there when the first one was made, each message once. A page may hold fewer than ``limit``:
        go on while there is a ``next``. ``complete`` is ``False`` while the history store is unreachable (only the
        outbox is searched then), while its index is being built (``unindexed`` events were not searched), or with more
        than 10,000 pending events.

        :param owner: search only this owner's conversations.
        :param conversation: search only this conversation.
        :param after: the ``next`` of the page before, of the same search.
        :raises InvalidInput: ``query`` has no word, more than 1,000 characters or more than 32 words, or another
            argument is wrong.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.search.search(
            query, owner=owner_id(owner), conversation=conversation, limit=limit, after=after
        )

    async def statistics(
        self,
        *,
        owner: Owner | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        by: str | None = None,
    ) -> Statistics:
        """Count the messages of a period, of one owner or of all, pending ones included, each once.

        Each message of the period is read, page by page, which takes long for all owners of a large store. While the
        history store is unreachable, only the outbox is counted, and ``complete`` is ``False``.

        :param since: the first moment of the period, aware; compared with ``occurred_at``.
        :param until: the first moment after the period, aware.
        :param by: a key of the messages' metadata, by whose values the figures are also grouped.
        :raises InvalidInput: an argument is wrong, or the key has more than 10,000 values.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.counter.statistics(owner=owner_id(owner), since=since, until=until, by=by)
