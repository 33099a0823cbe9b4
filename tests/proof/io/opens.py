"""Run a bot, its relay and an operator's commands in one process that reports raw opens of its files."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from pathlib import Path
from typing import Any, Final

from letopis.outbox import History
from letopis.store import Message
from tests.support.child import call
from tests.support.opens import WIRE
from tests.support.victim import HISTORY, OUTBOX

COMMANDS: Final = (
    ("status",),
    ("doctor",),
    ("outbox", "list", "--all"),
    ("outbox", "export", "--file", "pending.jsonl", "--force"),
    ("history", "list"),
    ("history", "export", "jsonl", "all.jsonl"),
    ("db", "check"),
    ("healthcheck",),
    ("relay", "--once"),
)
"""All but `verify`, which reads the -wal as bytes, and therefore has to run in a process of its own, as it does."""
TIMEOUT_SECONDS: Final = 120.0


def trip(folder: Path, *, commands: int, raw: bool) -> dict[str, Any]:
    """Run all of it, and return which commands ran and what the wire caught."""
    folder.mkdir()
    told: dict[str, Any] = call(live, folder, timeout=TIMEOUT_SECONDS, commands=commands, raw=raw)
    return told


def live(folder: str, *, commands: int, raw: bool) -> dict[str, Any]:
    """Live in this process, with the wire in place and nothing printed."""
    os.environ |= {"LETOPIS_OUTBOX": OUTBOX, "LETOPIS_STORE": HISTORY}
    os.chdir(folder)
    WIRE.install()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return asyncio.run(_live(Path(), commands=commands, raw=raw))


async def _live(folder: Path, *, commands: int, raw: bool) -> dict[str, Any]:
    codes: dict[str, object] = {}
    async with History(folder / OUTBOX, store=folder / HISTORY, min_free_bytes=None) as history:
        for number in range(20):
            await history.append(f"chat-{number % 3}", Message.user(f"message {number}"))
            async with history.transaction() as transaction:
                await transaction.append("till", Message.user(f"credit {number}"))
        await history.drained(30)
        await history.messages("chat-0", last=10)
        await history.outbox.maintain()
        for words in COMMANDS[:commands]:
            # In a thread of this process: what it opens and closes, it does to the bot's locks.
            codes[" ".join(words)] = await asyncio.to_thread(_command, words)
            await history.append("chat-0", Message.user(" ".join(words)))
        if raw:
            room: dict[str, Any] = {"__name__": "letopis.outbox.made_up"}
            exec("def look(path):\n    open(path, 'rb').close()", room)  # noqa: S102 - a frame of ours, made up
            room["look"](folder / OUTBOX)
        await history.drained(30)
    return {"found": WIRE.found, "heard": WIRE.heard, "codes": codes}


def _command(words: tuple[str, ...]) -> object:
    from letopis.outbox.cli import main

    try:
        main(words)
    except SystemExit as ended:
        return ended.code
    return 0
