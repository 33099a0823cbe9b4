"""Render pending events as a table, as text and as JSON."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from letopis.outbox.cli.interface.output import format_duration, note, printable, table, terminal_width, truncate
from letopis.outbox.operations.pending_events import event_json, event_summary, iso_moment, json_value

if TYPE_CHECKING:
    from letopis.outbox.operations.pending_events import LaneWithLosses, PendingEvent, Repair
    from letopis.store.model.conversations import Conversation, RecordedMessage


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


def conversation_json(found: Conversation) -> dict[str, Any]:
    """Return the JSON of a conversation; a documented, stable schema."""
    from letopis.store.transfer.timestamps import render_timestamp

    return {
        "conversation_id": found.conversation_id,
        "owner": found.owner_id,
        "number": found.number,
        "title": found.title,
        "state": found.state,
        "active": found.active,
        "version": found.version,
        "messages": found.message_count,
        "tokens": found.tokens,
        "pending": found.pending,
        "created_at": render_timestamp(found.created_at),
        "updated_at": render_timestamp(found.updated_at),
    }


def message_json(found: RecordedMessage) -> dict[str, Any]:
    """Return the JSON of a message; a documented, stable schema."""
    from letopis.store.model.parts import content_to_json
    from letopis.store.transfer.timestamps import render_timestamp

    message = found.message
    return {
        "id": message.id,
        "version": found.version,
        "role": message.role,
        "content": content_to_json(message.content),
        "name": message.name,
        "tokens": message.tokens,
        "usage": dict(message.usage),
        "external_ids": dict(message.external_ids),
        "metadata": dict(message.metadata),
        "occurred_at": render_timestamp(found.occurred_at),
        "recorded_at": None if found.recorded_at is None else render_timestamp(found.recorded_at),
        "saved": found.saved,
        "edited": found.edited,
        "redacted": found.redacted,
        "delivery": found.delivery,
        "delivery_data": dict(found.delivery_data),
    }


def message_text(found: RecordedMessage) -> str:
    """Return a message as text: time, role and marks, then the content."""
    marks = [mark for mark, there in (("edited", found.edited), (found.saved, found.saved != "saved")) if there]
    if found.delivery != "appended":
        marks.append(found.delivery)
    name = f" ({printable(found.message.name)})" if found.message.name else ""
    head = f"{minute(found.occurred_at)}  {found.role}{name}{''.join(f'  [{mark}]' for mark in marks)}"
    content = found.content or ()
    parts = 0 if isinstance(content, str) else sum(1 for part in content if not hasattr(part, "text"))
    words = printable(found.text, lines=True) or ("" if parts else "(redacted)" if found.redacted else "(empty)")
    more = f"({parts} other part{'s' if parts > 1 else ''})" if parts else ""
    body = "\n".join(line for line in (words, more) if line)
    return head + "\n" + "\n".join(f"    {line}" for line in body.split("\n"))


def minute(moment: Any) -> str:
    """Return a moment to the minute, in UTC."""
    return f"{moment:%Y-%m-%d %H:%M}Z"


def say_whether_complete(complete: bool) -> None:
    """Print on stderr that older parts may be missing."""
    if not complete:
        note(
            "the history store cannot be read (`letopis db check` says why): this is what the outbox retains, "
            "older messages may be missing"
        )
