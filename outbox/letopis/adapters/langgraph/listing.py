"""List checkpoints newest first: of a namespace, of a thread, or of all threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from letopis.adapters.langgraph.checkpoints import READ_AT_ONCE, CheckpointRecords, Manifest, Whole, pages
from letopis.adapters.langgraph.keys import CHECKPOINTS, KIND_TAG, Target
from letopis.adapters.langgraph.splitting import Pieces, Serializer
from letopis.outbox import Records

_AT_ONCE: Final = 20
"""Checkpoints whose values are read together."""


@dataclass(frozen=True, slots=True)
class _Place:
    checkpoint_id: str
    namespace: tuple[str, ...]
    records: Records


class CheckpointListing:
    """One call of ``list``.

    :param wanted: what the metadata must contain.
    :param before: the id below which checkpoints are listed.
    """

    def __init__(
        self,
        checkpoints: CheckpointRecords,
        wanted: Mapping[str, Any],
        *,
        before: str | None,
        limit: int | None,
        serde: Serializer,
    ) -> None:
        self._checkpoints = checkpoints
        self._wanted = wanted
        self._before = before
        self._left = limit
        self._serde = serde

    async def of_namespace(self, target: Target) -> AsyncIterator[Whole]:
        """Yield the checkpoints of a namespace, or the one that the target names."""
        if target.checkpoint_id is not None:
            found = await self._checkpoints.manifest(target)
            if found is not None and (self._before is None or found.checkpoint_id < self._before):
                async for one in self._chosen(target, [found]):
                    yield one
            return
        size = _AT_ONCE if self._left is None or self._wanted else max(1, min(self._left, _AT_ONCE))
        async for page in self._checkpoints.manifests(target, before=self._before, page_size=size):
            async for one in self._chosen(target, page):
                yield one
            if self._done:
                return

    async def of_thread(self, target: Target) -> AsyncIterator[Whole]:
        """Yield the checkpoints of all namespaces of a thread."""
        records, places = self._checkpoints.records(target), list[_Place]()
        async for page in pages(records, (*target.base, *CHECKPOINTS), values=False):
            places += [_Place(one.key, one.namespace, records) for one in page]
        if target.checkpoint_id is not None:
            places = [one for one in places if one.checkpoint_id == target.checkpoint_id]
        async for found in self._of_places(places, target):
            yield found

    async def everywhere(self) -> AsyncIterator[Whole]:
        """Yield the checkpoints of all threads of the history."""
        history, after = self._checkpoints.history, None
        size = READ_AT_ONCE if self._left is None or self._wanted else max(1, min(self._left, READ_AT_ONCE))
        while not self._done:
            page = await history.records.find(
                {KIND_TAG: "checkpoint"}, end=self._before, reverse=True, limit=size, after=after
            )
            places = [_Place(one.key, one.namespace, history.records(one.scope)) for one in page]
            async for found in self._of_places(places):
                yield found
            after = page.next
            if after is None:
                return

    @property
    def _done(self) -> bool:
        return self._left is not None and self._left <= 0

    async def _of_places(self, places: Sequence[_Place], target: Target | None = None) -> AsyncIterator[Whole]:
        for place in sorted(places, key=lambda one: one.checkpoint_id, reverse=True):
            if self._done:
                return
            if self._before is not None and place.checkpoint_id >= self._before:
                continue
            record = await place.records.get(place.namespace, place.checkpoint_id)
            if record is None:
                continue  # deleted meanwhile
            found = Manifest.decode(record.value)
            conversation = place.records.scope.conversation_id or found.thread_id
            where = Target(found.thread_id, conversation, found.checkpoint_ns, None)
            async for one in self._chosen(where, [found]):
                yield one

    async def _chosen(self, target: Target, manifests: Sequence[Manifest]) -> AsyncIterator[Whole]:
        chosen = [one for one in manifests if self._matches(one)]
        if self._left is not None:
            chosen = chosen[: max(0, self._left)]
            self._left -= len(chosen)
        if chosen:
            for one in await self._checkpoints.complete(target, chosen, pieces=Pieces()):
                yield one

    def _matches(self, manifest: Manifest) -> bool:
        if not self._wanted:
            return True
        metadata = self._serde.loads_typed(manifest.metadata)
        return all(metadata.get(name) == value for name, value in self._wanted.items())
