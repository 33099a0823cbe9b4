"""Opens: a bot, its relay and the commands of a person in one process, with a tripwire for raw opens of its files.

python -m tests.proof.io.opens FOLDER [--raw]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from letopis.outbox import History
from letopis.store import Message
from tests.opens import WIRE
from tests.proof.power.promises import OUTBOX, STORE

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
"""All but `verify`, which reads the -wal as bytes, and for that is to be run in a process of its own, as it is."""
PATIENCE: Final = 120.0


def trip(folder: Path, *, commands: int, raw: bool) -> dict[str, Any]:
    """Run all of it, and return which commands ran and what the wire caught."""
    folder.mkdir()
    words = [sys.executable, "-m", "tests.proof.io.opens", str(folder), "--commands", str(commands)]
    words += ["--raw"] if raw else []
    done = subprocess.run(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True, timeout=PATIENCE)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


async def _live(folder: Path, *, commands: int, raw: bool) -> dict[str, Any]:
    codes: dict[str, object] = {}
    async with History.open(folder / OUTBOX, store=folder / STORE, min_free_bytes=None) as history:
        for number in range(20):
            await history.append(f"chat-{number % 3}", Message.user(f"message {number}"))
            async with history.transaction() as transaction:
                await transaction.append("till", Message.user(f"credit {number}"))
        await history.drained(30)
        await history.messages("chat-0", last=10)
        await history.outbox.tidy()
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--commands", type=int, default=len(COMMANDS))
    parser.add_argument("--raw", action="store_true", help="plant one")
    given = parser.parse_args()
    logging.disable()
    os.environ |= {"LETOPIS_OUTBOX": OUTBOX, "LETOPIS_STORE": STORE}
    os.chdir(given.folder)
    WIRE.install()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        told = asyncio.run(_live(Path(), commands=given.commands, raw=given.raw))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
