"""Delete checkpoints with their pending writes and the values that no other checkpoint names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final

from letopis.adapters.langgraph.checkpoints import CheckpointIncomplete, CheckpointRecords, Manifest, pages
from letopis.adapters.langgraph.delta import needed_by
from letopis.adapters.langgraph.keys import (
    CHECKPOINTS,
    ROOT,
    RUN_TAG,
    Namespace,
    Target,
    checkpoint_of_write,
    run_tag,
)
from letopis.adapters.langgraph.splitting import Pieces, Serializer
from letopis.outbox import Records
from letopis.store import ConversationGone, InvalidInput, Record

_DELETED_AT_ONCE: Final = 500
_FOUND_AT_ONCE: Final = 1_000


async def delete_thread(checkpoints: CheckpointRecords, target: Target) -> None:
    """Delete everything in a thread. Works while the history store is unavailable."""
    checkpoints.forget(target)
    try:
        await checkpoints.records(target).delete_where((*target.base, ROOT))
    except ConversationGone:
        return  # with its records
    checkpoints.forget(target)


async def prune_thread(
    checkpoints: CheckpointRecords,
    target: Target,
    serde: Serializer,
    *,
    keep_last: int = 1,
    put_after: datetime | None = None,
) -> None:
    """Delete all checkpoints but the last of each namespace and those that their delta channels need.

    With ``put_after`` those put before it are deleted too, but never the latest.

    :raises StoreUnavailable: the history store does not answer; nothing was deleted.
    """
    for namespace in await checkpoints.records(target).namespaces((*target.base, *CHECKPOINTS)):
        await prune_namespace(
            checkpoints, target.conversation, namespace, serde, keep_last=keep_last, put_after=put_after
        )


async def prune_namespace(
    checkpoints: CheckpointRecords,
    conversation: str,
    namespace: Namespace,
    serde: Serializer,
    *,
    keep_last: int | None,
    put_after: datetime | None,
    dry_run: bool = False,
) -> int:
    """Do as :func:`prune_thread` in one namespace of checkpoints; return how many were deleted, or would be."""
    where = Target(conversation, conversation, "", None)
    values, manifests, put_at = await _read(checkpoints, where, namespace)
    newest = sorted(manifests)[-(keep_last or len(manifests)) :]
    last = [name for name in newest if put_after is None or put_at[name] >= put_after or name == newest[-1]]
    doomed = manifests.keys() - set(last) - needed_by(last, manifests, serde)
    if not dry_run:
        await _delete(checkpoints, where, manifests, doomed, values)
    return len(doomed)


async def delete_runs(checkpoints: CheckpointRecords, run_ids: Sequence[str], serde: Serializer) -> None:
    """Delete the checkpoints of runs in all threads.

    :raises StoreUnavailable: the history store does not answer; nothing was deleted.
    :raises InvalidInput: a remaining checkpoint needs one of them; nothing was deleted.
    """
    history = checkpoints.history
    found: dict[tuple[str, Namespace], tuple[Records, set[str]]] = {}
    for run_id in dict.fromkeys(run_ids):
        after: str | None = None
        while True:
            page = await history.records.find({RUN_TAG: run_tag(run_id)}, limit=_FOUND_AT_ONCE, after=after)
            for one in page:
                place = one.scope.name, one.namespace
                found.setdefault(place, (history.records(one.scope), set()))[1].add(one.key)
            after = page.next
            if after is None:
                break
    work = []
    for (_, namespace), (records, doomed) in found.items():
        conversation = records.scope.conversation_id
        if conversation is None:
            continue
        where = Target(conversation, conversation, "", None)
        values, manifests, _ = await _read(checkpoints, where, namespace)
        needed = needed_by(manifests.keys() - doomed, manifests, serde) & doomed
        if needed:
            raise InvalidInput(
                "run_ids",
                f"include checkpoint {min(needed)} of thread {manifests[min(needed)].thread_id}, from which a"
                " DeltaChannel of a later run is made: delete that run too, or prune the thread",
            )
        work.append((where, manifests, doomed & manifests.keys(), values))
    for where, manifests, doomed, values in work:
        await _delete(checkpoints, where, manifests, doomed, values)


async def _read(
    checkpoints: CheckpointRecords, target: Target, namespace: Namespace
) -> tuple[list[Record], dict[str, Manifest], dict[str, datetime]]:
    """Return the records of all values of a namespace, without content, then its checkpoints and when each was put.

    The order matters: a value put meanwhile is either not among the records, or its checkpoint is included.
    """
    records = checkpoints.records(target)
    values = list[Record]()
    async for page in pages(records, (*namespace[:-2], "values", namespace[-1]), values=False):
        values += page
    manifests: dict[str, Manifest] = {}
    put_at: dict[str, datetime] = {}
    async for page in pages(records, namespace):
        manifests.update({one.key: Manifest.decode(one.value) for one in page})
        put_at.update({one.key: one.updated_at for one in page})
    return values, manifests, put_at


async def _delete(
    checkpoints: CheckpointRecords,
    target: Target,
    manifests: Mapping[str, Manifest],
    doomed: Collection[str],
    values: Sequence[Record],
) -> None:
    """Delete checkpoints of a namespace, and the values that only they needed.

    The newest goes first, because a later one may be built from an earlier one. The oldest goes last, at once with the
    last values: if the process is killed before, there is still a checkpoint to prune, and the next call goes on.
    """
    if not manifests:
        return
    first = next(iter(manifests.values()))
    where = Target(first.thread_id, target.conversation, first.checkpoint_ns, None)
    records = checkpoints.records(where)
    # From here on, newly put checkpoints do not rely on the values being deleted.
    checkpoints.forget(where)
    groups = {name: [(where.checkpoints, name)] for name in sorted(doomed, reverse=True)}
    async for page in pages(records, where.writes, values=False):
        for write in page:
            if (name := checkpoint_of_write(write.key)) in groups:
                groups[name].append((where.writes, write.key))
    oldest = min(doomed, default=None)
    batch: list[tuple[Namespace, str]] = []
    for name, keys in groups.items():
        if name == oldest or len(batch) >= _DELETED_AT_ONCE:
            if batch:
                await records.delete_many(batch)
            batch = []
        batch += keys
    kept = [one for name, one in manifests.items() if name not in doomed]
    async for found in checkpoints.manifests(where):
        kept += [one for one in found if one.checkpoint_id not in manifests]
    needed = await _needed(checkpoints, where, kept)
    spare = [value for value in values if value.key not in needed]
    if len(spare) > _DELETED_AT_ONCE:
        with suppress(CheckpointIncomplete):  # the oldest cannot be read any more
            needed |= await _needed(checkpoints, where, [] if oldest is None else [manifests[oldest]])
        early = [value for value in spare if value.key not in needed]
        for start in range(0, len(early), _DELETED_AT_ONCE):
            await records.delete_many((), unchanged=early[start : start + _DELETED_AT_ONCE])
        spare = [value for value in spare if value.key in needed]
    checkpoints.forget(where)
    if batch or spare:
        # A value that another checkpoint has put again since it was read stays.
        await records.delete_many(batch, unchanged=spare)


async def _needed(checkpoints: CheckpointRecords, where: Target, manifests: Sequence[Manifest]) -> set[str]:
    """Return the keys of all values that some checkpoints need."""
    pieces = Pieces()
    await checkpoints.read_values(where, manifests, pieces)
    return pieces.closure({key for one in manifests for key in one.keys})
