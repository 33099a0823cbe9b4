"""Write a reply piece by piece, keep it as a draft meanwhile, and append it as one message when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa

from letopis.outbox.concurrency.fair_lock import TRANSACTION_TOKEN, current_caller
from letopis.outbox.concurrency.home_loop import at_home
from letopis.outbox.drafts.completion import FINAL_REFUSALS, complete, delete_draft
from letopis.outbox.drafts.content import DraftContent
from letopis.outbox.event_log import drafts
from letopis.outbox.event_log.append_encoding import Prepared, prepare
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.event_log.statements import on_cursor
from letopis.outbox.history.receipts import Receipt
from letopis.outbox.telemetry.tracing import appending
from letopis.store.cancellation import run_to_completion
from letopis.store.errors import Closed, InvalidInput, LetopisError, OutboxFull, OutboxUnavailable
from letopis.store.model.codec import by_value
from letopis.store.model.event_types import MessageAppended, MessageFailed, MessageSent
from letopis.store.model.events import Event
from letopis.store.model.messages import Message
from letopis.store.model.parts import Part

if TYPE_CHECKING:
    from letopis.outbox.file.joint_write import CompanionWrite, TransactionEnd
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.history.append import Appender

logger: Final = logging.getLogger("letopis.outbox.history")

_IN_LOG: Final = (
    "SELECT 1 FROM letopis_outbox_known_ids WHERE event_id = ?"
    " UNION ALL SELECT 1 FROM letopis_outbox_lanes WHERE conversation_id = ? AND pruned >= ?"
)
_INSIDE_TRANSACTION: Final = (
    "this task holds a transaction on the outbox, and would wait for itself: finish the reply with tx.finish(reply)"
)
_OPEN_TRANSACTION: Final = "the reply is finished in a transaction that is open: end that first"


@at_home()
class Reply:
    """A reply that is being written. Made by ``History.reply()``; used by one task at a time.

    The message is in the history once the reply is finished. Until then it is kept as a draft, which no read returns,
    and of which the last ``every`` seconds may be missing after a crash.

    :ivar conversation_id: of the conversation.
    :ivar message_id: of the message that the reply becomes.
    :ivar event_id: of the event that appends the message.
    """

    def __init__(
        self,
        appender: Appender,
        conversation_id: str,
        empty: Message,
        owner: str | None,
        *,
        event_id: UUID,
        writer: str,
        every: float | None,
        confirm: bool,
        hand_over: Callable[[str, str], Awaitable[bool]],
    ) -> None:
        self.conversation_id = conversation_id
        self.message_id = empty.id
        self.event_id = event_id
        self._outbox = appender.outbox
        self._home = appender.outbox.home
        self._appender = appender
        self._owner = owner
        self._empty = empty
        self._writer = writer
        self._every = every
        self._confirm = confirm
        self._hand_over = hand_over
        self._begun = False  # its draft is in the file
        self._erased = False  # by an erasure of its conversation, so that nothing more is written
        self._content = DraftContent(empty, self._appender.limits)
        self._started_us = self._outbox.now_us()
        self._ending = asyncio.Lock()
        self._receipt: Receipt | None = None
        self._joined: tuple[Receipt, TransactionEnd] | None = None  # in a transaction whose end is not known yet
        self._interrupted = False
        self._over = False
        self._settled = False
        self._changed = asyncio.Event()
        self._saving: asyncio.Task[None] | None = None
        self._kept = 0

    @property
    def text(self) -> str:
        """The visible text so far."""
        return self._content.text

    @property
    def kept(self) -> int:
        """How many characters of the text are on disk, so that a crash does not take them."""
        return self._kept

    @property
    def receipt(self) -> Receipt | None:
        """The receipt of the message; ``None`` until there is one."""
        return self._receipt

    @property
    def interrupted(self) -> bool:
        """Whether the reply was cut off, so that its message is incomplete."""
        return self._interrupted

    async def add(self, what: str | Part) -> None:
        """Add a piece of text, or a part such as a file or a tool call. Does not wait for the disk.

        Consecutive pieces of text become one text, and consecutive pieces of reasoning one :class:`Reasoning`.

        :raises InvalidInput: the piece cannot be kept, or the message would exceed the limit: finish it, and go on in
            another one. What was added before is not affected.
        :raises Closed: the reply has ended, or its conversation was erased since it began: what it has said is erased
            too. With ``every=None``, :meth:`finish` raises it.
        """
        if not await self._resolve():
            raise Closed("the reply is finished in a transaction that is open: what is added now would not be in it")
        if self._erased:
            raise drafts.Erased
        if self._over or self._receipt is not None:
            raise Closed("the reply has ended: begin another")
        self._content.add(what)
        if self._every is not None and not self._content.empty:
            self._changed.set()
            if self._saving is None:
                self._saving = asyncio.create_task(self._save_repeatedly(self._every), name="letopis-reply")
        # A source that never waits would keep the draft from being written.
        await asyncio.sleep(0)

    async def finish(
        self,
        *,
        tokens: int | None = None,
        usage: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Append the message durably: once this returns, it survives ``kill -9`` and a power cut.

        From then on it waits to be confirmed by :meth:`sent` or :meth:`failed`, unless the reply was begun with
        ``confirm=False``. Calling it again returns the same receipt. A cancellation does not stop it. If it is refused,
        the reply stays open and may be finished again. Inside a transaction, use
        ``tx.finish``.

        :param tokens: of the message, as in ``Message``.
        :param usage: of the message, as in ``Message``.
        :param metadata: of the message, added to what the reply began with.
        :raises InvalidInput: an argument cannot be kept, or the conversation has another owner.
        :raises IdReused: a message with this id was appended meanwhile.
        :raises ConversationGone: the conversation was deleted meanwhile.
        :raises OutboxFull: the outbox or its disk is full; nothing was written and nothing was dropped.
        :raises OutboxUnavailable: the outbox file cannot be written, or this task holds a transaction on it.
        :raises Closed: the reply was cut off, its conversation was erased since it began, or the history is closed.
        """
        message = self._message(tokens=tokens, usage=usage, metadata=metadata)
        if self._would_wait_for_itself():
            raise OutboxUnavailable(_INSIDE_TRANSACTION)
        return await run_to_completion(self._finish(message))

    async def sent(
        self, *, platform_ids: Mapping[str, Any] | None = None, sent_as: str | None = None, file_path: str | None = None
    ) -> Receipt:
        """Record that the platform accepted the reply, as ``History.sent`` does. Finishes the reply if needed.

        :raises InvalidInput: an argument cannot be kept, or the reply is empty.
        :raises LetopisError: as for :meth:`finish`.
        """
        await self._ensure_appended()
        body = MessageSent(message_id=self.message_id, platform_ids=platform_ids, sent_as=sent_as, file_path=file_path)
        return await self._appender.change(self.conversation_id, body)

    async def failed(self, *, reason: str | None = None) -> Receipt:
        """Record that the platform rejected the reply; the message stays. Finishes the reply if needed.

        :raises InvalidInput: an argument cannot be kept, or the reply is empty.
        :raises LetopisError: as for :meth:`finish`.
        """
        await self._ensure_appended()
        return await self._appender.change(
            self.conversation_id, MessageFailed(message_id=self.message_id, reason=reason)
        )

    async def send(self) -> bool:
        """Leave the reply to the history's ``sender``, if its own sending failed or was not tried.

        It is sent in the background, after the earlier replies of its conversation, until the platform accepts it.
        Finishes the reply if needed. Idempotent. Return False if nothing sends it: the history has no ``sender``, or
        the reply is confirmed already, or needs no confirmation.

        :raises InvalidInput: the reply is empty.
        :raises LetopisError: as for :meth:`finish`.
        """
        await self._ensure_appended()
        return await self._hand_over(self.conversation_id, self.message_id)

    # For the history and its transactions.

    async def _finish_within(
        self,
        outbox: OutboxFile,
        write: Callable[[Prepared, CompanionWrite], Awaitable[Appended]],
        end: TransactionEnd,
        *,
        tokens: int | None,
        usage: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
    ) -> Receipt:
        """Append the message with ``write``, in an open transaction on ``outbox``; it counts once that commits."""
        if outbox is not self._outbox:
            raise InvalidInput("reply", "belongs to another history: finish it in a transaction of that one")
        message = self._message(tokens=tokens, usage=usage, metadata=metadata)
        if self._ending.locked():
            raise Closed("the reply is being ended by another task")

        async def finish() -> Receipt:
            async with self._ending:
                await self._resolve()
                self._check_open()
                if self._receipt is not None:
                    return self._receipt
                prepared = self._prepare(message)
                appended = await write(prepared, lambda cursor, _: delete_draft(cursor, prepared))
                receipt = Receipt(appended, self._appender.deliveries, void=end.rolled_back)
                self._joined = receipt, end
                return receipt

        return await run_to_completion(finish())

    @property
    def _needs_retry(self) -> bool:
        """Whether the reply was cut off, and is not in the history yet."""
        return self._over and not self._settled

    async def _leave(self) -> None:
        """Finish the reply after its block has ended well, or discard it if it is empty."""
        if not await self._resolve():
            self._over = True
            return
        if self._receipt is None and not self._content.empty:
            await self.finish()
        await run_to_completion(self._close(waits=not self._would_wait_for_itself()))

    async def _interrupt(self) -> None:
        """Make an interrupted message of what was written; log a failure, after which it may be called again."""
        if self._would_wait_for_itself():
            self._over = True
            logger.warning(
                "a reply was cut off inside a transaction: it is appended once that has ended", extra=self._log_context
            )
            return
        await run_to_completion(self._append_interrupted())

    # Not to be cancelled: run to completion by the callers.

    async def _finish(self, message: Message) -> Receipt:
        async with self._ending:
            if not await self._resolve():
                raise Closed(_OPEN_TRANSACTION)
            self._check_open()
            if self._receipt is None:
                self._receipt = await self._append(message)
            await self._stop_saving()
            return self._receipt

    async def _append_interrupted(self) -> None:
        async with self._ending:
            self._over = True
            await self._stop_saving()
            if not await self._resolve():
                return  # retried once the transaction has ended
            try:
                if self._receipt is None and not self._content.empty:
                    self._receipt = await self._append(replace(self._empty, status="interrupted"))
                    self._interrupted = True
            except FINAL_REFUSALS as refused:
                logger.warning("a reply that was cut off was discarded: %s", refused, extra=self._log_context)
            except LetopisError as error:
                logger.warning("a reply that was cut off is not in the history yet: %s", error, extra=self._log_context)
                return
            await self._settle()

    async def _close(self, *, waits: bool) -> None:
        async with self._ending:
            self._over = True
            await self._stop_saving()
            await self._settle(waits=waits)

    async def _settle(self, *, waits: bool = True) -> None:
        self._settled = True
        if waits and self._begun and self._receipt is None:  # nothing was said, or it was refused for good
            with suppress(LetopisError):  # the next history that opens the file discards the draft
                draft = (self.conversation_id, self.message_id, self.event_id)
                await self._outbox.write(lambda connection: on_cursor(connection, drafts.delete, *draft))

    # How it stands.

    @property
    def _log_context(self) -> dict[str, str]:
        return {"conversation_id": self.conversation_id, "message_id": self.message_id}

    def _would_wait_for_itself(self) -> bool:
        return self._receipt is None and self._joined is None and self._outbox.gate.holder is current_caller()

    def _check_open(self) -> None:
        if self._interrupted or (self._over and self._receipt is None):
            raise Closed("the reply was cut off: begin another")

    async def _resolve(self) -> bool:
        """Find out how the transaction ended that finishes the reply. Return False while it is open."""
        if self._joined is None:
            return True
        receipt, end = self._joined
        over = end.ended.is_set()
        values = (self.event_id.bytes, self.conversation_id, receipt.sequence)
        if await self._outbox.read(lambda connection: connection.exec_driver_sql(_IN_LOG, values).first()) is not None:
            self._receipt, self._kept, self._joined = receipt, self._content.characters, None
            await self._stop_saving()
        elif over:
            self._joined = None
        return self._joined is None

    async def _ensure_appended(self) -> None:
        if not await self._resolve():
            raise Closed(_OPEN_TRANSACTION)
        if self._receipt is None:
            if self._content.empty:
                raise InvalidInput("reply", "is empty: add text to it first")
            await self.finish()

    # What is written.

    def _message(
        self, *, tokens: int | None, usage: Mapping[str, Any] | None, metadata: Mapping[str, Any] | None
    ) -> Message:
        if metadata is not None and not isinstance(metadata, Mapping):
            raise InvalidInput("metadata", f"must be an object, not {type(metadata).__name__}")
        return replace(
            self._empty,
            tokens=tokens,
            usage={} if usage is None else usage,
            metadata={**self._empty.metadata, **(metadata or {})},
        )

    def _prepare(self, message: Message) -> Prepared:
        whole = replace(message, content=self._content.content)
        event = Event(type=MessageAppended.type, data=whole.to_data(), event_id=self.event_id)
        with appending(self.conversation_id, (event,)):
            prepared = prepare(self.conversation_id, (event,), owner=self._owner, limits=self._appender.limits)
        prepared.draft = self.message_id if self._begun else None
        if self._confirm:
            prepared.to_confirm, prepared.writer = {self.event_id: self.message_id}, self._writer
        return prepared

    async def _append(self, message: Message) -> Receipt:
        prepared = self._prepare(message)
        appended = await self._outbox.write(lambda connection: complete(connection, self._outbox, prepared))
        self._kept = self._content.characters
        return Receipt(appended, self._appender.deliveries)

    async def _save_repeatedly(self, every: float) -> None:
        """Save the draft soon after the first piece, and then at most once every ``every`` seconds."""
        TRANSACTION_TOKEN.set(None)  # waits for a transaction of its caller as for any other
        failing = False
        while True:
            await self._changed.wait()
            self._changed.clear()
            characters = self._content.characters
            try:
                self._begun = await self._outbox.write(self._draft_writer())
                self._kept, failing = characters, False
            except drafts.Erased:
                self._erased = True
                return
            except Exception as error:  # whatever it was, the reply goes on; its end reports the failure
                if not failing:
                    reason = error if isinstance(error, LetopisError) else type(error).__name__
                    logger.warning(
                        "a draft of a reply cannot be kept, the reply goes on: %s", reason, extra=self._log_context
                    )
                failing = True
            await asyncio.sleep(every)

    async def _begin(self, check: Callable[[sa.Connection], None]) -> None:
        """Refuse what could not be appended, and note the reply in the file, so that an erasure ends it."""

        def work(connection: sa.Connection) -> bool:
            check(connection)
            return self._on_draft(connection, drafts.begin)

        async def begin() -> None:
            self._begun = await self._outbox.write(work)

        if not self._would_wait_for_itself():
            with suppress(OutboxFull, OutboxUnavailable):  # the first save begins it then
                await run_to_completion(begin())
                return
        await self._outbox.read(check)

    def _draft_writer(self) -> Callable[[sa.Connection], bool]:
        message = replace(self._empty, content=self._content.content, status="interrupted")
        data = message.to_data() if self._confirm else {**message.to_data(), drafts.CONFIRM: False}
        encoded = orjson.dumps(by_value(data)).decode()

        def save(connection: sa.Connection) -> bool:
            if not self._begun and not self._on_draft(connection, drafts.begin):
                return False
            if not self._on_draft(connection, drafts.save, encoded):
                on_cursor(connection, drafts.check, self.conversation_id, self.message_id, self.event_id)
            return True

        return save

    def _on_draft(self, connection: sa.Connection, work: Callable[[Any, drafts.Draft], bool], data: str = "") -> bool:
        draft = drafts.Draft(
            conversation_id=self.conversation_id,
            message_id=self.message_id,
            event_id=self.event_id,
            owner_id=self._owner,
            data=data,
            writer=self._writer,
            started_at=self._started_us,
            updated_at=self._outbox.now_us(),
        )
        with closing(connection.connection.cursor()) as cursor:
            self._outbox.gate.check_room(cursor)  # a draft does not take the space that is reserved for delivery
            return work(cursor, draft)

    async def _stop_saving(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.cancel()
            await asyncio.wait((saving,))
