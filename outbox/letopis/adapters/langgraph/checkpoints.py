"""Write and read checkpoints as records, each with a manifest that names the values of its channels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from letopis.adapters.langgraph.keys import (
    COUNTERS,
    KIND_TAG,
    RUN_TAG,
    Namespace,
    Target,
    checkpoint_of_write,
    run_tag,
    write_key,
    writes_range,
)
from letopis.adapters.langgraph.known import Known, known_checkpoints
from letopis.adapters.langgraph.splitting import (
    INLINE,
    Pieces,
    Reference,
    Serializer,
    Splitter,
    pack,
    references,
    unpack,
)
from letopis.outbox import History, RecordPut, Records
from letopis.store import ABSENT, LetopisError, Record, StoreUnavailable

READ_AT_ONCE: Final = 500
_MAX_ATTEMPTS: Final = 3


class CheckpointIncomplete(LetopisError):
    """A checkpoint names a value that does not exist: something other than this adapter deleted it."""

    def __init__(self, *, thread_id: str, checkpoint_id: str) -> None:
        super().__init__(
            f"checkpoint {checkpoint_id} of thread {thread_id} names a value that is not there: it was deleted while"
            " another process used the thread. Delete the thread, or continue from another of its checkpoints"
        )
        self.thread_id, self.checkpoint_id = thread_id, checkpoint_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A checkpoint without the values of its channels.

    :ivar checkpoint: type and bytes.
    :ivar metadata: type and bytes.
    :ivar inline: the values stored in the manifest itself.
    :ivar delta: the names of the delta channels, readable without the serializer; ``None`` in older manifests.
    """

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    checkpoint: tuple[str, bytes]
    metadata: tuple[str, bytes]
    channels: Mapping[str, Reference]
    inline: Mapping[str, bytes]
    delta: Sequence[str] | None = None

    @property
    def keys(self) -> set[str]:
        """The keys of the values that the manifest names."""
        return references(self.channels)

    def encode(self) -> bytes:
        """Return the value of the manifest's record."""
        header = {
            "thread": self.thread_id,
            "ns": self.checkpoint_ns,
            "id": self.checkpoint_id,
            "parent": self.parent_id,
            "types": [self.checkpoint[0], self.metadata[0]],
            "channels": self.channels,
            "delta": self.delta,
        }
        return pack(header, [self.checkpoint[1], self.metadata[1], *self.inline.values()])

    @classmethod
    def decode(cls, value: object) -> Manifest:
        """Return the manifest of a record.

        :raises ValueError: it is none.
        """
        header, bodies = unpack(value)
        channels: dict[str, Reference] = header["channels"]
        inline = [name for name, reference in channels.items() if reference[0] == INLINE]
        return cls(
            thread_id=header["thread"],
            checkpoint_ns=header["ns"],
            checkpoint_id=header["id"],
            parent_id=header["parent"],
            checkpoint=(header["types"][0], bodies[0]),
            metadata=(header["types"][1], bodies[1]),
            channels=channels,
            inline=dict(zip(inline, bodies[2:], strict=True)),
            delta=header.get("delta"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingWrite:
    """A pending write at a checkpoint."""

    checkpoint_id: str
    task_id: str
    task_path: str
    index: int
    channel: str
    typed: tuple[str, bytes]

    @property
    def order(self) -> tuple[str, str, int]:
        """The place among its checkpoint's writes, in the order in which a run applies them."""
        return self.task_path, self.task_id, self.index

    def put(self, namespace: Namespace) -> RecordPut:
        """Return the put of its record."""
        header = {
            "id": self.checkpoint_id,
            "task": self.task_id,
            "path": self.task_path,
            "index": self.index,
            "channel": self.channel,
            "type": self.typed[0],
        }
        key = write_key(self.checkpoint_id, self.task_id, self.index)
        return RecordPut(namespace, key, pack(header, [self.typed[1]]))

    @classmethod
    def decode(cls, value: object) -> PendingWrite:
        """Return the write of a record.

        :raises ValueError: it is none.
        """
        header, [body] = unpack(value)
        return cls(
            checkpoint_id=header["id"],
            task_id=header["task"],
            task_path=header["path"],
            index=header["index"],
            channel=header["channel"],
            typed=(header["type"], body),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A checkpoint with its values and its pending writes, in order."""

    manifest: Manifest
    checkpoint: dict[str, Any]
    writes: Sequence[PendingWrite]


class CheckpointRecords:
    """The checkpoints in the records of a history.

    :param serde: returns the serializer, which a saver may replace.
    """

    def __init__(self, history: History, serde: Callable[[], Serializer]) -> None:
        self.history = history
        self.known = known_checkpoints(history)
        self._serde = serde

    def records(self, target: Target) -> Records:
        """Return the records of a thread."""
        return self.history.records(conversation=target.conversation, new=target.new)

    async def put(
        self,
        target: Target,
        checkpoint: Mapping[str, Any],
        metadata: Mapping[str, Any],
        *,
        new_versions: Collection[str],
    ) -> None:
        """Store a checkpoint after the one that the target names; one with the same id is replaced.

        Values that the parent names are not stored again, if this process knows the parent and it still exists.
        """
        serde = self._serde()
        head = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        typed, typed_metadata = serde.dumps_typed(head), serde.dumps_typed(dict(metadata))
        parent = (target.conversation, target.checkpoint_ns, target.checkpoint_id or "")
        known = await self._known(target)
        tags = {KIND_TAG: "checkpoint"}
        if metadata.get("run_id") is not None:
            tags[RUN_TAG] = run_tag(metadata["run_id"])
        while True:
            values, channels, inline = self._split(serde, checkpoint, new_versions, known)
            manifest = Manifest(
                thread_id=target.thread_id,
                checkpoint_ns=target.checkpoint_ns,
                checkpoint_id=checkpoint["id"],
                parent_id=target.checkpoint_id,
                checkpoint=typed,
                metadata=typed_metadata,
                channels=channels,
                inline=inline,
                delta=sorted(metadata.get(COUNTERS) or ()),
            )
            puts = [RecordPut(target.values, key, body) for key, body in values.items()]
            puts.append(RecordPut(target.checkpoints, checkpoint["id"], manifest.encode(), tags=tags))
            await self.records(target).put_many(puts)
            if known is None or self.known.get(parent) is not None:
                break
            known = None  # the values it relies on may have been deleted meanwhile
        found = Known.of(channels, inline, dict(checkpoint["channel_versions"]))
        self.known.add((target.conversation, target.checkpoint_ns, checkpoint["id"]), found)

    async def _known(self, target: Target) -> Known | None:
        """Return the parent of a checkpoint to put, if it is known and no process has deleted it."""
        known = self.known.get((target.conversation, target.checkpoint_ns, target.checkpoint_id or ""))
        if known is None or target.checkpoint_id is None:
            return None
        try:
            found = await self.records(target).get(target.checkpoints, target.checkpoint_id)
        except StoreUnavailable:
            return known  # the run continues; this outbox has not deleted it, or it would know
        return None if found is None else known

    def _split(
        self, serde: Serializer, checkpoint: Mapping[str, Any], new_versions: Collection[str], known: Known | None
    ) -> tuple[dict[str, bytes], dict[str, Reference], dict[str, bytes]]:
        splitter = Splitter(serde, known.keys if known else frozenset())
        channels, inline = dict[str, Reference](), dict[str, bytes]()
        versions = checkpoint["channel_versions"]
        for name, value in checkpoint["channel_values"].items():
            unchanged = (
                known is not None
                and name not in new_versions
                and name in versions
                and name in known.channels
                and known.versions.get(name) == versions[name]
            )
            if unchanged and known is not None:
                channels[name], body = known.channels[name], known.inline.get(name, b"")
            else:
                channels[name], body = splitter.add(value)
            if channels[name][0] == INLINE:
                inline[name] = body
        return splitter.bodies, channels, inline

    async def put_writes(self, target: Target, writes: Sequence[PendingWrite], *, replace: bool) -> None:
        """Store pending writes of a checkpoint, which may itself be stored later.

        :param replace: the last one wins; otherwise the first one does.
        """
        if not writes:
            return
        records = self.records(target)
        puts = [one.put(target.writes) for one in writes]
        if replace:
            await records.put_many(puts)
            return
        # A transaction does not ask the history store, so a run continues while the store is unavailable.
        async with self.history.transaction() as tx:
            for one in puts:
                await tx.put(records, one.namespace, one.key, one.value, expected=ABSENT, on_exists="keep")

    async def manifest(self, target: Target) -> Manifest | None:
        """Return the checkpoint that a target names, or the latest one.

        While the history store is unavailable, the latest one is the latest that was put through this outbox.

        :raises StoreUnavailable: the history store does not answer, and the outbox does not know the checkpoint.
        """
        records = self.records(target)
        if target.checkpoint_id is not None:
            found = await records.get(target.checkpoints, target.checkpoint_id)
            return None if found is None else Manifest.decode(found.value)
        after: str | None = None
        while True:
            page = await records.list(target.checkpoints, reverse=True, limit=1, after=after, incomplete=True)
            if page.items:
                return Manifest.decode(page.items[0].value)
            if page.next is None:
                if not page.complete:
                    raise StoreUnavailable("whether the thread has a checkpoint")
                return None
            after = page.next

    async def manifests(
        self, target: Target, *, before: str | None = None, incomplete: bool = False, page_size: int = 50
    ) -> AsyncIterator[Sequence[Manifest]]:
        """Yield the checkpoints of a namespace, newest first, by page.

        :param before: only those with a lower id.
        """
        async for found in pages(
            self.records(target), target.checkpoints, end=before, reverse=True, limit=page_size, incomplete=incomplete
        ):
            yield [Manifest.decode(one.value) for one in found]

    async def get(self, target: Target) -> Whole | None:
        """Return the checkpoint that a target names, or the latest one, with values and writes.

        :raises StoreUnavailable: as for :meth:`manifest`, or a value is not known.
        :raises CheckpointIncomplete: a value is not there.
        """
        for attempt in range(_MAX_ATTEMPTS):
            manifest = await self.manifest(target)
            if manifest is None:
                return None
            try:
                [found] = await self.complete(target, [manifest])
            except CheckpointIncomplete:
                if attempt + 1 == _MAX_ATTEMPTS:
                    raise
                continue  # deleted between the two reads, with its values
            return found
        return None

    async def complete(
        self, target: Target, manifests: Sequence[Manifest], *, pieces: Pieces | None = None
    ) -> list[Whole]:
        """Return checkpoints of one namespace with their values and writes."""
        pieces = Pieces() if pieces is None else pieces
        writes, _ = await asyncio.gather(
            self.writes(target, [one.checkpoint_id for one in manifests]), self.read_values(target, manifests, pieces)
        )
        serde, found = self._serde(), []
        for one in manifests:
            checkpoint = serde.loads_typed(one.checkpoint)
            checkpoint["channel_values"] = {
                name: pieces.value(reference, one.inline.get(name, b""), serde)
                for name, reference in one.channels.items()
            }
            known = Known.of(one.channels, one.inline, dict(checkpoint["channel_versions"]))
            self.known.add((target.conversation, one.checkpoint_ns, one.checkpoint_id), known)
            found.append(Whole(manifest=one, checkpoint=checkpoint, writes=writes.get(one.checkpoint_id, ())))
        return found

    async def read_values(self, target: Target, manifests: Sequence[Manifest], pieces: Pieces) -> None:
        """Read everything that some checkpoints name.

        :raises CheckpointIncomplete: one is not there.
        """
        records = self.records(target)
        for one in manifests:
            while missing := pieces.missing(one.keys):
                for start in range(0, len(missing), READ_AT_ONCE):
                    part = missing[start : start + READ_AT_ONCE]
                    found = await records.get_many([(target.values, key) for key in part])
                    for key, record in zip(part, found, strict=True):
                        if record is None:
                            raise CheckpointIncomplete(thread_id=one.thread_id, checkpoint_id=one.checkpoint_id)
                        pieces.add(key, record.value)

    async def writes(self, target: Target, checkpoint_ids: Collection[str]) -> dict[str, list[PendingWrite]]:
        """Return the pending writes of some checkpoints, in order.

        While the history store is unavailable, those that this outbox knows of.
        """
        found: dict[str, list[PendingWrite]] = {one: [] for one in checkpoint_ids}
        start, end = writes_range(min(checkpoint_ids), max(checkpoint_ids))
        async for page in pages(self.records(target), target.writes, start=start, end=end, incomplete=True):
            for record in page:
                if checkpoint_of_write(record.key) in found:
                    write = PendingWrite.decode(record.value)
                    found[write.checkpoint_id].append(write)
        for writes in found.values():
            writes.sort(key=lambda one: one.order)
        return found

    def forget(self, target: Target) -> None:
        """Stop relying on stored values of a thread."""
        self.known.forget(target.conversation)


async def pages(
    records: Records,
    prefix: Namespace,
    *,
    start: str | None = None,
    end: str | None = None,
    reverse: bool = False,
    limit: int = READ_AT_ONCE,
    values: bool = True,
    incomplete: bool = False,
) -> AsyncIterator[Sequence[Record]]:
    """Yield a list of records page by page."""
    after: str | None = None
    while True:
        page = await records.list(
            prefix,
            start=start,
            end=end,
            reverse=reverse,
            limit=limit,
            after=after,
            values=values,
            incomplete=incomplete,
        )
        if page.items:
            yield page.items
        if page.next is None:
            return
        after = page.next
