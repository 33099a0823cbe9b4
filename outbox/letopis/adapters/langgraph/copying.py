"""Copy a thread: the values first, then the writes, then the checkpoints that need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from letopis.adapters.langgraph.checkpoints import CheckpointRecords, Manifest, pages
from letopis.adapters.langgraph.keys import CHECKPOINTS, VALUES, WRITES, Namespace, Target
from letopis.outbox import RecordPut
from letopis.store import InvalidInput, Record

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
