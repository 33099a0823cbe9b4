"""Provide the seed's ``ConversationManager`` on a history."""

from __future__ import annotations

import atexit
import functools
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any, Final, Self, TypeVar, cast

from letopis.adapters.voxpersona import mapping, statistics
from letopis.adapters.voxpersona.chats import UNKNOWN, ChatIndex, UserChats
from letopis.adapters.voxpersona.mirror import Mirror
from letopis.adapters.voxpersona.models import NEW_CHAT, Models
from letopis.adapters.voxpersona.saving import save
from letopis.outbox import BlockingHistory
from letopis.store import (
    Body,
    Conversation,
    ConversationActivated,
    ConversationGone,
    Event,
    IdReused,
    InvalidInput,
    LetopisError,
    Message,
)

F = TypeVar("F", bound=Callable[..., Any])

OUTBOX: Final = "letopis.outbox.db"
"""The default outbox in the bot's folder."""
_LOG: Final = logging.getLogger("letopis.adapters.voxpersona")
_KNOWN_CHATS: Final = 10_000


def _otherwise(answer: Callable[[], Any]) -> Callable[[F], F]:
    """Return a decorator for methods that logs an error and returns ``answer()``."""

    def decorate(method: F) -> F:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except (LetopisError, OSError) as error:
                _LOG.error("%s failed: %s", method.__name__, error)
                return answer()

        return cast(F, call)

    return decorate


