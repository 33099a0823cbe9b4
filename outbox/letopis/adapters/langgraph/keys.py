"""Name the records of a thread: checkpoints, their pending writes, and the values of their channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from letopis.store.errors import InvalidInput

Namespace = tuple[str, ...]

ROOT: Final = "langgraph"
"""The first label of all records of the saver: other records of the conversation are not touched."""
CHECKPOINTS: Final = (ROOT, "checkpoints")
WRITES: Final = (ROOT, "writes")
VALUES: Final = (ROOT, "values")
NEW: Final = "letopis_new"
"""The key of ``configurable`` that says that a thread is new."""
THREADS: Final = "langgraph.threads"
"""The first label of the records of a thread in a conversation of another name, which may hold several."""
KIND_TAG: Final = "langgraph"
RUN_TAG: Final = "langgraph.run"
COUNTERS: Final = "counters_since_delta_snapshot"
"""The key of a checkpoint's metadata that names its delta channels."""
_LONGEST_LABEL: Final = 200
"""Bytes of a label that is used unchanged: two of them, escaped, fit in a namespace's 512 bytes."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a config names.

    :ivar conversation: the conversation in whose records the thread is.
    :ivar checkpoint_id: ``None`` for the latest one.
    :ivar new: whether the caller says that the thread is new.
    """

    thread_id: str
    conversation: str
    checkpoint_ns: str
    checkpoint_id: str | None
    new: bool = False

    @property
    def base(self) -> Namespace:
        """The namespace above all of the thread's."""
        return () if self.thread_id == self.conversation else (THREADS, label(self.thread_id))

    @property
    def checkpoints(self) -> Namespace:
        """The namespace of its checkpoints, by id."""
        return (*self.base, *CHECKPOINTS, label(self.checkpoint_ns))

    @property
    def values(self) -> Namespace:
        """The namespace of the values of its channels, by content hash."""
        return (*self.base, *VALUES, label(self.checkpoint_ns))

    @property
    def writes(self) -> Namespace:
        """The namespace of its checkpoints' pending writes, by checkpoint, task and number."""
        return (*self.base, *WRITES, label(self.checkpoint_ns))


def write_key(checkpoint_id: str, task_id: str, index: int) -> str:
    """Return the key of a write: a checkpoint's writes are adjacent, in the order of the checkpoints."""
    if "/" in task_id or len(task_id) > _LONGEST_LABEL:
        task_id = sha256(task_id.encode()).hexdigest()
    return f"{checkpoint_id}/{task_id}/{index}"


def checkpoint_of_write(key: str) -> str:
    """Return the checkpoint of a write."""
    return key.rsplit("/", 2)[0]


def writes_range(first: str, last: str) -> tuple[str, str]:
    """Return the bounds of the keys of the writes at checkpoints from one to another."""
    return f"{first}/", f"{last}0"  # "0" follows "/"


def label(text: str) -> str:
    """Return a label for any text, even an empty one; for a long text, its digest."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput("checkpoint_ns", f"has a lone surrogate at {error.start}: it is not text") from None
    escaped = len(encoded) + 2 * (text.count("/") + text.count("%"))
    return f"={text}" if escaped <= _LONGEST_LABEL else f"#{sha256(encoded).hexdigest()}"


def target_of(config: Mapping[str, Any], conversation_of: Callable[[str], str]) -> Target:
    """Return what a config names.

    :raises InvalidInput: it names no thread.
    """
    configurable = config.get("configurable") or {}
    thread_id = configurable.get("thread_id")
    if thread_id is None or thread_id == "":
        raise InvalidInput("config", 'names no thread: pass {"configurable": {"thread_id": ...}}')
    checkpoint_id = configurable.get("checkpoint_id")
    thread = str(thread_id)
    return Target(
        thread_id=thread,
        conversation=conversation_of(thread),
        checkpoint_ns=str(configurable.get("checkpoint_ns") or ""),
        checkpoint_id=None if not checkpoint_id else str(checkpoint_id),
        new=configurable.get(NEW) is True,
    )


def config_of(thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> dict[str, Any]:
    """Return the config that names a checkpoint."""
    return {
        "configurable": {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id},
    }


def run_tag(run_id: object) -> str:
    """Return the tag of a run: its id, or the digest of a long one."""
    text = str(run_id)
    return text if len(text.encode()) <= _LONGEST_LABEL // 2 else sha256(text.encode()).hexdigest()
