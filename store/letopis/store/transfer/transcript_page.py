"""Write exported conversations as one HTML page that loads nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html import escape
from typing import BinaryIO, Final

from letopis.store.model.conversations import Delivery, RecordedMessage
from letopis.store.rules.transcript import brief, clean, one_line, transcript

_HEAD: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; font: inherit }}
p {{ color: #555; margin: 0 0 1rem 1rem; font-size: .875rem }}
</style>
<h1>{title}</h1>
<p>{made}</p>
"""


class TranscriptPage:
    """A page in progress: its conversations one after the other, each message as a transcript shows it."""

    def __init__(self, stream: BinaryIO, *, title: str, now: datetime) -> None:
        self._stream = stream
        self._day = ""
        moment = f"{now.astimezone(UTC):%Y-%m-%d %H:%M} UTC, as are all times here"
        self._write(_HEAD.format(title=escape(one_line(title)), made=moment))

    def begin(self, conversation_id: str, *, title: str | None) -> None:
        """Begin a conversation."""
        name = one_line(title or "") or f"Conversation {one_line(conversation_id)}"
        self._day = ""
        self._write(f"<h2>{escape(name)}</h2>\n")

    def message(self, message: RecordedMessage) -> None:
        """Add a message with its delivery, under a heading for each new day."""
        day, _, text = transcript(None, [message]).partition("\n\n")
        if day != self._day:
            self._day = day
            self._write(f"<h3>{escape(day.strip('= '))}</h3>\n")
        self._write(f"<pre>{escape(text)}</pre>\n")
        if message.delivery is Delivery.SENT:
            told = ", ".join(f"{key}: {brief(_text(value))}" for key, value in message.delivery_data.items())
            self._write(f"<p>{escape('sent' + (f' ({told})' if told else ''))}</p>\n")

    def record(self, line: bytes) -> None:
        """Add a record, as its line in the file."""
        self._write(f"<h3>Record</h3>\n<pre>{escape(clean(line.decode().strip()))}</pre>\n")

    def _write(self, text: str) -> None:
        self._stream.write(text.encode())


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
