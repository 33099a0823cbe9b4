"""A reply: written piece by piece, kept while it is written, appended when it ends, and confirmed after that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa

from letopis.outbox import drafts
from letopis.outbox.append import prepare
from letopis.outbox.composing import Composition
from letopis.outbox.ending import VAIN, Ending, end, let_go
from letopis.outbox.receipts import Deliveries, Receipt, receipt_of
from letopis.outbox.saying import Saying
from letopis.store.codec import Limits
from letopis.store.errors import Closed, InvalidInput, LetopisError
from letopis.store.events import Event
from letopis.store.messages import Message, Part
from letopis.store.shield import uninterrupted
from letopis.store.vocabulary import MessageAppended

logger: Final = logging.getLogger("letopis.outbox.history")


class Reply:
    """A reply that is being written. Made by ``History.reply()``.

    Used by one task at a time. What was said is in the history once it is finished; until then it is kept as a draft,
    which nobody reads as a message, and of which the last ``every`` seconds may be missing after a crash.

    :ivar conversation_id: of the conversation. ``message_id`` and ``event_id``: of the message that it becomes.
    """

    def __init__(
        self,
        history: Saying,
        deliveries: Deliveries,
        *,
        conversation_id: str,
        owner: str | None,
        empty: Message,
        event_id: UUID,
        writer: str,
        limits: Limits,
        every: float | None,
    ) -> None:
        self.conversation_id = conversation_id
        self.message_id = empty.id
        self.event_id = event_id
        self._history = history
        self._outbox = history.outbox
        self._deliveries = deliveries
        self._owner = owner
        self._empty = empty
        self._writer = writer
        self._limits = limits
        self._every = every
        self._composition = Composition(empty, limits)
        self._started_us = self._outbox.now_us()
        self._ending = asyncio.Lock()
        self._receipt: Receipt | None = None
        self._interrupted = False
        self._over = False
        self._settled = False
        self._fresh = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._kept = 0

    @property
    def text(self) -> str:
        """The words for people so far."""
        return self._composition.text

    @property
    def kept(self) -> int:
        """How many characters of the text are on disk by now, so that a crash does not take them."""
        return self._kept

    @property
    def receipt(self) -> Receipt | None:
        """The receipt of the message; ``None`` until there is one."""
        return self._receipt

    @property
    def interrupted(self) -> bool:
        """Whether it was cut off, and its message is as far as it came."""
        return self._interrupted

    async def add(self, what: str | Part) -> None:
        """Say more: a piece of text, or a part such as a file or a tool call.

        Does not wait for the disk. Text goes on where the text before it ended, and so does a model's reasoning.

        :raises InvalidInput: it cannot be kept, or the message would be larger than the limit: finish it, and go on in
            another. What was said before is not touched.
        :raises Closed: the reply has ended.
        """
        if self._over or self._receipt is not None:
            raise Closed("the reply has ended: begin another")
        self._composition.add(what)
        if self._every is not None and not self._composition.nothing:
            self._fresh.set()
            if self._keeping is None:
                self._keeping = asyncio.create_task(self._keep(self._every), name="letopis-reply")
        # A source that never waits would keep the draft from being written.
        await asyncio.sleep(0)

    async def finish(
        self,
        *,
        tokens: int | None = None,
        usage: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Append the message; when this returns, neither ``kill -9`` nor a power cut takes it away.

        From here on it waits to be confirmed, by :meth:`sent` or :meth:`failed`. Again returns the same receipt. Being
        cancelled does not stop it. Where it is refused, the reply goes on, and may be finished again.

        :param tokens, usage: of the message, as in ``Message``.
        :param metadata: of the message, added to what it began with.
        :raises InvalidInput: an argument cannot be kept, or the conversation has another owner.
        :raises EventIdReused: a message of this id was appended meanwhile.
        :raises ConversationGone: the conversation was deleted meanwhile.
        :raises OutboxFull: the outbox or its disk is full; nothing was written and nothing was dropped.
        :raises OutboxUnavailable: the outbox file cannot be written.
        :raises Closed: the reply was cut off, or the history is closed.
        """
        if metadata is not None and not isinstance(metadata, Mapping):
            raise InvalidInput("metadata", f"must be an object, not {type(metadata).__name__}")
        message = replace(
            self._empty,
            tokens=tokens,
            usage={} if usage is None else usage,
            metadata={**self._empty.metadata, **(metadata or {})},
        )
        return await uninterrupted(self._finish(message))

    async def sent(
        self,
        *,
        platform_ids: Mapping[str, Any] | None = None,
        sent_as: str | None = None,
        file_path: str | None = None,
    ) -> Receipt:
        """Say that the platform took the reply, as ``History.sent`` does; finishes it first where it is not.

        :raises InvalidInput: an argument cannot be kept, or nothing was said.
        :raises LetopisError: as for :meth:`finish`.
        """
        await self._appended()
        return await self._history.sent(
            self.conversation_id, self.message_id, platform_ids=platform_ids, sent_as=sent_as, file_path=file_path
        )

    async def failed(self, *, reason: str | None = None) -> Receipt:
        """Say that the platform did not take the reply; finishes it first where it is not. The message stays.

        :raises InvalidInput: an argument cannot be kept, or nothing was said.
        :raises LetopisError: as for :meth:`finish`.
        """
        await self._appended()
        return await self._history.failed(self.conversation_id, self.message_id, reason=reason)

    # For the history.

    @property
    def settled(self) -> bool:
        """Whether it has ended, with nothing left to be done."""
        return self._settled

    @property
    def owed(self) -> bool:
        """Whether it was cut off, and is not in the history yet."""
        return self._over and not self._settled

    async def leave(self) -> None:
        """End the reply after its block has ended well: finish it, or let it go where nothing was said."""
        if self._receipt is None and not self._composition.nothing:
            await self.finish()
        await uninterrupted(self._close())

    async def break_off(self) -> None:
        """End the reply where its writer was cut off: what was said becomes an interrupted message.

        Where it cannot be appended now, that is logged, and this may be called again.
        """
        await uninterrupted(self._break_off())

    # Below: not to be cancelled.

    async def _finish(self, message: Message) -> Receipt:
        async with self._ending:
            if self._interrupted or (self._over and self._receipt is None):
                raise Closed("the reply was cut off: begin another")
            if self._receipt is None:
                self._receipt = await self._append(message)
            await self._stop_keeping()
            return self._receipt

    async def _break_off(self) -> None:
        async with self._ending:
            self._over = True
            await self._stop_keeping()
            context = {"conversation_id": self.conversation_id, "message_id": self.message_id}
            try:
                if self._receipt is None and not self._composition.nothing:
                    self._receipt = await self._append(replace(self._empty, status="interrupted"))
                    self._interrupted = True
            except VAIN as refused:
                logger.warning("a reply that was cut off was let go: %s", refused, extra=context)
                with suppress(LetopisError):  # then it is found after this history, and let go again
                    await let_go(self._outbox, self.conversation_id, self.message_id, self.event_id)
            except LetopisError as error:
                logger.warning("a reply that was cut off is not in the history yet: %s", error, extra=context)
                return
            self._settled = True

    async def _close(self) -> None:
        async with self._ending:
            self._over = self._settled = True
            await self._stop_keeping()

    async def _append(self, message: Message) -> Receipt:
        whole = replace(message, content=self._composition.content)
        event = Event(type=MessageAppended.type, data=whole.to_data(), event_id=self.event_id)
        prepared = prepare(self.conversation_id, (event,), owner=self._owner, limits=self._limits)
        ending = Ending(prepared=prepared, message_id=self.message_id, writer=self._writer)
        appended = await self._outbox.write(lambda connection: end(connection, self._outbox, ending))
        self._outbox.appended.ring()
        self._kept = self._composition.characters
        return receipt_of(appended, self._deliveries)

    async def _appended(self) -> None:
        if self._receipt is None:
            if self._composition.nothing:
                raise InvalidInput("reply", "nothing was said in it")
            await self.finish()

    async def _keep(self, every: float) -> None:
        """Keep the draft: soon after the first piece, then at most every so many seconds."""
        silent = False
        while True:
            await self._fresh.wait()
            self._fresh.clear()
            characters = self._composition.characters
            try:
                await self._outbox.write(self._draft())
                self._kept, silent = characters, False
            except Exception as error:  # whatever it was, the reply goes on; its end will tell
                if not silent:
                    logger.warning(
                        "a draft of a reply cannot be kept, the reply goes on: %s",
                        error if isinstance(error, LetopisError) else type(error).__name__,
                        extra={"conversation_id": self.conversation_id, "message_id": self.message_id},
                    )
                silent = True
            await asyncio.sleep(every)

    def _draft(self) -> Callable[[sa.Connection], bool]:
        message = replace(self._empty, content=self._composition.content, status="interrupted")
        now_us = self._outbox.now_us()

        def work(connection: sa.Connection) -> bool:
            cursor = connection.connection.cursor()
            try:
                # A draft does not take the space that is kept for delivering.
                self._outbox.check_room(cursor)
                draft = drafts.Draft(
                    conversation_id=self.conversation_id,
                    message_id=self.message_id,
                    event_id=self.event_id,
                    owner_id=self._owner,
                    data=orjson.dumps(message.to_data(), option=orjson.OPT_SORT_KEYS).decode(),
                    writer=self._writer,
                    started_at=self._started_us,
                    updated_at=now_us,
                )
                return drafts.keep(cursor, draft)
            finally:
                cursor.close()

        return work

    async def _stop_keeping(self) -> None:
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait((keeping,))
