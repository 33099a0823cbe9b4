"""Lock the conversations of a batch and load what its events depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.row_mapping import conversation_row, message_row
from letopis.store.database.schema import conversations, messages
from letopis.store.model.event_types import ConversationStarted
from letopis.store.read.descendants import NewFork
from letopis.store.read.task_marks import message_columns
from letopis.store.rules.decoding import target_ids
from letopis.store.rules.reducer import ConversationState
from letopis.store.rules.rows import ConversationRow, MessageRow
from letopis.store.write.lanes import AcceptedLane
from letopis.store.write.preconditions import ConflictLookup
from letopis.store.write.redaction import Eraser
from letopis.store.write.removed_messages import RemovalBudget, RemovalStatements, erases
from letopis.store.write.transaction import ApplyTransaction, of_conversations


def _conversations_select(dialect: Dialect) -> sa.Select[Any]:
    return dialect.locked(
        sa.select(conversations)
        .where(*of_conversations(dialect, conversations))
        .order_by(conversations.c.partition, conversations.c.conversation_id)
    )


def _targets_select(dialect: Dialect) -> sa.Select[Any]:
    return sa.select(*message_columns(messages)).where(
        *of_conversations(dialect, messages), dialect.among(messages.c.message_id, "ids")
    )


class Loader:
    """Loads conversations and messages; the statements are compiled once."""

    def __init__(self, dialect: Dialect, eraser: Eraser) -> None:
        self._eraser = eraser
        self._conflicts = dialect.shared(ConflictLookup)
        self._removals = dialect.shared(RemovalStatements)
        self._conversations = dialect.shared(_conversations_select)
        self._targets = dialect.shared(_targets_select)

    async def load(self, transaction: ApplyTransaction, accepted: Sequence[AcceptedLane]) -> list[AcceptedLane]:
        """Lock the conversations of the lanes with fresh events, load what these depend on, and return these lanes.

        Those of lanes with records are locked too, so that they are not deleted meanwhile.
        """
        fresh = [lane for lane in accepted if lane.fresh]
        beside = [(lane, name) for lane in accepted if lane.changes and (name := lane.scope.conversation_id)]
        forks = _new_forks(fresh)
        rows = await self._lock_conversations(transaction, fresh, forks, {name for _, name in beside})
        for lane, name in beside:
            lane.gone = name in rows and rows[name].conversation.state == "deleted"
        targets = await self._load_targets(transaction, fresh)
        budget = RemovalBudget(transaction.connection, self._removals)
        for lane in fresh:
            name = lane.conversation_id
            lane.row = rows.get(name) or _new_row(lane)
            lane.targets, lane.unloaded = await budget.load(lane, lane.row.conversation, targets.get(name, []))
            if any(erases(item.body) for item in lane.fresh):
                lane.retained = await self._eraser.retained(transaction.connection, lane.partition, name, new=forks)
            lane.verdicts = {} if lane.row.new else await self._conflicts.find(transaction, lane)
        return fresh

    async def _lock_conversations(
        self,
        transaction: ApplyTransaction,
        fresh: Sequence[AcceptedLane],
        forks: Sequence[NewFork],
        also: set[str],
    ) -> dict[str, ConversationRow]:
        found: dict[str, ConversationRow] = {}
        # A fork's parent too: its deletion must not erase it before the fork is seen to read it.
        wanted = {fork.point.conversation_id for fork in forks} | {lane.conversation_id for lane in fresh}
        wanted.update(also)
        for part in in_batches(sorted(wanted, key=transaction.lock_order)):
            rows = await transaction.execute(
                self._conversations, partitions=transaction.partitions_of(part), conversations=part
            )
            found.update({row.conversation_id: conversation_row(row) for row in rows})
        return found

    async def _load_targets(
        self, transaction: ApplyTransaction, fresh: Sequence[AcceptedLane]
    ) -> dict[str, list[MessageRow]]:
        """Return the stored messages that the events name, by conversation."""
        wanted = {lane.conversation_id: target_ids(lane.fresh) for lane in fresh}
        pairs = [(name, message_id) for name, ids in wanted.items() for message_id in ids]
        found: dict[str, list[MessageRow]] = {}
        for part in in_batches(pairs):
            names = list(dict.fromkeys(name for name, _ in part))
            rows = await transaction.execute(
                self._targets,
                partitions=transaction.partitions_of(names),
                conversations=names,
                ids=list({message_id for _, message_id in part}),
            )
            for row in rows:
                if row.message_id in wanted[row.conversation_id]:
                    found.setdefault(row.conversation_id, []).append(message_row(row))
        return found


def _new_row(lane: AcceptedLane) -> ConversationRow:
    first = lane.fresh[0].delivery.event.occurred_at
    return ConversationRow(
        partition=lane.partition,
        conversation_id=lane.conversation_id,
        conversation=ConversationState(created_at=first, updated_at=first),
        new=True,
    )


def _new_forks(fresh: Sequence[AcceptedLane]) -> list[NewFork]:
    """Return the forks that a batch begins."""
    return [
        NewFork(conversation_id=lane.conversation_id, point=fork)
        for lane in fresh
        for item in lane.fresh
        if isinstance(item.body, ConversationStarted) and (fork := item.body.fork) is not None
    ]
