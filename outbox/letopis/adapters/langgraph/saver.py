# pyright: reportMissingImports=false
"""Store LangGraph's checkpoints in a history."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
)

from letopis.adapters._blocking import wait_for
from letopis.adapters.langgraph.checkpoints import CheckpointRecords, Manifest, PendingWrite, Whole, pages
from letopis.adapters.langgraph.delta import delta_history
from letopis.adapters.langgraph.keys import CHECKPOINTS, VALUES, WRITES, Namespace, Target, config_of, target_of
from letopis.adapters.langgraph.listing import CheckpointListing
from letopis.adapters.langgraph.pruning import delete_runs, delete_thread, prune_thread
from letopis.outbox import RecordPut
from letopis.store import InvalidInput, Record
from letopis.store.model.events import utc_now
from letopis.store.model.identifiers import check_number
from letopis.store.rules.retention import MAX_DAYS

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        DeltaChannelHistory,
    )
    from langgraph.checkpoint.serde.base import SerializerProtocol

    from letopis.outbox import History

T = TypeVar("T")


def _same(thread_id: str) -> str:
    return thread_id


class LetopisSaver(BaseCheckpointSaver[Any]):
    """A checkpointer for LangGraph on a history. Synchronous and asynchronous, for any event loop and thread.

    ::

        history = History("bot.outbox.db", store="postgresql://bot@db/history")
        graph = builder.compile(checkpointer=LetopisSaver(history))

    A checkpoint is durable in the outbox when ``put`` returns, and a run continues while the history store is
    unavailable, from the latest checkpoint that was put through this outbox. A thread that the outbox does not know
    raises ``StoreUnavailable`` then, so that it is not started over; ``"letopis_new": True`` in ``configurable`` says
    that the thread is new.

    A thread's records belong to the conversation of the same id and are erased with it. Values are stored by content
    hash, lists by element, so a thread grows with its content. Encrypted values differ each time and are stored in
    full.

    Not promised: an order between concurrent runs of one thread, and the values of a checkpoint that is put at the very
    moment when another process prunes or deletes its thread; reading it raises ``CheckpointIncomplete``.

    :param history: where the checkpoints are stored. It is opened on first use and not closed here.
    :param serde: the serializer, LangGraph's own by default.
    :param conversation: returns the conversation whose records hold a thread; by default the one with the same id. It
        may hold several threads, which are kept apart.
    """

    def __init__(
        self,
        history: History,
        *,
        serde: SerializerProtocol | None = None,
        conversation: Callable[[str], str] = _same,
    ) -> None:
        super().__init__(serde=serde)
        self.history = history
        self._conversation = conversation

    # A clone made by `with_allowlist` has another serializer, so objects that hold one are not cached.
    @property
    def _checkpoints(self) -> CheckpointRecords:
        return CheckpointRecords(self.history, lambda: self.serde)

    def _target(self, config: Mapping[str, Any]) -> Target:
        return target_of(config, self._conversation)

    def _thread(self, thread_id: object) -> Target:
        return self._target({"configurable": {"thread_id": thread_id}})

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return a checkpoint, or the latest one; ``None`` only if it certainly does not exist.

        :raises StoreUnavailable: the history store does not answer, and the outbox does not know.
        :raises CheckpointIncomplete: one of its values was deleted.
        """
        found = await self._checkpoints.get(self._target(config))
        return None if found is None else self._tuple(found)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[CheckpointTuple, None]:
        """Yield checkpoints, newest first by id; without a config, those of all threads.

        :raises StoreUnavailable: the history store does not answer.
        """
        bound = None if before is None else get_checkpoint_id(before)
        listing = CheckpointListing(self._checkpoints, dict(filter or {}), before=bound, limit=limit, serde=self.serde)
        if config is None:
            found = listing.everywhere()
        else:
            target = self._target(config)
            has_ns = config.get("configurable", {}).get("checkpoint_ns") is not None
            found = listing.of_namespace(target) if has_ns else listing.of_thread(target)
        async for one in found:
            yield self._tuple(one)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; one with the same id is replaced.

        :raises OutboxFull: the outbox, or the disk, is full.
        :raises InvalidInput: the thread id is not a valid conversation id, or a value is larger than 64 MiB.
        """
        target = self._target(config)
        told = get_checkpoint_metadata(config, metadata)
        cast("dict[str, Any]", told).pop("writes", None)
        await self._checkpoints.put(
            target, cast("dict[str, Any]", checkpoint), cast("dict[str, Any]", told), new_versions=new_versions
        )
        return self._config(target.thread_id, target.checkpoint_ns, checkpoint["id"])

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store pending writes of a checkpoint.

        The first write of a task and number wins, as LangGraph expects; errors, interrupts and resumes replace earlier
        ones.

        :raises OutboxFull: the outbox, or the disk, is full.
        """
        target = self._target(config)
        if target.checkpoint_id is None:
            raise InvalidInput("config", "names no checkpoint: writes are pending at one")
        await self._checkpoints.put_writes(
            target,
            [
                PendingWrite(
                    checkpoint_id=target.checkpoint_id,
                    task_id=task_id,
                    task_path=task_path,
                    index=WRITES_IDX_MAP.get(channel, number),
                    channel=channel,
                    typed=self.serde.dumps_typed(value),
                )
                for number, (channel, value) in enumerate(writes)
            ],
            replace=all(channel in WRITES_IDX_MAP for channel, _ in writes),
        )

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete all checkpoints of a thread; it can be used again."""
        await delete_thread(self._checkpoints, self._thread(thread_id))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of runs, in all threads.

        :raises StoreUnavailable: the history store does not answer.
        :raises InvalidInput: a ``DeltaChannel`` of a remaining checkpoint needs one of them; nothing was deleted.
        """
        await delete_runs(self._checkpoints, run_ids, self.serde)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints of a thread to another one, with their pending writes. Can be repeated.

        :raises StoreUnavailable: the history store does not answer.
        """
        await copy_thread(self._checkpoints, self._thread(source_thread_id), self._thread(target_thread_id))

    async def aprune(
        self,
        thread_ids: Sequence[str],
        *,
        strategy: str = "keep_latest",
        keep_last: int = 1,
        max_age_days: float | None = None,
    ) -> None:
        """Delete checkpoints of threads.

        :param strategy: ``keep_latest`` keeps the latest of each namespace and, with a ``DeltaChannel``, the earlier
            ones that it depends on; ``delete`` keeps none.
        :param keep_last: with ``keep_latest``, how many checkpoints of each namespace are kept.
        :param max_age_days: of these, those put longer ago are deleted too, but never the latest.
        :raises StoreUnavailable: the history store does not answer; only with ``keep_latest``.
        """
        if strategy not in ("keep_latest", "delete"):
            raise InvalidInput("strategy", 'must be "keep_latest" or "delete"')
        check_number(keep_last, "keep_last", whole=True)
        if keep_last < 1:
            raise InvalidInput("keep_last", "must be at least 1")
        put_after = None
        if max_age_days is not None:
            check_number(max_age_days, "max_age_days")
            if not 0 < max_age_days <= MAX_DAYS:
                raise InvalidInput("max_age_days", f"must be more than 0 and at most {MAX_DAYS} days")
            put_after = utc_now() - timedelta(days=max_age_days)
        for thread_id in thread_ids:
            target = self._thread(thread_id)
            if strategy == "delete":
                await delete_thread(self._checkpoints, target)
            else:
                await prune_thread(self._checkpoints, target, self.serde, keep_last=keep_last, put_after=put_after)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return the writes to channels by a checkpoint's ancestors, and the value on which they build."""
        found = await delta_history(self._checkpoints, self._target(config), channels, self.serde)
        return cast("Mapping[str, DeltaChannelHistory]", found)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """See :meth:`aget_tuple`."""
        return self._wait(lambda: self.aget_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """See :meth:`alist`."""
        found = self.alist(config, filter=filter, before=before, limit=limit)
        try:
            while (one := self._wait(lambda: anext(found, None))) is not None:
                yield one
        finally:
            self._wait(found.aclose)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """See :meth:`aput`."""
        return self._wait(lambda: self.aput(config, checkpoint, metadata, new_versions))

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """See :meth:`aput_writes`."""
        self._wait(lambda: self.aput_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """See :meth:`adelete_thread`."""
        self._wait(lambda: self.adelete_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """See :meth:`adelete_for_runs`."""
        self._wait(lambda: self.adelete_for_runs(run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """See :meth:`acopy_thread`."""
        self._wait(lambda: self.acopy_thread(source_thread_id, target_thread_id))

    def prune(
        self,
        thread_ids: Sequence[str],
        *,
        strategy: str = "keep_latest",
        keep_last: int = 1,
        max_age_days: float | None = None,
    ) -> None:
        """See :meth:`aprune`."""
        self._wait(lambda: self.aprune(thread_ids, strategy=strategy, keep_last=keep_last, max_age_days=max_age_days))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """See :meth:`aget_delta_channel_history`."""
        return self._wait(lambda: self.aget_delta_channel_history(config=config, channels=channels))

    def get_next_version(self, current: Any, channel: None) -> Any:
        """Return the next version of a channel: a number, or text in threads that another saver started with text."""
        if isinstance(current, str):
            return f"{int(current.split('.')[0]) + 1:032}.{random.random():016}"  # noqa: S311 - LangGraph's format
        return 1 if current is None else current + 1

    def _wait(self, work: Callable[[], Awaitable[T]]) -> T:
        return wait_for(self.history, work)

    def _config(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> RunnableConfig:
        return cast("RunnableConfig", config_of(thread_id, checkpoint_ns, checkpoint_id))

    def _tuple(self, found: Whole) -> CheckpointTuple:
        one = found.manifest
        place = one.thread_id, one.checkpoint_ns
        return CheckpointTuple(
            self._config(*place, one.checkpoint_id),
            cast("Checkpoint", found.checkpoint),
            self.serde.loads_typed(one.metadata),
            self._config(*place, one.parent_id) if one.parent_id else None,
            [(write.task_id, write.channel, self.serde.loads_typed(write.typed)) for write in found.writes],
        )


_AT_ONCE: Final = 200
_KINDS: Final[Sequence[Namespace]] = (VALUES, WRITES, CHECKPOINTS)


async def copy_thread(checkpoints: CheckpointRecords, source: Target, target: Target) -> None:
    """Copy everything in a thread to another one.

    An interrupted copy has the oldest checkpoints, each complete; copying can be repeated.
    """
    if source.thread_id == target.thread_id:
        raise InvalidInput("target_thread_id", "is the thread itself")
    put_into = checkpoints.records(target)
    for kind in _KINDS:
        async for page in pages(checkpoints.records(source), (*source.base, *kind), limit=_AT_ONCE):
            await put_into.put_many([_copy(one, source, target, manifest=kind == CHECKPOINTS) for one in page])


def _copy(record: Record, source: Target, target: Target, *, manifest: bool) -> RecordPut:
    value = record.value
    if manifest:
        value = replace(Manifest.decode(value), thread_id=target.thread_id).encode()
    return RecordPut((*target.base, *record.namespace[len(source.base) :]), record.key, value, tags=record.tags)
