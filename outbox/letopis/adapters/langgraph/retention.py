# pyright: reportMissingImports=false
"""Delete the checkpoints that the rules of retention keep no longer, for the relay and the command line."""

from __future__ import annotations

from typing import Final

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from letopis.adapters.langgraph.checkpoints import CheckpointRecords
from letopis.adapters.langgraph.keys import Target
from letopis.adapters.langgraph.known import forget_everywhere
from letopis.adapters.langgraph.pruning import prune_namespace
from letopis.outbox import AllRecords, Records
from letopis.outbox.history.checkpoints import OwnLoop
from letopis.store.maintenance.due_checkpoints import DueCheckpoints

_SERDE: Final = JsonPlusSerializer()  # for the metadata of older checkpoints alone


class _Checkpoints(CheckpointRecords):
    """The checkpoints in the records of a relay's outbox, which is no history."""

    def __init__(self, home: OwnLoop) -> None:
        self._records = AllRecords(home)

    def records(self, target: Target) -> Records:
        return self._records(conversation=target.conversation)

    def forget(self, target: Target) -> None:
        forget_everywhere(target.conversation)


async def prune_due(home: OwnLoop, due: DueCheckpoints, *, dry_run: bool) -> int:
    """Delete the due checkpoints of a namespace; return how many were deleted, or would be.

    :raises StoreUnavailable: the history store does not answer.
    :raises CheckpointIncomplete: a value of a checkpoint that stays is missing; nothing was deleted but checkpoints.
    :raises NotImplementedError: the metadata of an older checkpoint was encrypted.
    """
    return await prune_namespace(
        _Checkpoints(home),
        due.conversation_id,
        due.namespace,
        _SERDE,
        keep_last=due.rule.checkpoints_last,
        put_after=due.put_after,
        dry_run=dry_run,
    )
