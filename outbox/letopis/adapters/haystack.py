"""Store Haystack's chat messages in a history.

::

    store = LetopisChatMessageStore(path="bot.outbox.db")
    pipeline.add_component("retriever", ChatMessageRetriever(store))
    pipeline.add_component("writer", ChatMessageWriter(store))
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any, Final, Self

from letopis.adapters._messages import fitting, items_of, kept, missing
from letopis.outbox import BlockingHistory
from letopis.store import InvalidInput, Message, RecordedMessage
from letopis.store.model.identifiers import Owner, uuid7
from letopis.store.rules.tool_calls import repair_tool_calls

try:
    from haystack import default_from_dict, default_to_dict  # pyright: ignore[reportMissingImports]
    from haystack.dataclasses import ChatMessage, ChatRole  # pyright: ignore[reportMissingImports]
    from haystack.utils import Secret  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise missing("haystack", "haystack-ai", "haystack") from error

__all__ = ["LetopisChatMessageStore"]

_PROVIDER: Final = "haystack"
_ID: Final = "chat_message_id"
"""The key of a message's ``meta`` by which Haystack knows that it was stored."""
_PAGE: Final = 100


class LetopisChatMessageStore:
    """A ``ChatMessageStore``: each chat history id is a conversation of a history.

    Messages come back as they were written, with a ``chat_message_id`` in their ``meta``. Messages whose id the
    conversation already has are not written again. ``write_messages`` writes all or none. Deleted messages leave the
    path; the log keeps them.

    While the history store is unreachable, the messages that the outbox retains are returned.

    :param history: an open ``BlockingHistory``, which is not closed; a pipeline with it cannot be serialized.
    :param path: instead of ``history``, the outbox, opened on first use and closed by :meth:`close`.
    :param store: with ``path``, the history store, by URL or path. A URL with a password must be in a ``Secret``.
    :param owner: the owner of the conversations.
    :param skip_system_messages: do not write system messages, which pipelines add again each time.
    :param last_k: how many rounds are returned by default; ``None`` for all.
    :raises InvalidInput: neither a history nor a path is given, or both are.
    """

    def __init__(
        self,
        history: BlockingHistory | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        store: str | Secret | None = None,
        owner: Owner | None = None,
        skip_system_messages: bool = True,
        last_k: int | None = 10,
    ) -> None:
        if history is not None and not isinstance(history, BlockingHistory):
            raise InvalidInput("history", f"must be a BlockingHistory, not {type(history).__name__}")
        if (history is None) == (path is None) or (path is None and store is not None):
            raise InvalidInput("history", "give either a history, or the path of an outbox and its store")
        self.owner = owner
        self.skip_system_messages = skip_system_messages
        self.last_k = last_k
        self._history = history
        self._path = None if path is None else os.fspath(path)
        self._store: Any = store
        self._opened: BlockingHistory | None = None
        self._lock = Lock()

    def close(self) -> None:
        """Close the history if this store opened it; the next use opens it again."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def to_dict(self) -> dict[str, Any]:
        """Return the store as part of a serialized pipeline.

        :raises InvalidInput: the store was created with an open history, or with a URL whose password is not in a
            secret.
        """
        if self._path is None:
            raise InvalidInput("history", "cannot be serialized: give the path of the outbox instead")
        store = self._store
        secret: Any = store if isinstance(store, Secret) else None
        if isinstance(store, str) and "@" in store:
            raise InvalidInput("store", "may hold a password: give Secret.from_env_var(...) to serialize it")
        made: dict[str, Any] = default_to_dict(
            self,
            path=self._path,
            store=store if secret is None else secret.to_dict(),
            owner=self.owner,
            skip_system_messages=self.skip_system_messages,
            last_k=self.last_k,
        )
        return made

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the store of a serialized pipeline."""
        given = dict(data.get("init_parameters", {}))
        if isinstance(given.get("store"), dict):
            given["store"] = Secret.from_dict(given["store"])
        made: Self = default_from_dict(cls, {**data, "init_parameters": given})
        return made

    def count_messages(self, chat_history_id: str) -> int:
        """Return how many messages a conversation has."""
        return self._open().chat(chat_history_id).count()

    def write_messages(self, chat_history_id: str, messages: list[ChatMessage]) -> int:
        """Append the messages that the conversation does not have yet, all or none; return their number.

        :raises ValueError: an item is not a ``ChatMessage``, or holds a value that is not JSON; nothing was written.
        :raises LetopisError: as for ``History.append``.
        """
        made: list[Message] = []
        there: set[str] | None = None
        left: set[str] = set()
        for place, one in enumerate(messages):
            if not isinstance(one, ChatMessage):
                raise InvalidInput(f"messages[{place}]", f"must be a ChatMessage, not {type(one).__name__}")
            if self.skip_system_messages and one.is_from(ChatRole.SYSTEM):
                continue
            known = one.meta.get(_ID)
            if known is not None:
                if there is None:
                    there, left = self._ids(chat_history_id)
                if str(known) in there:
                    continue
                there.add(str(known))
            # Haystack uses its numeric ids again after a deletion; ours are permanent.
            converted = _to_message(one, str(known or uuid7()))
            made.append(replace(converted, id="") if converted.id in left else converted)
        if made:
            self._open().append(chat_history_id, *made, owner=self.owner)
        return len(made)

    def retrieve_messages(self, chat_history_id: str, last_k: int | None = None) -> list[ChatMessage]:
        """Return the newest rounds, oldest first: each is a question with everything up to its answer.

        A round is never cut, so tool calls keep their results. A call that has none gets one that says
        ``interrupted``; a result without a call is left out.

        :param last_k: how many rounds; by default those of the store.
        :raises ValueError: ``last_k`` is negative.
        """
        wanted = self.last_k if last_k is None else last_k
        if wanted is not None and wanted < 0:
            raise InvalidInput("last_k", "must be 0 or more")
        if wanted == 0:
            return []
        history, before, found = self._open(), None, list[Message]()
        while True:
            page = history.messages(chat_history_id, last=None if wanted is None else _PAGE, before=before)
            found = [*(one.message for one in page), *found]
            before = page.next
            messages = fitting(found, _from_messages, last=None, whole=page.complete and before is None)
            if wanted is None:
                return messages
            rounds = _rounds(messages)
            if len(rounds) > wanted or before is None:
                return [message for one in rounds[-wanted:] for message in one]

    def delete_messages(self, chat_history_id: str) -> None:
        """Take all messages of a conversation off the path. To erase them, use ``delete`` of the history."""
        self._open().chat(chat_history_id).rewind(to=None, reason="clear")

    def delete_all_messages(self) -> None:
        """Take all messages of all conversations of the owner off the path; without an owner, of the whole history."""
        history, after, ids = self._open(), None, list[str]()
        while True:
            page = history.conversations(owner=self.owner, after=after, limit=_PAGE)
            ids += [one.conversation_id for one in page if one.message_count]
            if (after := page.next) is None:
                break
        for one in ids:
            history.chat(one).rewind(to=None, reason="clear")

    def _open(self) -> BlockingHistory:
        if self._history is not None:
            return self._history
        assert self._path is not None  # noqa: S101 - or there were a history
        with self._lock:
            if self._opened is None:
                store = self._store.resolve_value() if isinstance(self._store, Secret) else self._store
                self._opened = BlockingHistory(self._path, store=store)
            return self._opened

    def _ids(self, chat_history_id: str) -> tuple[set[str], set[str]]:
        """Return the ids by which Haystack knows messages, also those made up for it, and those of deleted ones."""
        every = self._open().messages(chat_history_id, last=None, every=True)
        messages = [one.message for one in every if one.on_path]
        known = {str(one.meta[_ID]) for one in _from_messages([*messages, *repair_tool_calls(messages)])}
        return known, {one.id for one in every if not one.on_path}


