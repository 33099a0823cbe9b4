# pyright: reportMissingImports=false
"""Delete the checkpoints that the rules of retention keep no longer, for the relay and the command line."""

from __future__ import annotations

import logging
from typing import Final

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from letopis.adapters.langgraph.checkpoints import CheckpointIncomplete, CheckpointRecords
from letopis.adapters.langgraph.keys import Target
from letopis.adapters.langgraph.known import forget_everywhere
from letopis.adapters.langgraph.pruning import prune_namespace
from letopis.outbox import AllRecords, Records
from letopis.outbox.history.checkpoints import OwnLoop
from letopis.store.maintenance.due_checkpoints import DueCheckpoints

logger = logging.getLogger("letopis.adapters.langgraph")
_SERDE: Final = JsonPlusSerializer()  # for the metadata of older checkpoints alone


class _Checkpoints(CheckpointRecords):
    """The checkpoints in the records of a relay's outbox, which is no history."""

    def __init__(self, records: AllRecords) -> None:
        self._records = records

    def records(self, target: Target) -> Records:
        return self._records(conversation=target.conversation)

    def forget(self, target: Target) -> None:
        forget_everywhere(target.conversation)


async def prune_due(home: OwnLoop, due: DueCheckpoints, *, dry_run: bool) -> int:
    """Do as :func:`prune_namespace` by a rule. Checkpoints that cannot be read here stay, which is logged."""
    last, checkpoints = due.rule.checkpoints_last, _Checkpoints(AllRecords(home))
    where = (checkpoints, due.conversation_id, due.namespace, _SERDE)
    try:
        return await prune_namespace(*where, keep_last=last, put_after=due.put_after, dry_run=dry_run)
    except (CheckpointIncomplete, NotImplementedError, ValueError) as error:  # the other threads are pruned
        logger.warning("checkpoints in %r stay, they cannot be read: %s", due.conversation_id, type(error).__name__)
        return 0
