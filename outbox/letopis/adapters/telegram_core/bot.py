"""Assemble what an adapter needs for one bot."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, timedelta, tzinfo
from pathlib import Path
from typing import Any, Final, Protocol, Self, cast

from letopis.adapters.telegram_core.chat_history import ChatHistory
from letopis.adapters.telegram_core.chats import Chats
from letopis.adapters.telegram_core.incoming import IncomingRecorder, Recorded
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.local_state import LocalState
from letopis.adapters.telegram_core.menu import Menu
from letopis.adapters.telegram_core.outgoing import OutgoingRecorder
from letopis.adapters.telegram_core.smart_send import PREVIEW, THRESHOLD, SmartSender, Transport
from letopis.adapters.telegram_core.texts import COMMANDS
from letopis.outbox import History, Incident, UnsentReply
from letopis.store import InvalidInput, MessageSent, SendRefused
from letopis.store.model.events import utc_now

logger: Final = logging.getLogger("letopis.adapters.telegram")

HANDLING_LIMIT: Final = timedelta(hours=1)
"""How long a reply that was never confirmed waits for the handler of its update, which may send it."""


class Sends(Protocol):
    """What a history needs from an adapter: its ``on_stuck``, ``on_recovered`` and ``sender``."""

    async def tell(self, incident: Incident) -> None: ...

    async def send_again(self, reply: UnsentReply) -> MessageSent: ...


def history_of(
    given: str | os.PathLike[str] | History,
    chats: Sends,
    *,
    store: Any,
    files: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
) -> tuple[History, Path]:
    """Return the history that an adapter was given, as an object or by path, and the folder of its files.

    :param chats: notifies users, and sends with ``sender=True`` in the options; not for a given history.
    :raises InvalidInput: a given history already has a store and options.
    :raises ConfigurationError: the path, the URL or an option is wrong.
    """
    if isinstance(given, History):
        if store is not None or options:
            raise InvalidInput("history", "is open already: give its store and options where you make it")
        return given, Path("letopis.files" if files is None else files)
    told = {"on_stuck": chats.tell, "on_recovered": chats.tell, **options}
    if options.get("sender") is True:
        told["sender"] = chats.send_again
    return History(given, store=store, **told), Path(f"{os.fspath(given)}.files" if files is None else files)


class TelegramFront:
    """What the front of each Telegram framework has: a history, and the settings of its bots."""

    def __init__(
        self,
        history: str | os.PathLike[str] | History,
        *,
        store: Any = None,
        files: str | os.PathLike[str] | None = None,
        threshold: int = THRESHOLD,
        preview: int = PREVIEW,
        titles: bool = True,
        commands_are_messages: bool = False,
        tz: tzinfo = UTC,
        **options: Any,
    ) -> None:
        self._owned = not isinstance(history, History)
        self.history, folder = history_of(history, cast("Sends", self), store=store, files=files, options=options)
        self._settings: dict[str, Any] = {
            "files": folder,
            "threshold": threshold,
            "preview": preview,
            "titles": titles,
            "commands_are_messages": commands_are_messages,
            "tz": tz,
        }
        self._commands: tuple[str, ...] = ()
        self._describe = False
        self._resume_after = timedelta(0)
        self._set_up()

    def _set_up(self) -> None:
        """Set what the front of one framework has besides."""

    def _offer(self, commands: Sequence[str], *, describe: bool, resume_after_seconds: float) -> None:
        if unknown := [command for command in commands if command not in COMMANDS]:
            raise InvalidInput("commands", f"{unknown[0]!r} is none of {', '.join(COMMANDS)}")
        self._commands, self._describe = tuple(commands), describe
        self._resume_after = timedelta(seconds=resume_after_seconds)

    async def _unhandled(self, parts: BotParts) -> Sequence[dict[str, Any]]:
        """Return the updates that were not handled when the bot last ended."""
        waiting = await parts.incoming.unhandled(older_than=self._resume_after)
        if waiting:
            logger.info("updates that were not handled before the last end are handled now: %d", len(waiting))
        return waiting

    async def _close_owned(self) -> None:
        if self._owned:
            await self.history.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class BotParts:
    """The recorders, the menu and the smart sender of one bot on one history."""

    history: History
    bot_id: int
    chats: Chats
    local: LocalState
    incoming: IncomingRecorder
    outgoing: OutgoingRecorder
    menu: Menu
    sender: SmartSender

    @classmethod
    def of(
        cls,
        history: History,
        bot_id: int,
        *,
        files: str | os.PathLike[str],
        threshold: int = THRESHOLD,
        preview: int = PREVIEW,
        titles: bool = True,
        commands_are_messages: bool = False,
        tz: tzinfo = UTC,
    ) -> Self:
        """Return a bot's parts; the parameters are those of the parts."""
        chats, local = Chats(history, bot_id, files=files), LocalState(history)
        outgoing = OutgoingRecorder(chats)
        return cls(
            history=history,
            bot_id=bot_id,
            chats=chats,
            local=local,
            incoming=IncomingRecorder(
                chats,
                local=local,
                titles=titles,
                commands_are_messages=commands_are_messages,
            ),
            outgoing=outgoing,
            menu=Menu(chats, tz=tz),
            sender=SmartSender(outgoing, threshold=threshold, preview=preview),
        )

    async def send_again(
        self, reply: UnsentReply, transport_to: Callable[[ChatKey, dict[str, Any]], Transport]
    ) -> MessageSent:
        """Send a reply that Telegram never confirmed, and return what confirms it.

        :param transport_to: returns what sends to a chat, with further parameters.
        :raises SendRefused: it can never be sent.
        """
        key = await self.chats.address(reply.owner_id or reply.conversation_id)
        if key is None:
            raise SendRefused("it belongs to no chat of this bot")
        told: Any = reply.message.metadata.get("telegram") or {}
        update_id, fresh = told.get("update_id"), utc_now() - reply.appended_at < HANDLING_LIMIT
        if fresh and update_id is not None and await self.local.is_unhandled(self.bot_id, update_id):
            raise InvalidInput("reply", "the handler of its update may still send it")
        transport = transport_to(key, {"parse_mode": told["parse_mode"]} if "parse_mode" in told else {})
        return await self.sender.send_again(transport, reply.message, language=await self.local.language(key.owner))

    async def chat_of(self, recorded: Recorded) -> ChatHistory | None:
        """Return the history of an update's chat; ``None`` if it belongs to no chat.

        Its conversation is the one in which the update was recorded; if it was recorded in none, the active one.
        """
        if recorded.key is None:
            return None
        conversation_id = recorded.conversation_id
        if conversation_id is None:
            conversation_id = (await self.chats.active(recorded.key)).conversation_id
        return ChatHistory(
            chats=self.chats,
            key=recorded.key,
            conversation_id=conversation_id,
            language=recorded.language,
            message_id=recorded.message_id,
        )