def _rounds(messages: Sequence[ChatMessage]) -> list[list[ChatMessage]]:
    """Group messages into rounds. A system message is a round of its own, and an answer without calls ends a round."""
    rounds: list[list[ChatMessage]] = []
    begin = True
    for one in messages:
        alone = one.is_from(ChatRole.SYSTEM)
        if begin or alone:
            rounds.append([])
        rounds[-1].append(one)
        begin = alone or (one.is_from(ChatRole.ASSISTANT) and bool(one.text) and not one.tool_calls)
    return rounds


def _to_message(message: ChatMessage, message_id: str) -> Message:
    item = message.to_dict()
    item["meta"] = {_ID: message_id, **item["meta"]}
    try:
        chat: dict[str, Any] | None = message.to_openai_dict_format(require_tool_call_ids=False)
    except (ValueError, TypeError):
        chat = None
    made = kept(item, provider=_PROVIDER, chat=chat, role=message.role.value, text=message.text or "")
    return replace(made, id=message_id)


def _from_messages(messages: Iterable[Message | RecordedMessage]) -> list[ChatMessage]:
    found: list[ChatMessage] = []
    for recorded in messages:
        for own, chat in items_of([recorded], _PROVIDER):
            made = [ChatMessage.from_dict(own)] if own is not None else map(ChatMessage.from_openai_dict_format, chat)
            for one in made:
                one.meta.setdefault(_ID, recorded.id)
                found.append(one)
    return found
