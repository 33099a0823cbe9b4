# pyright: reportMissingImports=false
"""Keep the checkpoints of Agent Framework's workflows in a history."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

from agent_framework import WorkflowCheckpoint, WorkflowCheckpointException
from agent_framework._workflows._checkpoint_encoding import decode_checkpoint_value, encode_checkpoint_value

from letopis.outbox import History, RecordPut
from letopis.store import InvalidInput, Record, StoreUnavailable
from letopis.store.cancellation import run_to_completion

SPACE: Final = "agent_framework.checkpoints"
"""The default space of the records that hold the checkpoints."""
_VALUE: Final = "value"
_AT_ONCE: Final = 200
_LONGEST_LABEL: Final = 150
"""Bytes of a name that is used unchanged. Escaped, it takes up to three times as many, of a namespace's 512."""


class LetopisCheckpointStorage:
    """A ``CheckpointStorage``: each checkpoint is a record, with a small index record for its workflow.

    ::

        workflow = WorkflowBuilder(..., checkpoint_storage=LetopisCheckpointStorage(history)).build()

    A checkpoint is durable when it is saved. Values are encoded with pickle, as in the framework's own file storage,
    and decoded only into allowed types.

    The latest checkpoint is the one that no other continues; among several, the one with the newest timestamp. If it
    cannot be decoded, an error is raised: resuming from an older one would repeat completed work.

    :param history: not closed by the storage.
    :param allowed_checkpoint_types: further types that values may have, as ``"module:qualname"``.
    :param space: a name for the records that hold them. One history can hold several storages.
    """

    def __init__(self, history: History, *, allowed_checkpoint_types: Iterable[str] = (), space: str = SPACE) -> None:
        if not isinstance(history, History):
            raise InvalidInput("history", f"must be a History, not {type(history).__name__}")
        self._history = history
        self._allowed = frozenset(allowed_checkpoint_types)
        self._records = history.records(space=space)

    async def save(self, checkpoint: WorkflowCheckpoint) -> str:
        """Put a checkpoint, and return its id.

        :raises WorkflowCheckpointException: it could not be encoded, or not be decoded again; nothing was written.
        :raises LetopisError: as for ``Records.put``.
        """
        identifier = checkpoint.checkpoint_id
        try:
            encoded = encode_checkpoint_value(checkpoint.to_dict())
            decode_checkpoint_value(encoded, allowed_types=self._allowed)
            value = json.dumps(encoded).encode()
        except WorkflowCheckpointException:
            raise
        except Exception as error:  # pickling a value of the application may raise anything
            raise WorkflowCheckpointException(
                f"Checkpoint {identifier} cannot be encoded, or not be restored with the types that are allowed"
            ) from error
        entry = {"previous": checkpoint.previous_checkpoint_id, "timestamp": checkpoint.timestamp}
        puts = [
            RecordPut(_place(identifier), _VALUE, value),
            RecordPut(_index(checkpoint.workflow_name), identifier, entry),
        ]
        await run_to_completion(self._records.put_many(puts))
        return identifier

    async def load(self, checkpoint_id: str) -> WorkflowCheckpoint:
        """Return a checkpoint.

        :raises WorkflowCheckpointException: there is none with this id, or it cannot be decoded.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not know it.
        """
        record = await self._records.get(_place(checkpoint_id), _VALUE)
        if record is None:
            raise WorkflowCheckpointException(f"No checkpoint found with ID {checkpoint_id}")
        return self._decoded(record)

    async def list_checkpoints(self, *, workflow_name: str) -> list[WorkflowCheckpoint]:
        """Return all checkpoints of a workflow, in the order of their ids.

        :raises WorkflowCheckpointException: one cannot be decoded.
        :raises StoreUnavailable: the history store is unreachable.
        """
        ids = await self.list_checkpoint_ids(workflow_name=workflow_name)
        found: list[WorkflowCheckpoint] = []
        for start in range(0, len(ids), _AT_ONCE):
            records = await self._records.get_many([(_place(one), _VALUE) for one in ids[start : start + _AT_ONCE]])
            found += [self._decoded(one) for one in records if one is not None]
        return found

    async def list_checkpoint_ids(self, *, workflow_name: str) -> list[str]:
        """Return the ids of all checkpoints of a workflow, in order.

        :raises StoreUnavailable: the history store is unreachable.
        """
        return list(await self._entries(workflow_name))

    async def get_latest(self, *, workflow_name: str) -> WorkflowCheckpoint | None:
        """Return the latest checkpoint of a workflow; ``None`` if it certainly has none.

        While the history store is unreachable, this is the latest one that this outbox saved and retains.

        :raises WorkflowCheckpointException: it cannot be decoded.
        :raises StoreUnavailable: the history store is unreachable, and the outbox knows of none.
        """
        identifier = latest_of(await self._entries(workflow_name, incomplete=True))
        return None if identifier is None else await self.load(identifier)

    async def delete(self, checkpoint_id: str) -> bool:
        """Delete a checkpoint, and return ``False`` if there is none.

        :raises StoreUnavailable: the history store is unreachable, and the outbox does not know it.
        """
        record = await self._records.get(_place(checkpoint_id), _VALUE)
        if record is None:
            return False
        name = json.loads(record.value)["workflow_name"]
        keys = [(_place(checkpoint_id), _VALUE), (_index(name), checkpoint_id)]
        await run_to_completion(self._records.delete_many(keys))
        return True

    async def _entries(self, workflow_name: str, *, incomplete: bool = False) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        after: str | None = None
        while True:
            page = await self._records.list(_index(workflow_name), limit=_AT_ONCE, after=after, incomplete=incomplete)
            found |= {one.key: one.value for one in page}
            after = page.next
            if after is None:
                if not found and not page.complete:
                    raise StoreUnavailable("whether the workflow has a checkpoint")
                return found

    def _decoded(self, record: Record) -> WorkflowCheckpoint:
        value = decode_checkpoint_value(json.loads(record.value), allowed_types=self._allowed)
        return WorkflowCheckpoint.from_dict(value)


def latest_of(entries: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the checkpoint from which a workflow resumes.

    :param entries: by id: the ``previous`` id and the ``timestamp``. A clock that was set back must not make the
        workflow resume from a checkpoint that has a successor.
    """
    continued = {one["previous"] for one in entries.values()}
    heads = [one for one in entries if one not in continued] or list(entries)
    return max(heads, key=lambda one: (datetime.fromisoformat(entries[one]["timestamp"]), one), default=None)


def _place(checkpoint_id: str) -> tuple[str, str]:
    return "checkpoint", checkpoint_id


def _index(workflow_name: str) -> tuple[str, str]:
    name = workflow_name.encode()
    return "workflow", f"={workflow_name}" if len(name) <= _LONGEST_LABEL else f"#{sha256(name).hexdigest()}"
