# pyright: reportMissingImports=false
"""Store what python-telegram-bot persists as records of a history."""

from __future__ import annotations

import json
import logging
import pickle  # only with codec="pickle"
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from telegram.ext import BasePersistence, ContextTypes, PersistenceInput

from letopis.adapters.telegram_core.bot import bot_id_of
from letopis.outbox import History
from letopis.store import InvalidInput, Record, StoreUnavailable

logger: Final = logging.getLogger("letopis.adapters.telegram")

SPACE: Final = "telegram.persistence"
Codec = Literal["json", "pickle"]
_PAGE: Final = 500
_USER: Final = "user"
_CHAT: Final = "chat"
_BOT: Final = "bot"
_CALLBACK: Final = "callback"
_CONVERSATION: Final = "conversation"
_ONLY: Final = "data"


class LetopisPersistence(BasePersistence[Any, Any, Any]):
    """A ``BasePersistence`` on records of a history: durable when a call returns, also while the store is unreachable.

    Created by ``LetopisChats.persistence()``, which also makes sure that everything an update has changed is written
    before the update counts as handled, so a crash loses none of it. Used alone, it writes every ``update_interval``
    seconds.

    Data must be JSON. Other data is refused: PTB's error handlers get :class:`~letopis.store.InvalidInput`, and the
    earlier data stays.

    :param history: it is not closed.
    :param codec: ``pickle`` to store any object. Anyone with write access to the history store can then run code in the
        bot.
    :param context_types: the application's, if it uses data types other than ``dict``.
    :param when_unknown: what to do if the history store is unreachable when the bot starts: ``none`` to start with what
        the outbox holds, and to look up the rest of a chat when it is used, or ``raise``.
    """

    def __init__(
        self,
        history: History,
        *,
        store_data: PersistenceInput | None = None,
        update_interval: float = 60,
        codec: Codec = "json",
        context_types: ContextTypes[Any, Any, Any, Any] | None = None,
        when_unknown: Literal["none", "raise"] = "none",
    ) -> None:
        super().__init__(store_data=store_data, update_interval=update_interval)
        if codec not in ("json", "pickle"):
            raise InvalidInput("codec", "must be 'json' or 'pickle'")
        if when_unknown not in ("none", "raise"):
            raise InvalidInput("when_unknown", "must be 'none' or 'raise'")
        self._records = history.records(space=SPACE)
        self._codec = codec
        self._types = context_types or ContextTypes()
        self._raises = when_unknown == "raise"
        self._known: dict[tuple[str, str], Any] = {}
        self._unread: set[str] = set()
        self.on_flush: Callable[[], Any] | None = None
        """Called by :meth:`flush`, the last thing that an application does with a persistence."""

    # Read, when the application starts.

    async def get_user_data(self) -> dict[int, Any]:
        """Return the data of all users.

        :raises StoreUnavailable: only with ``when_unknown="raise"``.
        """
        return {int(key): value for key, value in (await self._read(_USER)).items()}

    async def get_chat_data(self) -> dict[int, Any]:
        """Return the data of all chats.

        :raises StoreUnavailable: only with ``when_unknown="raise"``.
        """
        return {int(key): value for key, value in (await self._read(_CHAT)).items()}

    async def get_bot_data(self) -> Any:
        """Return the data of the bot.

        :raises StoreUnavailable: only with ``when_unknown="raise"``.
        """
        found = (await self._read(_BOT)).get(_ONLY)
        return self._types.bot_data() if found is None else found

    async def get_callback_data(self) -> Any:
        """Return the arbitrary callback data; ``None`` if there is none.

        :raises StoreUnavailable: only with ``when_unknown="raise"``.
        """
        found = (await self._read(_CALLBACK)).get(_ONLY)
        if found is None:
            return None
        return [(name, at, dict(buttons)) for name, at, buttons in found["keyboards"]], dict(found["queries"])

    async def get_conversations(self, name: str) -> dict[tuple[int | str, ...], Any]:
        """Return the states of a conversation handler.

        :raises StoreUnavailable: only with ``when_unknown="raise"``.
        """
        found = await self._read(_CONVERSATION, name)
        return {tuple(json.loads(key)): value for key, value in found.items()}

    async def refresh_user_data(self, user_id: int, user_data: Any) -> None:
        """Look up a user whose data could not be read when the application started."""
        await self._refresh(_USER, user_id, user_data)

    async def refresh_chat_data(self, chat_id: int, chat_data: Any) -> None:
        """Look up a chat whose data could not be read when the application started."""
        await self._refresh(_CHAT, chat_id, chat_data)

    async def refresh_bot_data(self, bot_data: Any) -> None:
        """Do nothing: the bot's data is read when the application starts."""

    # Write.

    async def update_user_data(self, user_id: int, data: Any) -> None:
        """Write the data of a user.

        :raises InvalidInput: it is not JSON; the earlier data stays.
        """
        await self._write((_USER,), str(user_id), data)

    async def update_chat_data(self, chat_id: int, data: Any) -> None:
        """Write the data of a chat.

        :raises InvalidInput: it is not JSON; the earlier data stays.
        """
        await self._write((_CHAT,), str(chat_id), data)

    async def update_bot_data(self, data: Any) -> None:
        """Write the data of the bot.

        :raises InvalidInput: it is not JSON; the earlier data stays.
        """
        await self._write((_BOT,), _ONLY, data)

    async def update_callback_data(self, data: Any) -> None:
        """Write the arbitrary callback data.

        :raises InvalidInput: it is not JSON; the earlier data stays.
        """
        keyboards, queries = data
        await self._write((_CALLBACK,), _ONLY, {"keyboards": [list(one) for one in keyboards], "queries": queries})

    async def update_conversation(self, name: str, key: tuple[int | str, ...], new_state: Any) -> None:
        """Write the state of a conversation; ``None`` ends it.

        :raises InvalidInput: it is not JSON; the earlier state stays.
        """
        await self._write((_CONVERSATION, name), json.dumps(list(key)), new_state)

    async def drop_user_data(self, user_id: int) -> None:
        """Delete the data of a user."""
        await self._write((_USER,), str(user_id), None)

    async def drop_chat_data(self, chat_id: int) -> None:
        """Delete the data of a chat."""
        await self._write((_CHAT,), str(chat_id), None)

    async def flush(self) -> None:
        """Run :attr:`on_flush`; every write is already durable."""
        if self.on_flush is not None:
            await self.on_flush()

    # Inside.

    def _namespace(self, *labels: str) -> tuple[str, ...]:
        return (str(bot_id_of(self.bot.token)), *labels)

    async def _read(self, *labels: str) -> dict[str, Any]:
        namespace, found, after, incomplete = self._namespace(*labels), dict[str, Any](), None, False
        while True:
            try:
                page = await self._records.list(namespace, limit=_PAGE, after=after, incomplete=incomplete)
            except StoreUnavailable:
                if self._raises or incomplete:
                    raise
                logger.warning("the history store is unreachable: the bot begins with what the outbox holds")
                self._unread.add(labels[0])
                incomplete, after = True, None
                continue
            for record in page:
                if record.namespace == namespace:
                    found[record.key] = self._learn(record, labels)
            if (after := page.next) is None:
                return {key: value for key, value in found.items() if value is not None}

    def _learn(self, record: Record, labels: tuple[str, ...]) -> Any:
        self._known["/".join(labels), record.key] = record.value
        return self._decoded(record.value)

    async def _refresh(self, kind: str, number: int, data: Any) -> None:
        if kind not in self._unread or (kind, str(number)) in self._known:
            return
        try:
            record = await self._records.get(self._namespace(kind), str(number))
        except StoreUnavailable:
            return  # it is looked up at the next update
        self._known[kind, str(number)] = None if record is None else record.value
        value = None if record is None else self._decoded(record.value)
        if isinstance(value, Mapping) and isinstance(data, dict):
            data.update({name: one for name, one in value.items() if name not in data})

    async def _write(self, labels: tuple[str, ...], key: str, data: Any) -> None:
        value = None if data is None else self._encoded(labels[0], data)
        name = ("/".join(labels), key)
        if name in self._known and self._known[name] == value:
            return
        if value is None:
            await self._records.delete(self._namespace(*labels), key)
        else:
            await self._records.put(self._namespace(*labels), key, value)
        self._known[name] = value

    def _encoded(self, kind: str, data: Any) -> Any:
        if self._codec == "pickle":
            return pickle.dumps(data)
        try:
            written = json.dumps(data, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{kind}_data", _NO_JSON) from error
        # A tuple would come back as a list, and a numeric key as text.
        if (same := json.loads(written)) != data:
            raise InvalidInput(f"{kind}_data", _NO_JSON)
        return same

    def _decoded(self, value: Any) -> Any:
        if isinstance(value, bytes):
            if self._codec != "pickle":
                raise InvalidInput("codec", "must be 'pickle' to read what was written with it")
            return pickle.loads(value)  # noqa: S301 # nosec B301 - chosen by the caller, and documented
        return json.loads(json.dumps(value))  # a copy, of plain types


_NO_JSON: Final = (
    "holds a value that is not JSON, such as a set, a tuple, an object or a key that is not text: convert it, "
    "or choose codec='pickle'"
)
