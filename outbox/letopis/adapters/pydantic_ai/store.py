# pyright: reportMissingImports=false
"""Provide a history to Pydantic AI as a conversation store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from hashlib import sha256
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
    ConversationStore,
)
from pydantic_ai.messages import repair_messages
from pydantic_ai.run import AgentRunResult
from pydantic_core import to_jsonable_python

from letopis.adapters._envelope import from_record, to_record
from letopis.adapters.pydantic_ai.chain import Chain
from letopis.adapters.pydantic_ai.path import plan_path
from letopis.outbox import History, RecordReceipt
from letopis.store import (
    ABSENT,
    ConversationGone,
    ConversationRewound,
    InvalidInput,
    NotSaved,
    Record,
    RecordConflict,
    Saved,
    StoreUnavailable,
)
from letopis.store.cancellation import run_to_completion
from letopis.store.model.records import MAX_TAG_BYTES, Tag

_REMEMBERED: Final = 10_000
"""How many entries' conversations the store remembers."""
_is_new: ContextVar[bool] = ContextVar("letopis_pydantic_ai_is_new", default=False)
_may_be_partial: ContextVar[bool] = ContextVar("letopis_pydantic_ai_may_be_partial", default=False)


class LetopisConversationStore(ConversationStore):
    """A ``ConversationStore``: each conversation is one of a history, its entries are messages.

    ::

        store = LetopisConversationStore(history)
        conversation = await store.load("chat-1") or Conversation(conversation_id="chat-1")
        result = await agent.run("What is tea?", conversation=conversation)
        await store.save(result, scope="user-42")

    A save is one outbox transaction: it writes its entries and the record, or raises a conflict and writes neither. It
    is durable when it returns, whether or not the history store can be reached. Writing the same revision again has no
    effect.

    The path of the conversation follows the record's head: what a branch leaves behind is off the path, and stays in
    the log. Going back to it appends its messages once more, under new ids that begin with those of their entries; the
    entries stay the same. Messages that another program appended to the conversation are not entries, and are not
    loaded.

    The scope is the owner of the conversation. A fork reads the messages that it shares with its parent without copying
    them.

    If neither the outbox nor the history store can say whether a conversation exists, ``StoreUnavailable`` is raised;
    the result is never ``None``.

    :param history: opened on first use, not closed here.
    :param in_store: ``True`` if several outboxes write the same conversations: a save then waits for the history
        store, and raises ``ConversationConflict`` if another outbox was first. By default the next load shows the
        conflict.
    :param timeout: with ``in_store``: seconds to wait.
    :param require_complete: ``True`` to raise ``StoreUnavailable`` from :meth:`load` while the history store is
        unreachable and the outbox does not hold all messages; by default it loads those that the outbox retains, and a
        save continues from them.
    """

    def __init__(
        self,
        history: History,
        *,
        in_store: bool = False,
        timeout: float = 10.0,
        require_complete: bool = False,
    ) -> None:
        if not isinstance(history, History):
            raise InvalidInput("history", f"must be a History, not {type(history).__name__}")
        if not isinstance(in_store, bool):
            raise InvalidInput("in_store", f"must be True or False, not {type(in_store).__name__}")
        self._history = history
        self._in_store = in_store
        self._timeout = timeout
        self._require_complete = require_complete
        self._homes: OrderedDict[str, str] = OrderedDict()

    async def load(
        self, conversation_id: str, *, limit: int | None = None, scope: str | None = None
    ) -> Conversation | None:
        """Return a conversation; ``None`` only if it certainly does not exist.

        While the history store is unreachable, it has the newest messages that the outbox retains, as with a ``limit``.

        If the last message calls tools, and the conversation waits for no result, it ends with the results that
        Pydantic AI's ``repair_messages`` makes up, so that a run can take a new prompt. They are stored with that run.

        :raises StoreUnavailable: the history store does not answer, and the outbox does not know the conversation; with
            ``require_complete`` also if it does not hold all messages.
        """
        token = _may_be_partial.set(not self._require_complete)
        try:
            loaded = await super().load(conversation_id, limit=limit, scope=scope)
        finally:
            _may_be_partial.reset(token)
        if loaded is not None and loaded.messages and loaded.deferred_tool_requests is None:
            loaded.messages += repair_messages(loaded.messages[-1:])[1:]
        return loaded

    async def save(
        self, conversation: Conversation | AgentRunResult[Any], *, scope: str | None = None
    ) -> list[ConversationEntry]:
        """Store the new part of a conversation, and return its entries.

        A conversation that was not loaded can be saved while the history store is unreachable, too. If one with its id
        exists after all, that one is not changed, and the entries stay in the log.

        :raises ConversationConflict: it was saved or deleted since it was loaded; nothing was written.
        :raises LetopisError: as for :meth:`write_record`.
        """
        given = conversation if isinstance(conversation, Conversation) else conversation.conversation
        token = _is_new.set(given.revision is None)
        try:
            return await super().save(conversation, scope=scope)
        finally:
            _is_new.reset(token)

    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        """Return the record of a conversation; ``None`` only if it certainly does not exist.

        :raises StoreUnavailable: the history store does not answer, and the outbox does not know the record.
        """
        try:
            stored = await self._stored(conversation_id)
        except StoreUnavailable:
            if _is_new.get():
                return None  # the history store decides on delivery
            raise
        if stored is None:
            return None
        record = from_json(stored.value)
        for entry_id in (*record.branches, record.head_id):
            if entry_id is not None:
                self._remember(entry_id, conversation_id)
        return record

    async def read_records(self, *, scope: str | None = None, limit: int | None = None) -> Sequence[ConversationRecord]:
        """Return records, the most recently saved first.

        :raises StoreUnavailable: the history store does not answer.
        """
        found: list[Record] = []
        after: str | None = None
        while True:
            page = await self._history.records.find(tags_of(scope), limit=1_000, after=after)
            found += page
            if (after := page.next) is None:
                break
        found.sort(key=lambda one: one.updated_at, reverse=True)
        records: list[ConversationRecord] = []
        for one in found:
            if limit is not None and len(records) >= limit:
                break
            current = await self._history.records(one.scope).get(NAMESPACE, KEY)
            if current is not None:  # or deleted since
                records.append(from_json(current.value))
        return sorted(records, key=lambda one: one.updated_at, reverse=True)

    async def write_record(
        self,
        record: ConversationRecord,
        *,
        new_entries: Sequence[ConversationEntry] = (),
        expected_revision: str | None,
    ) -> None:
        """Store a record and new entries in one transaction, which a cancelled caller does not interrupt.

        :raises ConversationConflict: the stored revision is different, or the head is not a stored entry; nothing was
            written. With ``in_store``, entries that lost against another outbox stay in the log.
        :raises StoreUnavailable: the history store does not answer, and the outbox does not know the record.
        :raises NotSaved: with ``in_store``: written, but not delivered within ``timeout``.
        :raises LetopisError: as for ``History.append``.
        """
        receipt = await run_to_completion(self._write(record, new_entries, expected_revision))
        if receipt is None or not self._in_store:
            return
        if await receipt.superseded(self._timeout):
            raise ConversationConflict(record.conversation_id)
        if await receipt.state() is not Saved.SAVED:
            raise NotSaved(conversation_id=record.conversation_id, event_ids=())

    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        """Erase a conversation: its record and its messages, except those that a fork reads. The id can be used again.

        :raises ConversationConflict: the stored revision is different; nothing was written.
        :raises StoreUnavailable: the history store does not answer, and the outbox does not know the record.
        """
        stored = await self._stored(conversation_id)
        if stored is None or from_json(stored.value).revision != expected_revision:
            raise ConversationConflict(conversation_id)
        await run_to_completion(self._erase(conversation_id, stored))

    async def read_entry(self, entry_id: str) -> ConversationEntry:
        """Return an entry.

        :raises LookupError: there is none.
        :raises StoreUnavailable: the history store does not answer, and the outbox does not hold it.
        """
        found = await self.read_history(entry_id, limit=1)
        if not found or found[0].id != entry_id:  # it was redacted
            raise KeyError(entry_id)
        return found[0]

    async def read_history(self, head_id: str | None, *, limit: int | None = None) -> list[ConversationEntry]:
        """Return the entries up to ``head_id``, in order, or only the last ``limit`` of them.

        A redacted message is left out.

        :raises LookupError: one of them does not exist.
        :raises StoreUnavailable: the history store does not answer, and the outbox does not hold all of them.
        """
        chain = Chain(self._history, head_id, limit)
        home = None if head_id is None else self._homes.get(head_id)
        await chain.follow(home)
        if not chain.complete and not (_may_be_partial.get() and chain.found):
            raise StoreUnavailable("all messages of the conversation")
        return chain.entries()

    async def _write(
        self, record: ConversationRecord, new_entries: Sequence[ConversationEntry], expected_revision: str | None
    ) -> RecordReceipt | None:
        conversation_id = record.conversation_id
        try:
            stored = await self._stored(conversation_id)
        except StoreUnavailable:
            if expected_revision is not None:
                raise
            stored = None  # on delivery, the history store decides whether it is new
        if stored is not None and from_json(stored.value).revision == record.revision:
            return None  # a retry of a completed write
        if (None if stored is None else from_json(stored.value).revision) != expected_revision:
            raise ConversationConflict(conversation_id)
        try:
            events = await plan_path(self._history, record, new_entries, is_new=stored is None)
        except LookupError as error:
            raise ConversationConflict(conversation_id) from error
        records = self._history.records(conversation=conversation_id)
        try:
            async with self._history.transaction() as tx:
                receipt = await tx.put(
                    records,
                    NAMESPACE,
                    KEY,
                    to_json(record),
                    expected=ABSENT if stored is None else stored.revision,
                    tags=tags_of(record.scope),
                )
                if events:
                    await tx.append(conversation_id, *events, owner=record.scope or None)
        except (RecordConflict, ConversationGone) as error:
            raise ConversationConflict(conversation_id) from error
        if record.head_id is not None:
            self._remember(record.head_id, conversation_id)
        return receipt

    async def _erase(self, conversation_id: str, stored: Record) -> None:
        records = self._history.records(conversation=conversation_id)
        try:
            async with self._history.transaction() as tx:
                await tx.delete_record(records, NAMESPACE, KEY, expected=stored.revision)
                await tx.append(conversation_id, ConversationRewound(reason="delete", erase=True))
        except RecordConflict as error:
            raise ConversationConflict(conversation_id) from error

    async def _stored(self, conversation_id: str) -> Record | None:
        return await self._history.records(conversation=conversation_id).get(NAMESPACE, KEY)

    def _remember(self, entry_id: str, conversation_id: str) -> None:
        """Remember where an entry can be read; in a fork, even after its parent was erased."""
        self._homes[entry_id] = conversation_id
        self._homes.move_to_end(entry_id)
        if len(self._homes) > _REMEMBERED:
            self._homes.popitem(last=False)


NAMESPACE: Final = ("pydantic_ai",)
KEY: Final = "record"
_KIND: Final = "pydantic_ai"
_SCOPE: Final = "pydantic_ai.scope"


@cache
def _adapter() -> TypeAdapter[ConversationRecord]:
    return TypeAdapter(ConversationRecord)


def to_json(record: ConversationRecord) -> Any:
    """Return a record in its stored form."""
    dumped = _adapter().dump_python(record, mode="json")
    return to_record(to_jsonable_python(dumped, inf_nan_mode="null"))


def from_json(value: Any) -> ConversationRecord:
    """Return the record that :func:`to_json` converted."""
    return _adapter().validate_python(from_record(value))


def tags_of(scope: str | None) -> Mapping[str, Tag]:
    """Return the tags that find the records of a scope, or of all scopes for ``None``."""
    return {_KIND: KEY} if scope is None else {_KIND: KEY, _SCOPE: _short(scope)}


def _short(scope: str) -> str:
    """Return a scope as a tag; for a long one, its digest."""
    encoded = scope.encode()
    return scope if len(encoded) < MAX_TAG_BYTES // 2 else f"#{sha256(encoded).hexdigest()}"
