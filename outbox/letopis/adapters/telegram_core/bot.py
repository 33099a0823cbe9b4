"""Assemble what an adapter needs for one bot."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, timedelta, tzinfo
from pathlib import Path
from typing import Any, Final, Protocol, Self

from letopis.adapters.telegram_core.chat_history import ChatHistory
from letopis.adapters.telegram_core.chats import Chats
from letopis.adapters.telegram_core.incoming import IncomingRecorder, Recorded
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.local_state import LocalState
from letopis.adapters.telegram_core.menu import Menu
from letopis.adapters.telegram_core.outgoing import OutgoingRecorder
from letopis.adapters.telegram_core.smart_send import PREVIEW, THRESHOLD, SmartSender, Transport
from letopis.outbox import History, Incident, UnsentReply
from letopis.store import InvalidInput, MessageSent, SendRefused
from letopis.store.model.events import utc_now

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
