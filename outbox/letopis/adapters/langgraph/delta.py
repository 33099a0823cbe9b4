"""Follow the ancestors of a checkpoint, for channels whose value is built from the ancestors' writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from letopis.adapters.langgraph.checkpoints import CheckpointRecords, Manifest
from letopis.adapters.langgraph.keys import COUNTERS, Target
from letopis.adapters.langgraph.splitting import Pieces, Serializer

_AT_ONCE: Final = 100


async def delta_history(
    checkpoints: CheckpointRecords, target: Target, channels: Sequence[str], serde: Serializer
) -> dict[str, dict[str, Any]]:
    """For each channel, return the ancestors' writes, oldest first, and the nearest stored value, if there is one.

    :raises StoreUnavailable: the history store does not answer, and the outbox does not know an ancestor.
    """
    found: dict[str, dict[str, Any]] = {name: {"writes": []} for name in channels}
    manifest = await checkpoints.manifest(target) if channels else None
    if manifest is None:
        return found
    chain = await _ancestors(checkpoints, target, manifest, set(channels))
    if not chain:
        return found
    writes = await checkpoints.writes(target, [one.checkpoint_id for one in chain])
    pieces, remaining = Pieces(), set(channels)
    collected: dict[str, list[tuple[str, str, Any]]] = {name: [] for name in channels}
    for one in chain:
        for write in reversed(writes[one.checkpoint_id]):
            if write.channel in remaining:
                value = serde.loads_typed(write.typed)
                collected[write.channel].append((write.task_id, write.channel, value))
        seeds = remaining & one.channels.keys()
        if seeds:
            named = replace(one, channels={name: one.channels[name] for name in seeds})
            await checkpoints.read_values(target, [named], pieces)
        for name in seeds:
            found[name]["seed"] = pieces.value(one.channels[name], one.inline.get(name, b""), serde)
        remaining -= seeds
    for name, newest_first in collected.items():
        found[name]["writes"] = newest_first[::-1]
    return found


async def _ancestors(
    checkpoints: CheckpointRecords, target: Target, manifest: Manifest, channels: set[str]
) -> list[Manifest]:
    """Return the ancestors, nearest first, until each channel has a stored value."""
    read: dict[str, Manifest] = {}
    chain, remaining, walked = list[Manifest](), set(channels), {manifest.checkpoint_id}
    listing = checkpoints.manifests(target, before=manifest.checkpoint_id, incomplete=True, page_size=_AT_ONCE)
    more = True
    parent = manifest.parent_id
    while parent is not None and remaining and parent not in walked:
        walked.add(parent)
        # The ancestors come in the order of the list, unless clocks of several processes differ.
        if parent not in read and more:
            page = await anext(listing, None)
            more = page is not None
            read.update({one.checkpoint_id: one for one in page or ()})
        found = read.get(parent) or await checkpoints.manifest(replace(target, checkpoint_id=parent))
        if found is None:
            break
        chain.append(found)
        remaining -= found.channels.keys()
        parent = found.parent_id
    return chain


def needed_by(kept: Collection[str], manifests: Mapping[str, Manifest], serde: Serializer) -> set[str]:
    """Return the checkpoints on which others depend, because those do not hold the full value of a delta channel.

    :param kept: the others.
    :param manifests: all of the namespace, by id.
    """
    needed = set[str]()
    for checkpoint_id in kept:
        head, *ancestors = _chain(manifests, checkpoint_id)
        # Delta channels are those with a counter, which may appear only before this checkpoint.
        names = {name for one in (head, *ancestors) for name in _delta_channels(one, serde)}
        unresolved = names - head.channels.keys()
        for one in ancestors:
            if not unresolved:
                break
            needed.add(one.checkpoint_id)
            unresolved -= one.channels.keys()
    return needed


def _delta_channels(manifest: Manifest, serde: Serializer) -> Collection[str]:
    if manifest.delta is not None:
        return manifest.delta
    counters: Collection[str] = serde.loads_typed(manifest.metadata).get(COUNTERS) or ()
    return counters


def _chain(manifests: Mapping[str, Manifest], checkpoint_id: str) -> list[Manifest]:
    chain, walked = list[Manifest](), set[str]()
    at: str | None = checkpoint_id
    while at is not None and at in manifests and at not in walked:
        walked.add(at)
        chain.append(manifests[at])
        at = manifests[at].parent_id
    return chain
