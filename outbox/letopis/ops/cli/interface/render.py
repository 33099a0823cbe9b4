"""Render pending events, conversations and messages as text and as JSON."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from letopis.ops.cli.interface.output import format_duration, note, printable, table, terminal_width, truncate
from letopis.outbox.operations.pending_events import event_json, event_summary, iso_moment, json_value, picked

if TYPE_CHECKING:
    from letopis.outbox.operations.pending_events import LaneWithLosses, PendingEvent, Repair
    from letopis.store.model.conversations import Conversation, RecordedMessage

HEAD: Final = ("EVENT", "CONVERSATION", "SEQ", "TYPE", "BYTES", "STATE", "TRIES", "BEHIND", "AGE", "FAULT")
MAX_ID_WIDTH: Final = 32  # characters of a conversation id in the table; JSON has all of it

_CODE: Final = re.compile(r"(?P<sentence>.*\S)\s*\[(?P<code>[^\[\]]+)\]\s*", re.DOTALL)
"""A sentence of ours, with the class and the code of the fault at its end."""
MIN_FAULT_WIDTH: Final = 20


def event_table(events: Sequence[PendingEvent], missing: Sequence[LaneWithLosses] = ()) -> str:
    """Return a table of events; on a terminal no wider than that is, as far as the last column can give way."""
    now = time.time()
    rows = [
        (
            str(event.event_id),
            truncate(event.conversation_id, MAX_ID_WIDTH),
            str(event.sequence),
            truncate(event.type, MAX_ID_WIDTH),
            str(event.size),
            event.state if event.front else "waits",
            str(event.attempts) if event.front else "-",
            str(event.behind) if event.front else "-",
            format_duration(now - event.appended_at / 1_000_000),
            _fault(event) if event.front else "-",
        )
        for event in events
    ]
    rows += [
        (
            "missing",
            truncate(lane.conversation_id, MAX_ID_WIDTH),
            *"---",
            lane.state,
            str(lane.attempts),
            *"--",
            _fault(lane),
        )
        for lane in missing
    ]
    lines = table(HEAD, rows, right=(2, 4, 6, 7))
    width = terminal_width(sys.stdout)
    if width is None:
        return lines
    fault_at = lines.index(HEAD[-1])
    return "\n".join(
        line if len(line) <= width else f"{line[: max(width, fault_at + MIN_FAULT_WIDTH) - 3]}..."
        for line in lines.split("\n")
    )


def code_first(fault: str) -> str:
    """Return the sentence of a fault with its class and code in front, where no narrow column cuts them off."""
    match = _CODE.fullmatch(fault)
    return fault if match is None else f"{match['code']}: {match['sentence']}"


def _fault(stuck: PendingEvent | LaneWithLosses) -> str:
    return printable(" ".join(code_first(stuck.fault or stuck.fault_class or "-").split()))


def event_details(entry: PendingEvent, done: Sequence[Repair], *, payload: bool) -> dict[str, Any]:
    """Return an event and its repairs as JSON values; content only with ``payload``."""
    repairs = [
        {
            "verb": made.verb,
            "event_id": str(made.event_id),
            "type": made.type,
            "digest": made.digest.hex(),
            **picked(made, "reason", "repaired_by"),
            "repaired_at": iso_moment(made.repaired_at),
            **({"data": json_value(made.data), "metadata": json_value(made.metadata)} if payload else {}),
        }
        for made in done
    ]
    return {**(event_json(entry) if payload else event_summary(entry)), "repairs": repairs}


def event_text(entry: PendingEvent, done: Sequence[Repair], *, payload: bool) -> str:
    """Return an event as text, one fact per line."""
    position = f"{entry.sequence}, " + (
        f"the front; {entry.behind} behind it" if entry.front else "waits behind an earlier event"
    )
    lines = [
        f"event         {entry.event_id}",
        f"conversation  {printable(entry.conversation_id)}",
        f"owner         {printable(entry.owner_id or '-')}",
        f"sequence      {position}",
        f"type          {printable(entry.type)} (schema {entry.schema_version}), {entry.size} bytes",
        f"digest        {entry.digest.hex()}",
        f"occurred      {iso_moment(entry.occurred_at)}",
        f"appended      {iso_moment(entry.appended_at)}",
        f"state         {entry.state}, {entry.attempts} attempts",
        f"fault         {printable(code_first(entry.fault or entry.fault_class or '-'))}",
    ]
    lines += [
        f"{repair.verb:<13} {iso_moment(repair.repaired_at)} by {printable(repair.repaired_by or 'unknown')}:"
        f" {printable(repair.reason)} (was {printable(repair.type)}, digest {repair.digest.hex()})"
        for repair in done
    ]
    if payload:
        lines += [f"data          {printable(entry.data)}", f"metadata      {printable(entry.metadata or '-')}"]
    return "\n".join(lines)


def indented(data: str) -> bytes:
    """Return stored data, indented for editing; unchanged if it is no longer JSON."""
    value = json_value(data)
    return data.encode() if isinstance(value, str) else orjson.dumps(value, option=_INDENT)


_INDENT: Final = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE


def conversation_json(conversation: Conversation) -> dict[str, Any]:
    """Return the JSON of a conversation; a documented, stable schema."""
    from letopis.store.transfer.timestamps import render_timestamp

    return {
        "conversation_id": conversation.conversation_id,
        "owner": conversation.owner_id,
        **picked(conversation, "number", "title", "state", "active", "version"),
        "messages": conversation.message_count,
        **picked(conversation, "tokens", "pending"),
        "created_at": render_timestamp(conversation.created_at),
        "updated_at": render_timestamp(conversation.updated_at),
    }


def message_json(recorded: RecordedMessage) -> dict[str, Any]:
    """Return the JSON of a message; a documented, stable schema."""
    from letopis.store.model.parts import content_to_json
    from letopis.store.transfer.timestamps import render_timestamp

    message = recorded.message
    return {
        "id": message.id,
        "version": recorded.version,
        "role": message.role,
        "content": content_to_json(message.content),
        **picked(message, "name", "author", "tokens"),
        "usage": dict(message.usage),
        "external_ids": dict(message.external_ids),
        "metadata": dict(message.metadata),
        "occurred_at": render_timestamp(recorded.occurred_at),
        "recorded_at": None if recorded.recorded_at is None else render_timestamp(recorded.recorded_at),
        **picked(recorded, "saved", "edited", "redacted", "delivery"),
        "delivery_data": dict(recorded.delivery_data),
    }


def message_text(recorded: RecordedMessage) -> str:
    """Return a message as text: time, role and marks, then the content."""
    marks = [
        mark for mark, there in (("edited", recorded.edited), (recorded.saved, recorded.saved != "saved")) if there
    ]
    if recorded.delivery != "appended":
        marks.append(recorded.delivery)
    name = f" ({printable(recorded.message.name)})" if recorded.message.name else ""
    head = f"{minute(recorded.occurred_at)}  {recorded.role}{name}{''.join(f'  [{mark}]' for mark in marks)}"
    content = recorded.content or ()
    parts = 0 if isinstance(content, str) else sum(1 for part in content if not hasattr(part, "text"))
    words = printable(recorded.text, lines=True) or ("" if parts else "(redacted)" if recorded.redacted else "(empty)")
    more = f"({parts} other part{'s' if parts > 1 else ''})" if parts else ""
    body = "\n".join(line for line in (words, more) if line)
    return head + "\n" + "\n".join(f"    {line}" for line in body.split("\n"))


def minute(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M}Z"


def say_whether_complete(complete: bool) -> None:
    """Print on stderr that older parts may be missing."""
    if not complete:
        note(
            "the history store cannot be read (`letopis db check` says why): this is what the outbox retains, "
            "older messages may be missing"
        )
