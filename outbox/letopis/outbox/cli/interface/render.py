"""Render pending events as a table, as text and as JSON."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from letopis.outbox.cli.interface.output import format_duration, printable, table, terminal_width, truncate
from letopis.outbox.operations.event_json import event_json, event_summary, iso_moment, json_value

if TYPE_CHECKING:
    from letopis.outbox.operations.pending_events import LaneWithLosses, PendingEvent, Repair

HEAD: Final = ("EVENT", "CONVERSATION", "SEQ", "TYPE", "BYTES", "STATE", "TRIES", "BEHIND", "AGE", "FAULT")
MAX_ID_WIDTH: Final = 32
"""Characters of a conversation id in the table; JSON has all of it."""


_CODE: Final = re.compile(r"(?P<sentence>.*\S)\s*\[(?P<code>[^\[\]]+)\]\s*", re.DOTALL)
"""A sentence of ours, with the class and the code of the fault at its end."""
MIN_FAULT_WIDTH: Final = 20


def event_table(found: Sequence[PendingEvent], missing: Sequence[LaneWithLosses] = ()) -> str:
    """Return a table of events; on a terminal no wider than that is, as far as the last column can give way."""
    width = terminal_width(sys.stdout)
    lines = _event_lines(found, missing)
    if width is None:
        return lines
    fault_at = lines.index(HEAD[-1])
    return "\n".join(
        line if len(line) <= width else f"{line[: max(width, fault_at + MIN_FAULT_WIDTH) - 3]}..."
        for line in lines.split("\n")
    )


def code_first(fault: str) -> str:
    """Return the sentence of a fault with its class and code in front, where no narrow column cuts them off."""
    found = _CODE.fullmatch(fault)
    return fault if found is None else f"{found['code']}: {found['sentence']}"


def missing_json(one: LaneWithLosses) -> dict[str, Any]:
    """Return a stuck conversation without an event to show as JSON values."""
    return {
        "conversation_id": one.conversation_id,
        "owner_id": one.owner_id,
        "state": one.state,
        "attempts": one.attempts,
        "fault_class": one.fault_class,
        "fault": one.fault,
    }


def _event_lines(found: Sequence[PendingEvent], missing: Sequence[LaneWithLosses]) -> str:
    now = time.time()
    rows = [
        (
            str(one.event_id),
            truncate(one.conversation_id, MAX_ID_WIDTH),
            str(one.sequence),
            truncate(one.type, MAX_ID_WIDTH),
            str(one.size),
            one.state if one.front else "waits",
            str(one.attempts) if one.front else "-",
            str(one.behind) if one.front else "-",
            format_duration(now - one.appended_at / 1_000_000),
            _fault(one) if one.front else "-",
        )
        for one in found
    ]
    rows += [
        (
            "missing",
            truncate(one.conversation_id, MAX_ID_WIDTH),
            "-",
            "-",
            "-",
            one.state,
            str(one.attempts),
            "-",
            "-",
            _fault(one),
        )
        for one in missing
    ]
    return table(HEAD, rows, right=(2, 4, 6, 7))


def _fault(one: PendingEvent | LaneWithLosses) -> str:
    return printable(" ".join(code_first(one.fault or one.fault_class or "-").split()))


def event_details(entry: PendingEvent, done: Sequence[Repair], *, payload: bool) -> dict[str, Any]:
    """Return an event and its repairs as JSON values; content only with ``payload``."""
    repairs = []
    for one in done:
        repair = {
            "verb": one.verb,
            "event_id": str(one.event_id),
            "type": one.type,
            "digest": one.digest.hex(),
            "reason": one.reason,
            "repaired_by": one.repaired_by,
            "repaired_at": iso_moment(one.repaired_at),
        }
        repairs.append(
            {**repair, "data": json_value(one.data), "metadata": json_value(one.metadata)} if payload else repair
        )
    return {**(event_json(entry) if payload else event_summary(entry)), "repairs": repairs}


def event_text(entry: PendingEvent, done: Sequence[Repair], *, payload: bool) -> str:
    """Return an event as text, one fact per line."""
    place = f"{entry.sequence}, " + (
        f"the front; {entry.behind} behind it" if entry.front else "waits behind an earlier event"
    )
    lines = [
        f"event         {entry.event_id}",
        f"conversation  {printable(entry.conversation_id)}",
        f"owner         {printable(entry.owner_id or '-')}",
        f"sequence      {place}",
        f"type          {printable(entry.type)} (schema {entry.schema_version}), {entry.size} bytes",
        f"digest        {entry.digest.hex()}",
        f"occurred      {iso_moment(entry.occurred_at)}",
        f"appended      {iso_moment(entry.appended_at)}",
        f"state         {entry.state}, {entry.attempts} attempts",
        f"fault         {printable(code_first(entry.fault or entry.fault_class or '-'))}",
    ]
    lines += [
        f"{one.verb:<13} {iso_moment(one.repaired_at)} by {printable(one.repaired_by or 'unknown')}:"
        f" {printable(one.reason)} (was {printable(one.type)}, digest {one.digest.hex()})"
        for one in done
    ]
    if payload:
        lines += [f"data          {printable(entry.data)}", f"metadata      {printable(entry.metadata or '-')}"]
    return "\n".join(lines)


def indented(data: str) -> bytes:
    """Return stored data, indented for editing; unchanged if it is no longer JSON."""
    value = json_value(data)
    return data.encode() if isinstance(value, str) else orjson.dumps(value, option=_INDENT)


_INDENT: Final = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
