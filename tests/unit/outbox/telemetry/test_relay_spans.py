"""A real relay with OpenTelemetry: what its spans name, as its configuration says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox.file.outbox_file import OutboxFile
from tests.support.daemons import DaemonProcess, until
from tests.support.relays import say

# As `opentelemetry-instrument` does, with the exporter of the SDK that writes JSON.
CODE = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
provider = TracerProvider()
exporter = ConsoleSpanExporter(out=open("spans.jsonl", "a"), formatter=lambda span: span.to_json(indent=None) + "\\n")
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
from letopis.outbox.cli import main
main(sys.argv[1:])
"""


def spans(folder: Path) -> list[dict[str, Any]]:
    path = folder / "spans.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("setting", ["none", "file", "option"])
def test_conversations_are_named_only_where_it_is_configured(setting: str, tmp_path: Path) -> None:
    async def fill() -> None:
        outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
        await say(outbox, "telegram:4711")
        await outbox.close()

    asyncio.run(fill())
    if setting == "file":
        (tmp_path / "letopis.toml").write_text("[daemon]\ntrace_conversations = true\n")
    arguments = ["--trace-conversations"] if setting == "option" else []

    with DaemonProcess(*arguments, folder=tmp_path, code=CODE):
        until(lambda: spans(tmp_path), "a span")

    [span] = spans(tmp_path)
    assert (span["name"], span["attributes"]["messaging.batch.message_count"]) == ("send letopis", 2)
    assert span["attributes"].get("gen_ai.conversation.id") == (None if setting == "none" else "telegram:4711")
