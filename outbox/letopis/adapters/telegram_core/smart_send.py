"""Send an answer of any length: as a message, as a preview with a file, or as several messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from letopis.adapters.telegram_core.calls import Failure
from letopis.adapters.telegram_core.content import MEDIA
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.outgoing import Intent, OutgoingRecorder, platform_ids, unrecorded
from letopis.adapters.telegram_core.splitting import CAPTION_LIMIT, TEXT_LIMIT, Entity, Part, beginning, split, units
from letopis.adapters.telegram_core.texts import texts_for
from letopis.store import Message, MessageSent, SendRefused
from letopis.store.model.identifiers import uuid7
from letopis.store.model.parts import File, Text
from letopis.store.model.parts import Part as ContentPart

logger: Final = logging.getLogger("letopis.adapters.telegram")

THRESHOLD: Final = 1200
"""The longest answer that is sent as one message, in UTF-16 units."""
PREVIEW: Final = 600
"""The length of the preview of an answer that is sent as a file, in UTF-16 units."""
_NOTE: Final = 100
"""The space reserved for the text below the preview, in UTF-16 units."""
MAX_WAIT_SECONDS: Final = 90.0
_MAX_REPEATS: Final = 5


class Transport(Protocol):
    """How one answer is sent, through the Telegram library.

    The reply's parameters (the quoted message, the topic, the business connection) apply to every part, the keyboard to
    the last one.
    """

    async def send_text(self, text: str, entities: Sequence[Entity], *, last: bool) -> int:
        """Send a message, formatted by entities and nothing else, and return its message id."""
        ...

    async def send_file(self, path: Path, name: str, caption: str, entities: Sequence[Entity]) -> int:
        """Send a document with a caption, and return its message id."""
        ...

    async def send_media(self, kind: str, reference: str, caption: str, entities: Sequence[Entity]) -> int:
        """Send a file that Telegram has or can fetch, by its id or URL, and return the message id.

        :param kind: as in the Bot API: ``photo``, ``document``, ``voice`` ...
        """
        ...

    def failure_of(self, error: Exception) -> Failure | None:
        """Return what an exception of the library means; ``None`` if it does not come from a call."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """How an answer was sent.

    :ivar sent_as: ``message``, ``file`` or ``messages``.
    :ivar numbers: the message ids that Telegram gave to its parts.
    :ivar file_path: the file as which it was sent.
    :ivar message_id: its id in the history; ``None`` if the outbox refused it.
    """

    sent_as: str
    numbers: tuple[int, ...]
    file_path: str | None
    message_id: str | None


class SmartSender:
    """Sends one bot's answers, and records each as one message.

    Up to ``threshold``, an answer is sent as a message. Longer ones are sent as a file, with a preview as its caption;
    if Telegram refuses the file, as several messages. Rate limits are waited out as Telegram asks. Formatting that
    Telegram refuses is dropped. An answer that fails half-way, or whose outcome is unknown, stays unconfirmed: sending
    it again, in the same process, sends only the parts that Telegram has not confirmed.

    :param threshold: in UTF-16 units, at most 4096.
    :param preview: the length of the preview, in UTF-16 units, at most 924.
    :param sleep: how to wait.
    """

    def __init__(
        self,
        outgoing: OutgoingRecorder,
        *,
        threshold: int = THRESHOLD,
        preview: int = PREVIEW,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        if not 64 <= threshold <= TEXT_LIMIT:
            raise ValueError(f"threshold must be 64 to {TEXT_LIMIT}")
        if not 64 <= preview <= CAPTION_LIMIT - _NOTE:
            raise ValueError(f"preview must be 64 to {CAPTION_LIMIT - _NOTE}")
        self._outgoing = outgoing
        self._files = outgoing.chats.files
        self._threshold = threshold
        self._preview = preview
        self._sleep = sleep

    async def send(
        self,
        transport: Transport,
        key: ChatKey,
        text: str,
        entities: Sequence[Entity] = (),
        *,
        language: str | None = None,
    ) -> Sent:
        """Send an answer, recording it before and after.

        :param entities: its formatting, with offsets in UTF-16 units.
        :param language: of the text beside the file.
        :raises ValueError: the text is only white space.
        :raises Exception: whatever the library raised, if Telegram refused the answer or its outcome is unknown.
        """
        if not text.strip():
            raise ValueError("text must not be empty")
        intent = await self._outgoing.begin(key, text)
        answer = _Answer(transport, {} if intent is None else intent.sent, self._sleep)
        name = str(uuid7()) if intent is None else intent.message_id
        try:
            with unrecorded():
                sent_as, path = await self._deliver(answer, name, text, entities, language)
        except BaseException as error:  # cancellations too: it is then unknown what was sent
            await self._failed(intent, transport, error, answer)
            raise
        numbers = answer.numbers()
        if intent is not None:
            await self._outgoing.sent(intent, numbers, sent_as=sent_as, file_path=path)
        return Sent(
            sent_as=sent_as,
            numbers=numbers,
            file_path=path,
            message_id=None if intent is None else intent.message_id,
        )

    async def send_again(self, transport: Transport, message: Message, *, language: str | None = None) -> MessageSent:
        """Send a recorded message whose outcome is unknown, and return what confirms it.

        Text is sent as a message if Telegram takes it as one. Keyboards and formatting by entities were not recorded.

        :raises SendRefused: Telegram refuses it, or it holds what only the bot can send, such as an uploaded file.
        :raises Exception: whatever the library raised, if it may be sent later.
        """
        text, path = message.content, None
        answer = _Answer(transport, self._outgoing.sent_parts(message.id), self._sleep)
        try:
            with unrecorded():
                if isinstance(text, str) and units(text) > TEXT_LIMIT:
                    sent_as, path = await self._deliver(answer, message.id, text, (), language)
                else:
                    sent_as = await answer.again((Text(text),) if isinstance(text, str) else text or ())
        except Exception as error:
            failure = transport.failure_of(error)
            if failure is None or failure.ending != "refused" or failure.moved_to is not None:
                raise  # a group that moved has its new id after the bot's next call there
            raise SendRefused(failure.reason) from error
        ids = platform_ids(answer.numbers())
        return MessageSent(message_id=message.id, platform_ids=ids, sent_as=sent_as, file_path=path)

    async def _deliver(
        self, answer: _Answer, name: str, text: str, entities: Sequence[Entity], language: str | None
    ) -> tuple[str, str | None]:
        if units(text) <= self._threshold:
            await answer.messages([Part(text, tuple(entities), 0, len(text))])
            return "message", None
        # If parts of it were sent, the file has failed before.
        if not answer.sent and (path := await self._as_file(answer, name, text, entities, language)) is not None:
            return "file", str(path)
        await answer.messages(split(text, entities))
        return "messages", None

    async def _as_file(
        self, answer: _Answer, name: str, text: str, entities: Sequence[Entity], language: str | None
    ) -> Path | None:
        """Send an answer as a file and return its path; ``None`` if it is to be sent as messages instead."""
        texts = texts_for(language)
        head = beginning(text, entities, limit=self._preview)
        preview = Part(f"{head.text} …\n\n{texts.whole_in_file}", head.entities, head.start, head.end)
        try:
            path = await self._files.write(name, text)
        except OSError as error:
            logger.warning("an answer cannot be written to a file, and is split: %s", type(error).__name__)
            return None
        try:
            await answer.file(path, f"{texts.file_name}.txt", preview)
        except BaseException as error:  # cancellations too: the history will not name the file
            await self._files.remove([name])
            failure = answer.transport.failure_of(error) if isinstance(error, Exception) else None
            # If Telegram may have shown it, it would be there twice.
            if failure is None or failure.ending == "unknown" or failure.final:
                raise
            logger.warning("an answer cannot be sent as a file, and is split: %s", failure.reason)
            return None
        return path

    async def _failed(self, intent: Intent | None, transport: Transport, error: BaseException, answer: _Answer) -> None:
        failure = transport.failure_of(error) if isinstance(error, Exception) else None
        if failure is None:
            failure = Failure(ending="unknown", reason=type(error).__name__)
        # A part that was sent is part of the chat; the rest can still be sent.
        if failure.ending == "refused" and answer.sent and not failure.final:
            failure = Failure(ending="unknown", reason=failure.reason)
        await self._outgoing.failed(intent, failure)


@dataclass(slots=True)
class _Answer:
    """The parts of one answer, and the message ids of those that Telegram has confirmed."""

    transport: Transport
    sent: dict[int, int]
    sleep: Callable[[float], Any]

    def numbers(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(number for _, number in sorted(self.sent.items())))

    async def messages(self, parts: Sequence[Part]) -> None:
        """Send messages; confirmed ones are not sent again."""
        for place, part in enumerate(parts, 1):
            if place not in self.sent:
                last = place == len(parts)
                send = partial(self.transport.send_text, part.text, last=last)
                self.sent[place] = await self._repeated(send, part.entities)

    async def file(self, path: Path, name: str, preview: Part) -> None:
        """Send the file, with the preview as its caption."""
        send = partial(self.transport.send_file, path, name, preview.text)
        self.sent[1] = await self._repeated(send, preview.entities)

    async def again(self, content: Sequence[ContentPart]) -> str:
        """Send text, or files that Telegram has with the text before each as its caption, and return how."""
        caption, sent_as, sends = "", list[str](), list[Callable[..., Awaitable[int]]]()
        for part in content:
            if isinstance(part, Text):
                caption = part.text
            elif isinstance(part, File) and part.name and part.name in MEDIA and not part.uri.startswith("tg-upload:"):
                reference = part.uri.removeprefix("tg-file:")
                sends.append(partial(self.transport.send_media, part.name, reference, caption))
                sent_as.append(part.name)
                caption = ""
            else:
                raise SendRefused("the history does not hold what was to be sent")
        if caption:
            sends.append(partial(self.transport.send_text, caption, last=True))
        if not sends:
            raise SendRefused("it is empty")
        for place, send in enumerate(sends, 1):
            if place not in self.sent:
                self.sent[place] = await self._repeated(send, ())
        return sent_as[0] if sent_as else "message"

    async def _repeated(self, send: Callable[..., Awaitable[int]], entities: Sequence[Entity]) -> int:
        waited = 0.0
        for _ in range(_MAX_REPEATS):
            try:
                return await send(entities=entities)
            except Exception as error:
                failure = self.transport.failure_of(error)
                if failure is None:
                    raise
                if failure.formatting and entities:
                    entities = ()  # once: the text is what matters
                elif failure.ending == "retry" and waited + failure.seconds <= MAX_WAIT_SECONDS:
                    waited += failure.seconds
                    await self.sleep(failure.seconds)
                else:
                    raise
        return await send(entities=entities)
