"""How pending events are shown: as a table, one by one, and in JSON whose keys stay."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from letopis.outbox.cli.output import clean, cut, span, table
from letopis.store.events import from_microseconds

if TYPE_CHECKING:
    from letopis.outbox.repair import Entry, Repair

HEAD: Final = ("EVENT", "CONVERSATION", "SEQ", "TYPE", "BYTES", "STATE", "TRIES", "BEHIND", "AGE", "FAULT")
WIDEST: Final = 32
"""Characters of a conversation id in the table; JSON has the whole."""


def listed(found: Sequence[Entry]) -> str:
    """Return a table of events."""
    now = time.time()
    rows = [
        (
            str(one.event_id),
            cut(one.conversation_id, WIDEST),
            str(one.sequence),
            cut(one.type, WIDEST),
            str(one.size),
            one.state if one.front else "waits",
            str(one.attempts) if one.front else "-",
            str(one.behind) if one.front else "-",
            span(now - one.appended_at / 1_000_000),
            cut(one.fault or one.fault_class or "-", 60) if one.front else "-",
        )
        for one in found
    ]
    return table(HEAD, rows, right=(2, 4, 6, 7))


def summary(entry: Entry) -> dict[str, Any]:
    """Return an event as JSON values, without what people said."""
    return {
        "event_id": str(entry.event_id),
        "conversation_id": entry.conversation_id,
        "owner_id": entry.owner_id,
        "sequence": entry.sequence,
        "type": entry.type,
        "schema_version": entry.schema_version,
        "bytes": entry.size,
        "digest": entry.digest.hex(),
        "occurred_at": _moment(entry.occurred_at),
        "appended_at": _moment(entry.appended_at),
        "front": entry.front,
        "behind": entry.behind,
        "state": entry.state,
        "attempts": entry.attempts,
        "due_at": _moment(entry.due_at) if entry.state == "retrying" and entry.due_at else None,
        "fault_class": entry.fault_class,
        "fault": entry.fault,
    }


def whole(entry: Entry) -> dict[str, Any]:
    """Return an event as JSON values, with all of it."""
    return {**summary(entry), "data": _value(entry.data), "metadata": _value(entry.metadata)}


def details(entry: Entry, done: Sequence[Repair], *, payload: bool) -> dict[str, Any]:
    """Return an event and what was done to it as JSON values; what people said only with ``payload``."""
    repairs = []
    for one in done:
        repair = {
            "verb": one.verb,
            "event_id": str(one.event_id),
            "type": one.type,
            "digest": one.digest.hex(),
            "reason": one.reason,
            "repaired_by": one.repaired_by,
            "repaired_at": _moment(one.repaired_at),
        }
        repairs.append({**repair, "data": _value(one.data), "metadata": _value(one.metadata)} if payload else repair)
    return {**(whole(entry) if payload else summary(entry)), "repairs": repairs}


def told(entry: Entry, done: Sequence[Repair], *, payload: bool) -> str:
    """Return an event for people, a line a fact."""
    place = f"{entry.sequence}, " + (
        f"the front; {entry.behind} behind it" if entry.front else "waits behind an earlier event"
    )
    lines = [
        f"event         {entry.event_id}",
        f"conversation  {clean(entry.conversation_id)}",
        f"owner         {clean(entry.owner_id or '-')}",
        f"sequence      {place}",
        f"type          {clean(entry.type)} (schema {entry.schema_version}), {entry.size} bytes",
        f"digest        {entry.digest.hex()}",
        f"occurred      {_moment(entry.occurred_at)}",
        f"appended      {_moment(entry.appended_at)}",
        f"state         {entry.state}, {entry.attempts} attempts",
        f"fault         {clean(entry.fault or entry.fault_class or '-')}",
    ]
    lines += [
        f"{one.verb:<13} {_moment(one.repaired_at)} by {clean(one.repaired_by or 'unknown')}: {clean(one.reason)}"
        f" (was {clean(one.type)}, digest {one.digest.hex()})"
        for one in done
    ]
    if payload:
        lines += [f"data          {clean(entry.data)}", f"metadata      {clean(entry.metadata or '-')}"]
    return "\n".join(lines)


def pretty(data: str) -> bytes:
    """Return stored data, indented to be edited; as it stands where it is no JSON any more."""
    value = _value(data)
    return data.encode() if isinstance(value, str) else orjson.dumps(value, option=_INDENT)


_INDENT: Final = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE


def _value(text: str | None) -> Any:
    """Return what stored JSON holds; the text itself where it was damaged."""
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _moment(microseconds: int) -> str:
    return from_microseconds(microseconds).isoformat()
