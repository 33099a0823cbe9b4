# pyright: reportMissingImports=false
"""Store LangGraph's long-term memory in a history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from heapq import nlargest
from typing import TYPE_CHECKING, Any, Final

from langgraph.store import base as langgraph
from langgraph.store.base import BaseStore, GetOp, Item, ListNamespacesOp, PutOp, SearchItem, SearchOp

from letopis.adapters._blocking import wait_for
from letopis.adapters.langgraph.matching import is_match, matches_pattern
from letopis.outbox import RecordPut
from letopis.store import InvalidInput, Record, StoreUnavailable

if TYPE_CHECKING:
    from letopis.outbox import History, Records

SPACE: Final = "langgraph.store"
"""The default space of the records that hold the memory."""
_AT_ONCE: Final = 200

# Since 4.3.0. Before, labels were checked by the methods of the base class alone.
_validate = getattr(langgraph, "validate_op_namespace", lambda op: None)


class LetopisStore(BaseStore):
    """A long-term memory for LangGraph on a history. Synchronous and asynchronous, for any event loop and thread.

    ::

        graph = builder.compile(checkpointer=LetopisSaver(history), store=LetopisStore(history))

    A put is durable in the outbox when it returns, also while the history store is unavailable. During that time, a get
    of an item that the outbox does not know, and every search, raise ``StoreUnavailable`` instead of returning nothing.

    A search returns the most recently updated items first. It reads all items below the prefix.

    Filters compare values as Python does: an item whose value is missing or of another type does not match ``$gt`` and
    the like. There are no vectors: ``query`` and ``index`` have no effect. There is no time to live.

    :param history: where the memory is stored. It is opened on first use and not closed here.
    :param space: a name for the records that hold it. One history can hold several memories.
    """

    supports_ttl = False

    def __init__(self, history: History, *, space: str = SPACE) -> None:
        self.history = history
        self._space = space

    def batch(self, ops: Iterable[Any]) -> list[Any]:
        """See :meth:`abatch`."""
        return wait_for(self.history, lambda: self.abatch(ops))

    async def abatch(self, ops: Iterable[Any]) -> list[Any]:
        """Carry out the reads, then the puts and deletions, all or none, and return the results in order.

        Reads do not see the puts of the same batch. The last put under a key counts.

        :raises StoreUnavailable: only the history store could tell; nothing was written.
        :raises InvalidInput: a value is not a JSON object, or a namespace or key is too long; nothing was written.
        """
        given = list(ops)
        for op in given:
            _validate(op)
        records = self.history.records(space=self._space)
        results: list[Any] = [None] * len(given)
        gets = [(number, op) for number, op in enumerate(given) if isinstance(op, GetOp)]
        if gets:
            found = await records.get_many([(op.namespace, op.key) for _, op in gets])
            for (number, _), record in zip(gets, found, strict=True):
                results[number] = None if record is None else _item(record, Item)
        for number, op in enumerate(given):
            if isinstance(op, SearchOp):
                results[number] = await _search(records, op)
            elif isinstance(op, ListNamespacesOp):
                results[number] = await _list_namespaces(records, op)
        puts = {(op.namespace, op.key): op for op in given if isinstance(op, PutOp)}
        if puts:
            await self._put(records, list(puts.values()))
        return results

    async def _put(self, records: Records, ops: Sequence[PutOp]) -> None:
        for op in ops:
            if op.ttl is not None:  # as every store of LangGraph without ``supports_ttl`` answers
                raise NotImplementedError("LetopisStore keeps items until they are deleted: leave ttl out")
            if op.value is not None and not isinstance(op.value, Mapping):
                raise InvalidInput("value", f"must be an object, not {type(op.value).__name__}")
        kept = [op for op in ops if op.value is not None]
        created = await _created(records, kept) if kept else []
        now = datetime.now(UTC).isoformat()
        puts = [
            RecordPut(op.namespace, op.key, {"value": op.value, "created_at": at or now, "updated_at": now})
            for op, at in zip(kept, created, strict=True)
        ]
        deleted = [(op.namespace, op.key) for op in ops if op.value is None]
        if not deleted:
            await records.put_many(puts)
        elif not puts:
            await records.delete_many(deleted)
        else:
            async with self.history.transaction() as tx:
                for put in puts:
                    await tx.put(records, put.namespace, put.key, put.value)
                for namespace, key in deleted:
                    await tx.delete_record(records, namespace, key)


async def _created(records: Records, ops: Sequence[PutOp]) -> list[str | None]:
    """Return when items were first put; ``None`` for new ones, and if it is not known."""
    try:
        found = await records.get_many([(op.namespace, op.key) for op in ops])
    except StoreUnavailable:
        return [None] * len(ops)  # a put does not wait for the store
    return [None if one is None else one.value["created_at"] for one in found]


async def _search(records: Records, op: SearchOp) -> list[SearchItem]:
    wanted = max(0, op.offset) + max(0, op.limit)
    found: list[SearchItem] = []
    after: str | None = None
    while True:
        page = await records.list(op.namespace_prefix, limit=_AT_ONCE, after=after)
        items = [_item(one, SearchItem) for one in page if is_match(one.value["value"], op.filter)]
        found = nlargest(wanted, [*found, *items], key=lambda item: item.updated_at)
        after = page.next
        if after is None:
            return found[max(0, op.offset) :]


async def _list_namespaces(records: Records, op: ListNamespacesOp) -> list[tuple[str, ...]]:
    conditions = [(one.match_type, tuple(one.path)) for one in op.match_conditions or ()]
    prefix: tuple[str, ...] = ()
    for kind, path in conditions:
        if kind not in ("prefix", "suffix"):
            raise InvalidInput("match_conditions", 'are of type "prefix" or "suffix"')
        if kind == "prefix":
            fixed = path[: path.index("*")] if "*" in path else path
            prefix = max(prefix, fixed, key=len)
    found = [
        namespace
        for namespace in await records.namespaces(prefix)
        if all(matches_pattern(namespace, path, suffix=kind == "suffix") for kind, path in conditions)
    ]
    if op.max_depth is not None:
        found = list(dict.fromkeys(namespace[: op.max_depth] for namespace in found))
    return sorted(found)[op.offset : op.offset + op.limit]


def _item(record: Record, kind: type[Any]) -> Any:
    value = record.value
    return kind(
        namespace=record.namespace,
        key=record.key,
        value=value["value"],
        created_at=datetime.fromisoformat(value["created_at"]),
        updated_at=datetime.fromisoformat(value["updated_at"]),
    )