class ConversationManager:
    """The seed's ``ConversationManager`` on a history: the same methods, arguments and results.

    ::

        conversation_manager = ConversationManager(CONVERSATIONS_DIR, store="postgresql://bot@db/history")

    A message is on disk when ``add_message`` returns ``True``, and is delivered to the history store at once or later.
    Only ``create_conversation`` raises errors of the history; other methods log them and return ``False``, ``None`` or
    an empty value, as in the seed. Threads and coroutines may call it; each call blocks for about a millisecond.

    A chat may have any title and a user any name; the seed's files hold them shortened.

    :param base_dir: the folder of the bot's chats.
    :param store: the history store, by URL or path; by default an SQLite file beside the outbox.
    :param outbox: the outbox; by default ``letopis.outbox.db`` in ``base_dir``.
    :param mirror: whether to write the seed's JSON files too, so that the bot can go back to its own code.
    :param timezone: for the times in chats; by default the machine's.
    :param models: a module with the classes ``ConversationMessage``, ``ConversationMetadata`` and ``Conversation``; by
        default the bot's ``conversations``, or those of ``letopis.adapters.voxpersona`` if there is none.
    :param history: an open history instead of ``store`` and ``outbox``; it is not closed. To be called from coroutines,
        it needs ``inside_loop="block"``.
    :param options: those of ``BlockingHistory``, for example ``on_stuck``.
    :raises InvalidInput: ``models`` lacks a class, or a history is given together with options for opening one.
    :raises ConfigurationError: the path, the URL or an option is wrong.
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str],
        *,
        store: str | os.PathLike[str] | None = None,
        outbox: str | os.PathLike[str] | None = None,
        mirror: bool = True,
        timezone: tzinfo | None = None,
        models: ModuleType | None = None,
        history: BlockingHistory | None = None,
        **options: Any,
    ) -> None:
        if history is not None and (store is not None or outbox is not None or options):
            raise InvalidInput("history", "is open already: leave out store, outbox and options")
        self.base_dir = Path(base_dir)
        self.base_dir.mkdir(parents=True, exist_ok=True)
        self._models = Models.of(models)
        self._tz = timezone
        self._mirror = Mirror(self.base_dir) if mirror else None
        self._opened: BlockingHistory | None = None
        if history is None:
            options.setdefault("inside_loop", "block")
            history = self._opened = BlockingHistory(outbox or self.base_dir / OUTBOX, store=store, **options)
            atexit.register(self.close)
        self._history = history
        self._chats = UserChats(history)
        self._lock = RLock()
        self._known: dict[tuple[int, str], None] = {}
        self._active: dict[int, str] = {}

    @property
    def history(self) -> BlockingHistory:
        """The history, for everything that the seed cannot do: search, forks, statistics by day, erasure."""
        return self._history

    def close(self) -> None:
        """Close the history if this manager opened it. Idempotent; also done when the program ends."""
        atexit.unregister(self.close)
        if self._opened is not None:
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The folder and the list.

    def ensure_user_directory(self, user_id: int) -> Path:
        """Return the folder of a user's JSON files, creating it if necessary."""
        folder = self.base_dir / f"user_{user_id}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @_otherwise(lambda: False)
    def conversation_exists(self, user_id: int, conversation_id: str) -> bool:
        """Return True if a user has a chat, as far as is known at present."""
        return isinstance(self._find(user_id, conversation_id), Conversation)

    def load_index(self, user_id: int) -> dict[str, Any]:
        """Return the content of a user's ``index.json`` in the seed."""
        return self._load_index(user_id) or ChatIndex.empty(user_id).to_data(self._tz)

    @_otherwise(lambda: False)
    def save_index(self, user_id: int, index_data: Mapping[str, Any]) -> bool:
        """Apply the differences: the active chat, titles, numbers, the user's name. Omitted chats are kept."""
        index = self._chats.index(user_id)
        known = {one.conversation_id: one for one in index.chats}
        for given in index_data.get("conversations", []):
            if (chat := known.get(given.get("conversation_id"))) is not None:
                save(self._history, chat, given, self._tz)
        wanted = index_data.get("last_active_conversation_id")
        if wanted in known and wanted != index.active:
            self._activate(user_id, wanted)
        self._chats.set_index(
            user_id, username=index_data.get("username"), next_number=index_data.get("next_chat_number")
        )
        self._write_index(user_id)
        return True

    @_otherwise(list)
    def list_conversations(self, user_id: int) -> list[Any]:
        """Return the metadata of a user's chats, in the order in which they were created."""
        return [self._models.make_metadata(one) for one in self._chats.index(user_id).metadata(self._tz)]

    # Chats.

    def create_conversation(self, user_id: int, username: str, first_question: str = NEW_CHAT) -> str:
        """Create a chat with the user's next number, make it active, and return its id.

        :raises RuntimeError: the outbox does not accept it.
        """
        try:
            with self._lock:
                made = self._chats.create(user_id, username, first_question)
        except LetopisError as error:
            raise RuntimeError("the chat cannot be saved") from error
        self._note(user_id, made)
        self._write_chat(user_id, made)
        self._write_index(user_id)
        return made

    @_otherwise(lambda: None)
    def load_conversation(self, user_id: int, conversation_id: str) -> Any:
        """Return a chat with all its messages; ``None`` if the user has none with this id."""
        found = self._load(user_id, conversation_id)
        return None if found is None else self._models.make_conversation(*found)

    @_otherwise(lambda: False)
    def save_conversation(self, conversation: Any) -> bool:
        """Apply the differences to the history: the title, the user's name, changed texts, new messages.

        Messages missing from ``conversation`` are kept: they arrived after it was loaded. A missing chat is created.
        """
        metadata = {name: getattr(conversation.metadata, name) for name in _SAVED}
        user_id, conversation_id = int(metadata["user_id"]), str(metadata["conversation_id"])
        found = self._find(user_id, conversation_id)
        save(
            self._history,
            found if isinstance(found, Conversation) else None,
            metadata,
            self._tz,
            messages=[mapping.values_of(one) for one in conversation.messages],
        )
        self._note(user_id, conversation_id, active=False)
        self._write_chat(user_id, conversation_id)
        self._write_index(user_id)
        return True

    @_otherwise(lambda: False)
    def delete_conversation(self, user_id: int, conversation_id: str) -> bool:
        """Erase a chat and the report files of its answers for good.

        If it was active, the user's oldest chat becomes active; if there is no other chat, a new one is created.
        """
        with self._lock:
            index = self._chats.index(user_id)
            found = self._load(user_id, conversation_id)
            if found is not None:
                _remove_reports(found[1])
            if found is not None or self._find(user_id, conversation_id) is UNKNOWN:
                self._history.chat(conversation_id).delete()
            self._known.pop((user_id, conversation_id), None)
            if self._mirror is not None:
                self._mirror.remove(user_id, conversation_id)
            if index.active == conversation_id:
                self._active.pop(user_id, None)
                rest = [one.conversation_id for one in index.chats if one.conversation_id != conversation_id]
                if not rest:
                    self.create_conversation(user_id, index.username)
                    return True
                self._activate(user_id, rest[0])
        self._write_index(user_id)
        return True

    # The active chat.

    @_otherwise(lambda: None)
    def get_active_conversation_id(self, user_id: int) -> str | None:
        """Return the id of a user's active chat; ``None`` if there is none."""
        return self._chats.active(user_id)

    @_otherwise(lambda: False)
    def set_active_conversation(self, user_id: int, conversation_id: str) -> bool:
        """Make a chat the active one. Return False if the user has none with this id."""
        if self._find(user_id, conversation_id) is None:
            _LOG.warning("the chat that is to be the active one is not there")
            return False
        self._activate(user_id, conversation_id)
        self._write_index(user_id)
        return True

    # Messages.

    @_otherwise(lambda: False)
    def add_message(self, user_id: int, conversation_id: str, message: Any) -> bool:
        """Append a message to a chat, which becomes the active one. Once this returns True, it survives ``kill -9``.

        Adding a message again, even with another time, has no effect. Return False if the user has no such chat or the
        outbox refuses the message; while the history store is unreachable, a chat that only it could know is assumed to
        exist.
        """
        if (user_id, conversation_id) not in self._known and self._find(user_id, conversation_id) is None:
            _LOG.error("a message cannot be added: the user has no such chat")
            return False
        values = mapping.values_of(message)
        made = mapping.to_message(user_id, values)
        try:
            added = self._append(user_id, conversation_id, made, values)
        except ConversationGone:
            self._known.pop((user_id, conversation_id), None)
            raise
        self._note(user_id, conversation_id)
        if added and self._mirror is not None and not self._mirror.add_message(user_id, conversation_id, values):
            self._write_chat(user_id, conversation_id)
            self._write_index(user_id)
        return True

    @_otherwise(list)
    def get_messages(self, user_id: int, conversation_id: str, limit: int = 20) -> list[Any]:
        """Return the newest ``limit`` messages of a chat, oldest first."""
        if self._find(user_id, conversation_id) is None:
            return []
        page = self._history.messages(conversation_id, last=limit if limit > 0 else None)
        values = mapping.from_messages(page, self._tz)
        return [self._models.make_message(one) for one in (values if limit > 0 else values[-limit:])]

    # Statistics.

    def get_user_stats(self, user_id: int, days_back: int = 30) -> dict[str, int]:
        """Return the counts of a user's messages in the last days, over the existing chats."""
        return self._count(user_id, days_back) or statistics.count_messages(0, (), since="")

    def format_user_stats_for_display(self, user_id: int) -> str:
        """Return the counts of the last 30 days as text, in Russian."""
        return statistics.render(self.get_user_stats(user_id))

    # Inside.

    @_otherwise(lambda: None)
    def _load_index(self, user_id: int) -> dict[str, Any] | None:
        return self._chats.index(user_id).to_data(self._tz)

    @_otherwise(lambda: None)
    def _count(self, user_id: int, days_back: int) -> dict[str, int] | None:
        since = mapping.local_time(datetime.now(self._tz).astimezone() - timedelta(days=days_back), self._tz)
        chats = self._chats.index(user_id).chats
        messages = [
            message
            for chat in chats
            for message in mapping.from_messages(self._history.messages(chat.conversation_id, last=None), self._tz)
        ]
        return statistics.count_messages(len(chats), messages, since=since)

    def _find(self, user_id: int, conversation_id: str) -> Any:
        found = self._chats.find(user_id, conversation_id)
        if isinstance(found, Conversation):
            self._note(user_id, conversation_id, active=False)
        return found

    def _load(self, user_id: int, conversation_id: str) -> tuple[dict[str, Any], list[Any]] | None:
        chat = self._find(user_id, conversation_id)
        if not isinstance(chat, Conversation):
            return None
        active = self._chats.active(user_id) == conversation_id
        metadata = mapping.metadata_of(chat, user_id, active=active, tz=self._tz)
        return metadata, mapping.from_messages(self._history.messages(conversation_id, last=None), self._tz)

    def _append(self, user_id: int, conversation_id: str, message: Message, values: Mapping[str, Any]) -> bool:
        """Append a message; return False if it already existed."""
        occurred_at = mapping.parse_time(values["timestamp"], self._tz)
        sent = mapping.to_sent(conversation_id, message, occurred_at)
        active = self._active.get(user_id) == conversation_id
        more: list[Event | Body] = [*([] if sent is None else [sent]), *([] if active else [ConversationActivated()])]
        try:
            self._history.append(conversation_id, message, *more, owner=user_id, occurred_at=occurred_at)
        except IdReused:
            there = self._history.chat(conversation_id).message(message.id)
            if there is not None and (there.role, there.text) == (message.role, message.text):
                return False
            # A different message under a used id: the seed keeps both.
            self._history.append(
                conversation_id, replace(message, id=""), *more, owner=user_id, occurred_at=occurred_at
            )
        return True

    def _activate(self, user_id: int, conversation_id: str) -> None:
        self._history.chat(conversation_id).activate(owner=user_id)
        self._active[user_id] = conversation_id

    def _note(self, user_id: int, conversation_id: str, *, active: bool = True) -> None:
        """Remember that a chat exists and is active, so that the next message need not ask."""
        if len(self._known) >= _KNOWN_CHATS:
            self._known.clear()
            self._active.clear()
        self._known[user_id, conversation_id] = None
        if active:
            self._active[user_id] = conversation_id

    @_otherwise(lambda: None)
    def _write_chat(self, user_id: int, conversation_id: str) -> None:
        if self._mirror is not None and (found := self._load(user_id, conversation_id)) is not None:
            self._mirror.write_chat(*found)

    @_otherwise(lambda: None)
    def _write_index(self, user_id: int) -> None:
        if self._mirror is not None:
            index = self._chats.index(user_id)
            self._mirror.write_index(index.to_data(self._tz), complete=index.complete)


_SAVED: Final = ("conversation_id", "user_id", "username", "title", "chat_number")


def _remove_reports(messages: list[Any]) -> None:
    for one in messages:
        if one["sent_as"] == "file" and one["file_path"]:
            try:
                Path(one["file_path"]).unlink(missing_ok=True)
            except (OSError, ValueError) as error:  # the path may be anything
                _LOG.warning("a report cannot be removed: %s", type(error).__name__)
