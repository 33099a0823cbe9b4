"""Delete checkpoints with their pending writes and the values that no other checkpoint names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final

from letopis.adapters.langgraph.checkpoints import CheckpointRecords, Manifest, pages
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
from letopis.store import ConversationGone, InvalidInput

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
        values, manifests, put_at = await _read(checkpoints, target, namespace)
        if manifests:
            newest = sorted(manifests)[-keep_last:]
            last = [name for name in newest if put_after is None or put_at[name] >= put_after or name == newest[-1]]
            kept = set(last) | needed_by(last, manifests, serde)
            await _delete(checkpoints, target, manifests, manifests.keys() - kept, values)


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
) -> tuple[set[str], dict[str, Manifest], dict[str, datetime]]:
    """Return the keys of all values of a namespace, and then its checkpoints and when each was put.

    The order matters: a value put meanwhile is either not among the keys, or its checkpoint is included.
    """
    records = checkpoints.records(target)
    values = set[str]()
    async for page in pages(records, (*namespace[:-2], "values", namespace[-1]), values=False):
        values.update(one.key for one in page)
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
    values: set[str],
) -> None:
    """Delete checkpoints of a namespace, then the values that only they needed.

    If the process is killed in between, the next call deletes the rest.
    """
    if not manifests:
        return
    first = next(iter(manifests.values()))
    where = Target(first.thread_id, target.conversation, first.checkpoint_ns, None)
    records = checkpoints.records(where)
    # From here on, newly put checkpoints do not rely on the values being deleted.
    checkpoints.forget(where)
    await _delete_all(records, where.checkpoints, sorted(doomed))
    writes = [
        one.key
        async for page in pages(records, where.writes, values=False)
        for one in page
        if checkpoint_of_write(one.key) in doomed
    ]
    await _delete_all(records, where.writes, writes)
    kept = [one for name, one in manifests.items() if name not in doomed]
    async for page in checkpoints.manifests(where):
        kept += [one for one in page if one.checkpoint_id not in manifests]
    pieces = Pieces()
    await checkpoints.read_values(where, kept, pieces)
    needed = pieces.closure({key for one in kept for key in one.keys})
    await _delete_all(records, where.values, sorted(values - needed))


async def _delete_all(records: Records, namespace: Namespace, keys: Sequence[str]) -> None:
    for start in range(0, len(keys), _DELETED_AT_ONCE):
        await records.delete_many([(namespace, key) for key in keys[start : start + _DELETED_AT_ONCE]])
