"""Play the calls that a run of LangGraph makes on a saver, without the framework's own loop."""

import os
from typing import Any

from langgraph.checkpoint.base import Checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer


class Salted(JsonPlusSerializer):
    """Gives other bytes each time, as encryption does, which no other serializer reads."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        kind, body = super().dumps_typed(obj)
        return f"salted {kind}", os.urandom(16) + body

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return super().loads_typed((data[0].removeprefix("salted "), data[1][16:]))


def config(thread_id: object = "chat-1", *, ns: str | None = "", checkpoint_id: str | None = None) -> Any:
    given = {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}
    return {"configurable": {name: value for name, value in given.items() if value is not None}}


def checkpoint(values: dict[str, Any], *, version: Any = 1, checkpoint_id: str | None = None) -> Checkpoint:
    return Checkpoint(
        v=4,
        id=checkpoint_id or str(uuid6(clock_seq=-1)),
        ts="2026-11-27T00:00:00+00:00",
        channel_values=dict(values),
        channel_versions=dict.fromkeys(values, version),
        versions_seen={},
        updated_channels=None,
    )


async def put(
    saver: Any,
    values: dict[str, Any],
    at: Any = None,
    *,
    version: Any = 1,
    new: Any = None,
    checkpoint_id: str | None = None,
    **metadata: Any,
) -> Any:
    made = checkpoint(values, version=version, checkpoint_id=checkpoint_id)
    told = {"source": "loop", "step": 1, "parents": {}, **metadata}
    return await saver.aput(at or config(), made, told, made["channel_versions"] if new is None else new)


async def values_of(saver: Any, at: Any = None) -> Any:
    found = await saver.aget_tuple(at or config())
    return None if found is None else found.checkpoint["channel_values"]
