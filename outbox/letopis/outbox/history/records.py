"""Keep records: what a framework keeps beside the messages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

from letopis.outbox.concurrency.home_loop import at_home
from letopis.outbox.event_log.append_encoding import PreparedChange
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.event_log.records.changes import prepare_clear, prepare_delete, prepare_put, together
from letopis.outbox.history.receipts import Deliveries, Receipt
from letopis.store.cancellation import run_to_completion
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import Page, Saved
from letopis.store.model.identifiers import Owner, owner_id
from letopis.store.model.records import (
    ANY,
    Condition,
    Namespace,
    Record,
    RecordRange,
    Scope,
    Tag,
    check_tags,
    encode_key,
    encode_namespace,
    has_tags,
)
from letopis.store.read.paging import check_count

if TYPE_CHECKING:
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.history.sharing import SharedAccess
    from letopis.outbox.pending_reads.record_reads import RecordReads
    from letopis.store.read.records import RecordsView

OnExists = Literal["raise", "keep"]

_PREPARED_IN_THREAD_BYTES: Final = 256 * 1024
"""Size from which a value is hashed in a thread: below it takes less than a millisecond."""


@dataclass(frozen=True, slots=True)
class RecordPut:
    """One put of :meth:`Records.put_many`; the fields are the arguments of :meth:`Records.put`."""

    namespace: Sequence[str]
    key: str
    value: Any
    expected: Condition | UUID = ANY
    on_exists: OnExists = "raise"
    tags: Mapping[str, Tag] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordReceipt:
    """Proof that a change of a record is durable in the outbox, or will be with the caller's own commit.

    :ivar revision: the revision that the record has now; ``None`` if it was deleted.
    :ivar kept: ``True`` if a record was there and stays, because of ``on_exists="keep"``: nothing was written.
    """

    revision: UUID | None
    kept: bool = False
    _receipt: Receipt | None = field(default=None, repr=False, compare=False)
    _beside: tuple[Receipt, ...] = field(default=(), repr=False, compare=False)

    async def saved(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the answer is False, no error
        """Wait until the history store has applied the change, as ``Receipt.saved`` does.

        ``False`` also if the change had a condition that did not hold there: see :meth:`superseded`.
        """
        return all(await asyncio.gather(*(receipt.saved(timeout) for receipt in self._receipts)))

    async def superseded(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the answer is False, no error
        """Wait for the delivery, and return ``True`` if another outbox was first, so that the change has no effect."""
        return any(await asyncio.gather(*(receipt.superseded(timeout) for receipt in self._receipts)))

    async def state(self) -> Saved:
        """Return how far the change has got: saved, pending or blocked."""
        states = {await receipt.state() for receipt in self._receipts}
        return next((state for state in (Saved.BLOCKED, Saved.PENDING) if state in states), Saved.SAVED)

    @property
    def _receipts(self) -> Sequence[Receipt]:
        return self._beside if self._receipt is None else (*self._beside, self._receipt)


@at_home()
class Records:
    """The records of one conversation, owner or space. Made by ``History.records()``.

    A record is a value under a namespace and a key. The last version wins, and earlier ones are gone. Records are in no
    chat list, statistics, window or search. Those of a conversation or owner are erased with it.

    Each put is durable in the outbox when it returns, and is delivered in the order of its scope. Reads include what is
    pending. What neither the outbox nor the history store can tell raises ``StoreUnavailable``, and is never ``None``.

    :ivar scope: to what they belong.
    :ivar new: whether the caller says that only this outbox has put records of the scope; see ``History.records()``.
    """

    def __init__(self, scope: Scope, home: SharedAccess, *, new: bool = False) -> None:
        self.scope = scope
        self.new = new
        self._home = home

    @property
    def _outbox(self) -> OutboxFile:
        return self._home.parts.outbox

    @property
    def _reads(self) -> RecordReads:
        return self._home.parts.record_reads

    @property
    def _deliveries(self) -> Deliveries:
        return self._home.parts.deliveries

    async def put(
        self,
        namespace: Sequence[str],
        key: str,
        value: Any,
        *,
        expected: Condition | UUID = ANY,
        on_exists: OnExists = "raise",
        tags: Mapping[str, Tag] | None = None,
    ) -> RecordReceipt:
        """Put a value under a key.

        With a condition the outbox asks the history store first, unless it knows the record itself. The store decides
        once more when the change is delivered: the receipt's ``superseded()`` tells.

        :param namespace: labels, for example ``("checkpoints", "main")``; at most 512 bytes together, as is the key.
        :param value: what JSON can hold, or ``bytes``; at most 64 MiB.
        :param expected: ``ANY``, ``ABSENT``, or the revision that the record must have.
        :param on_exists: with ``ABSENT``: what to do if there is a record, raise or keep it.
        :param tags: up to 8 scalars by which records are found.
        :raises RecordConflict: the record is not as expected; nothing was written.
        :raises StoreUnavailable: only the history store can tell whether it is; nothing was written.
        :raises ConversationGone: the conversation was deleted.
        :raises InvalidInput: one of the stores would refuse or change something in it; nothing was written.
        :raises OutboxFull: the outbox, or the disk, is full.
        :raises OutboxUnavailable: the file cannot be written.
        """
        [receipt] = await self.put_many([RecordPut(namespace, key, value, expected, on_exists, tags)])
        return receipt

    async def put_many(self, puts: Sequence[RecordPut]) -> Sequence[RecordReceipt]:
        """Put several values, all or none, in order.

        The records of a space are in several lanes: others may see some of them before the rest.

        :raises LetopisError: as for :meth:`put`; nothing was written.
        """
        return await self._write(await prepare_puts(self.scope, puts))

    async def get(self, namespace: Sequence[str], key: str) -> Record | None:
        """Return a record; ``None`` only if it is known that there is none.

        While the history store is unavailable, the version that this outbox has put last is returned as long as it
        retains it, with ``current=False``: another outbox may have put a later one.

        :raises StoreUnavailable: the history store does not answer, and the outbox does not know the record.
        :raises InvalidInput: the namespace or key cannot be one.
        """
        [record] = await self.get_many([(namespace, key)])
        return record

    async def get_many(self, keys: Sequence[tuple[Sequence[str], str]]) -> Sequence[Record | None]:
        """Return records in the order of their keys, all as of one moment.

        :param keys: pairs of namespace and key.
        :raises LetopisError: as for :meth:`get`.
        """
        wanted = [(encode_namespace(namespace), encode_key(key)) for namespace, key in _pairs(keys)]
        records = await self._reads.get(self.scope, list(dict.fromkeys(wanted)), new=self.new)
        return [records[key] for key in wanted]

    async def delete(self, namespace: Sequence[str], key: str, *, expected: Condition | UUID = ANY) -> RecordReceipt:
        """Delete a record, or do nothing if there is none.

        :param expected: the revision that it must have.
        :raises LetopisError: as for :meth:`put`.
        """
        [receipt] = await self._write([prepare_delete(self.scope, namespace, key, expected=expected)])
        return receipt

    async def delete_many(
        self, keys: Sequence[tuple[Sequence[str], str]], *, unchanged: Sequence[Record] = ()
    ) -> Sequence[RecordReceipt]:
        """Delete several records, all or none; those that are not there are no error.

        :param keys: pairs of namespace and key.
        :param unchanged: records that were read, to be deleted too; one that was put again since then stays.
        :raises LetopisError: as for :meth:`put`.
        """
        given = unchanged if isinstance(unchanged, Sequence) else (unchanged,)
        if not all(isinstance(record, Record) and record.scope == self.scope for record in given):
            raise InvalidInput("unchanged", "must be records of this scope")
        if not ((pairs := _pairs(keys)) or given):
            raise InvalidInput("keys", "there is nothing to delete")
        return await self._delete([prepare_delete(self.scope, namespace, key) for namespace, key in pairs], given)

    async def delete_where(
        self,
        prefix: Sequence[str] = (),
        *,
        start: str | None = None,
        end: str | None = None,
        tags: Mapping[str, Tag] | None = None,
    ) -> RecordReceipt:
        """Delete all records in a namespace and below it; in the whole scope by default.

        With a prefix alone also those of which this outbox knows nothing, so that it works while the history store is
        unavailable. With ``start``, ``end`` or ``tags``, records are read first, and those that are found are deleted,
        a thousand at a time: one that is changed meanwhile stays. If that is interrupted, repeat it.

        :param start: the first key, as for :meth:`list`.
        :param end: the key before which to stop, as for :meth:`list`.
        :param tags: only records with all these tags.
        :return: the receipt of all deletions; of none, it is saved at once.
        :raises StoreUnavailable: records have to be read, and the history store does not answer.
        :raises LetopisError: as for :meth:`put`.
        """
        if start is None and end is None and not check_tags(tags):
            return _together(await self._write(prepare_clear(self.scope, prefix)))
        receipts: list[RecordReceipt] = []
        after: str | None = None
        while True:
            page = await self.list(prefix, start=start, end=end, tags=tags, limit=1_000, after=after, values=False)
            if page.items:
                deleted = await self._delete((), page.items)
                # The last of each lane stands for the others.
                receipts += {one._receipt.conversation_id: one for one in deleted if one._receipt is not None}.values()
            after = page.next
            if after is None:
                return _together(receipts)

    async def erase(self) -> RecordReceipt:
        """Delete all records of the scope, and everything that the outbox and the history store could tell of them.

        :raises LetopisError: as for :meth:`put`.
        """
        return _together(await self._write(prepare_clear(self.scope, erase=True)))

    async def list(
        self,
        prefix: Sequence[str] = (),
        *,
        start: str | None = None,
        end: str | None = None,
        tags: Mapping[str, Tag] | None = None,
        reverse: bool = False,
        limit: int = 100,
        after: str | None = None,
        values: bool = True,
        incomplete: bool = False,
    ) -> Page[Record]:
        """Return records in a namespace and below it, in the order of the bytes of namespace and key.

        So keys that rise with time, as UUIDv7 or numbers with leading zeros do, come in the order of time, and
        ``reverse=True, limit=1`` is the latest. Pages stay in place whatever is put meanwhile. A page may hold fewer
        than ``limit``: go on while there is a ``next``.

        :param start: the first key; then only records in ``prefix`` itself are returned.
        :param end: the key before which to stop; likewise.
        :param tags: only records with all these tags.
        :param after: the ``next`` of the page before.
        :param values: ``False`` leaves the values out.
        :param incomplete: accept a page with ``complete=False`` while the history store is unavailable: the records
            that this outbox put and retains, each with ``current=False``. Those that it does not know are missing.
        :raises StoreUnavailable: the history store does not answer.
        :raises InvalidInput: an argument cannot be one.
        """
        wanted = check_tags(tags)
        check_count(limit, "limit")
        where = RecordRange(
            prefix=encode_namespace(prefix, "prefix"),
            exact=start is not None or end is not None,
            start=None if start is None else encode_key(start, "start"),
            end=None if end is None else encode_key(end, "end"),
            reverse=bool(reverse),
        )
        page = await self._reads.page(
            self.scope, where, limit=limit, values=values, after=after, incomplete=incomplete, new=self.new
        )
        return replace(page, items=tuple(record for record in page if has_tags(record.tags, wanted)))

    async def namespaces(self, prefix: Sequence[str] = ()) -> Sequence[Namespace]:
        """Return the namespaces that hold a record, in order; their records are read without values.

        :raises LetopisError: as for :meth:`list`.
        """
        names: dict[Namespace, None] = {}
        after: str | None = None
        while True:
            page = await self.list(prefix, limit=1_000, after=after, values=False)
            names.update(dict.fromkeys(record.namespace for record in page))
            after = page.next
            if after is None:
                return tuple(names)

    async def _delete(self, changes: Sequence[PreparedChange], unchanged: Sequence[Record]) -> Sequence[RecordReceipt]:
        also = [prepare_delete(self.scope, r.namespace, r.key, expected=r.revision, keep=True) for r in unchanged]
        appended = await self._outbox.append(together(self.scope, [*changes, *also], trusting=True))
        return record_receipts([*changes, *also], appended, self._deliveries)

    async def _write(self, changes: Sequence[PreparedChange]) -> Sequence[RecordReceipt]:
        conditional = [item.change.place for item in changes if item.change.expected is not ANY]
        view: RecordsView | None = None
        if conditional and not await self._reads.is_pending(self.scope, conditional):
            view = await self._reads.ask(self.scope, conditional, values=False)
        prepared = together(self.scope, changes, view=view, trusting=self.new and view is None)
        return record_receipts(changes, await self._outbox.append(prepared), self._deliveries)


def _together(receipts: Sequence[RecordReceipt]) -> RecordReceipt:
    """Return the receipt of several deletions, the last of each lane."""
    own = [receipt._receipt for receipt in receipts if receipt._receipt is not None]
    return RecordReceipt(revision=None, _receipt=own[-1] if own else None, _beside=tuple(own[:-1]))


def are_put_into(records: Records, outbox: OutboxFile) -> bool:
    """Return True if records are kept in an outbox file that is open."""
    return records._outbox is outbox


def _pairs(keys: object) -> Sequence[tuple[Sequence[str], str]]:
    if not isinstance(keys, Sequence) or isinstance(keys, str | bytes):
        raise InvalidInput("keys", f"must be a sequence of pairs of namespace and key, not {type(keys).__name__}")
    for index, pair in enumerate(keys):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InvalidInput(f"keys[{index}]", "must be a pair of namespace and key")
    return keys


async def prepare_puts(scope: Scope, puts: Sequence[RecordPut]) -> Sequence[PreparedChange]:
    """Check and encode puts; large values in a thread."""
    if not isinstance(puts, Sequence) or not all(isinstance(put, RecordPut) for put in puts):
        raise InvalidInput("puts", "must be a sequence of RecordPut")
    if not puts:
        raise InvalidInput("puts", "there is nothing to put")
    prepared = []
    for put in puts:
        if put.on_exists not in ("raise", "keep"):
            raise InvalidInput("on_exists", 'must be "raise" or "keep"')
        namespace = tuple(put.namespace) if isinstance(put.namespace, list) else put.namespace
        options: dict[str, Any] = {"expected": put.expected, "keep": put.on_exists == "keep", "tags": put.tags}
        run = partial(prepare_put, scope, namespace, put.key, put.value, **options)
        large = isinstance(put.value, bytes | bytearray | str) and len(put.value) > _PREPARED_IN_THREAD_BYTES
        prepared.append(await run_to_completion(asyncio.to_thread(run)) if large else run())
    return prepared


def record_receipts(
    changes: Sequence[PreparedChange], appended: Appended, deliveries: Deliveries, *, void: asyncio.Event | None = None
) -> Sequence[RecordReceipt]:
    """Return the receipt of each change of an append."""
    receipts = []
    for item, sequence, revision in zip(changes, appended.sequences, appended.revisions, strict=True):
        event_id = item.event.event_id
        written = Appended(item.event.conversation_id, (event_id,), (sequence,), (), None, 1)
        receipt = Receipt(written, deliveries, void=void)
        kept = sequence == 0
        receipts.append(RecordReceipt(revision=revision, kept=kept, _receipt=None if kept else receipt))
    return receipts


@at_home()
class AllRecords:
    """What frameworks keep beside the messages. ``history.records``; call it for the records of one scope.

    ::

        await history.records(conversation="chat-1").put(("state",), "step", {"at": 3})
    """

    def __init__(self, home: SharedAccess) -> None:
        self._home = home

    def __call__(
        self,
        scope: Scope | None = None,
        *,
        conversation: str | None = None,
        owner: Owner | None = None,
        space: str | None = None,
        new: bool = False,
    ) -> Records:
        """Return the records of a conversation, an owner or a space.

        :param scope: that of a record that was found, instead of a name.
        :param space: a name of your choice for records that belong to neither, for example an application's memory.
        :param new: you say that the scope is new. While the history store is unavailable, a record that the outbox does
            not know then does not exist, instead of raising ``StoreUnavailable``, so that a new conversation can begin.
            If it exists after all, it and the new ones are kept side by side, and conditions are decided on delivery.
        :raises InvalidInput: none or several are named, or the name cannot be one.
        """
        return Records(_scope_from(scope, conversation=conversation, owner=owner, space=space), self._home, new=new)

    async def find(
        self,
        tags: Mapping[str, Tag],
        *,
        end: str | None = None,
        reverse: bool = False,
        limit: int = 100,
        after: str | None = None,
    ) -> Page[Record]:
        """Return the records of all scopes that have all these tags, without their values, pending ones included.

        :param end: only records with lower keys.
        :param reverse: in the order of the keys, the highest first, instead of by scope and namespace.
        :param after: the ``next`` of the page before.
        :raises StoreUnavailable: the history store does not answer.
        :raises InvalidInput: no tag is named, or an argument cannot be one.
        """
        return await self._home.parts.record_reads.find(tags, limit=limit, after=after, reverse=reverse, end=end)

    async def scopes(self, *, limit: int = 100, after: str | None = None) -> Page[Scope]:
        """Return the conversations, owners and spaces that have records, pending ones included, in a fixed order.

        What is about to be deleted may still be named: its list is empty.

        :param after: the ``next`` of the page before.
        :raises StoreUnavailable: the history store does not answer.
        :raises InvalidInput: an argument cannot be one.
        """
        return await self._home.parts.record_reads.scopes(limit=limit, after=after)


def _scope_from(scope: Scope | None, *, conversation: str | None, owner: Owner | None, space: str | None) -> Scope:
    """Return the one scope that is named, as ``History.records`` takes it."""
    if scope is not None and not isinstance(scope, Scope):
        raise InvalidInput("scope", f"must be the scope of a record, not {type(scope).__name__}")
    if sum(value is not None for value in (scope, conversation, owner, space)) != 1:
        raise InvalidInput("scope", "name one of conversation=, owner= and space=, or give the scope of a record")
    if scope is not None:
        return scope.check()
    if conversation is not None:
        return Scope.conversation(conversation)
    return Scope.space(space) if space is not None else Scope.owner(owner_id(owner) or "")