def bot_id_of(token: str) -> int:
    """Return a bot's id, the first part of its token.

    :raises InvalidInput: the token is not valid; the error does not quote it.
    """
    number = token.partition(":")[0]
    if not number.isascii() or not number.isdecimal():
        raise InvalidInput("token", "must be a bot's token, as @BotFather gives it: a number, a colon and a secret")
    return int(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A notice and its recipient.

    :ivar key: where to send it.
    """

    key: ChatKey
    text: str


async def notice_for(incident: Incident, chats: Chats, local: LocalState) -> Notice | None:
    """Return the notice to the user about an incident; ``None`` if it concerns no chat of this bot.

    The language is that of the chat's last speaker. It comes from the outbox file, since the store may be unreachable.
    """
    owner = incident.owner_id or incident.conversation_id
    key = await chats.address(owner)
    if key is None or owner is None:
        return None
    return Notice(key=key, text=incident.text(await local.language(owner.split("/")[0])))


class ResumedTurns:
    """Lets the resumed updates of each chat go in order, one at a time, and its new ones after them.

    An update whose handling is cancelled does not end its turn: the process is ending, and what waits for it is handled
    after the next start, too.
    """

    def __init__(self) -> None:
        self._chats: dict[ChatKey, dict[int, asyncio.Event]] = {}

    def expect(self, recorded: Recorded) -> None:
        """Have the later updates of the chat wait for a resumed one."""
        if recorded.key is not None:
            self._chats.setdefault(recorded.key, {})[recorded.update_id] = asyncio.Event()

    async def wait(self, recorded: Recorded) -> None:
        """Wait until no resumed update of the chat is before this one."""
        for update_id, ended in tuple(self._chats.get(recorded.key, {}).items()) if recorded.key is not None else ():
            if update_id == recorded.update_id:
                return
            await ended.wait()

    def end(self, recorded: Recorded) -> None:
        """Let the next update of the chat go. No effect on one that was not resumed."""
        waiting = self._chats.get(recorded.key, {}) if recorded.key is not None else {}
        if (ended := waiting.pop(recorded.update_id, None)) is not None:
            ended.set()
        if not waiting and recorded.key is not None:
            self._chats.pop(recorded.key, None)
