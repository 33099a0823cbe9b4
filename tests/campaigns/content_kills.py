"""Kill a bot at random while it writes, edits and erases large content; afterwards nothing is lost, and nothing left.

``python -m tests.campaigns.content_kills --store URL --folder FOLDER --kills 200`` prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from letopis.outbox import History, Retention
from letopis.outbox.diagnostics.integrity import content_problems
from letopis.store import Message
from letopis.store.database.engines import create_store_engine
from letopis.store.maintenance.integrity import find_problems
from letopis.store.model.large_content import LARGE_BYTES
from letopis.store.write.contents import ContentWriter

CHATS = ("chat-1", "chat-2")
POOL = 5
KEPT = Retention(keep_last=4, keep_for=timedelta(0))


def content(number: int) -> str:
    return f"content {number} " * (LARGE_BYTES // 8)


def note(folder: Path, *words: object) -> None:
    """Write down what was asked or acknowledged, before the process can be killed."""
    descriptor = os.open(folder / "acknowledged", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, (json.dumps(words) + "\n").encode())
    os.close(descriptor)


async def act(folder: Path, store: str, seed: int) -> None:
    """Change conversations until the process is killed."""
    chance = random.Random(seed)
    async with History(folder / "bot.outbox.db", store=store, retention=KEPT) as history:
        note(folder, "begun", seed)
        for number in range(10_000):
            name, message_id = chance.choice(CHATS), f"{seed}-{number}"
            picked = chance.randrange(POOL)
            await history.append(name, Message.user(content(picked), id=message_id))
            note(folder, "appended", name, message_id, picked)
            match chance.randrange(6):
                case 0 | 1 | 2:
                    note(folder, "redacting", name, message_id)
                    await history.chat(name).redact(message_id)
                    note(folder, "redacted", name, message_id)
                case 3:
                    note(folder, "editing", name, message_id)
                    await history.chat(name).edit(message_id, content(chance.randrange(POOL)))
                case 4 if chance.random() < 0.03:
                    note(folder, "resetting", name)
                    await history.chat(name).reset()
                case _:
                    await asyncio.sleep(chance.random() / 50)


async def judge(folder: Path, store: str) -> dict[str, Any]:
    """Deliver the rest, then erase everything, and return what is wrong before and after."""
    async with History(folder / "bot.outbox.db", store=store, retention=KEPT) as history:
        drained = await history.drained(120)
        while await history.store.run_pending_tasks():
            pass
        problems = await history.outbox.read(lambda connection: list(content_problems(connection)))
        shown: dict[tuple[str, str], Any] = {}
        for name in CHATS:
            page = await history.messages(name, last=None)
            shown |= {(name, message.id): message.content for message in page}
            problems += [] if page.complete else [f"{name} is not complete"]
        problems += await found_in(store)
        for name in CHATS:
            await history.chat(name).reset()
        drained = await history.drained(120) and drained
        while await history.store.run_pending_tasks():
            pass
        problems += await history.outbox.read(lambda connection: list(content_problems(connection)))
        problems += await found_in(store)
    lines = [json.loads(line) for line in (folder / "acknowledged").read_text().splitlines()]
    changed = {(words[1], words[2]) for words in lines if words[0] in ("redacting", "editing")}
    reset = {words[1]: at for at, words in enumerate(lines) if words[0] == "resetting"}
    redacted = {(words[1], words[2]) for words in lines if words[0] == "redacted"}
    checked = 0
    for at, words in enumerate(lines):
        if words[0] != "appended" or (words[1], words[2]) in changed or at < reset.get(words[1], -1):
            continue
        checked += 1
        if shown.get((words[1], words[2])) != content(words[3]):
            problems.append(f"the content of {words[2]} is lost")
    problems += [f"{key[1]} is shown after its redaction" for key in redacted if shown.get(key)]
    if not drained:
        problems.append("not all was delivered")
    return {"checked": checked, "appended": sum(words[0] == "appended" for words in lines), "problems": problems[:20]}


async def found_in(store: str) -> list[str]:
    engine = create_store_engine(store)
    problems = [problem async for problem in find_problems(engine)]
    await engine.dispose()
    return problems


def in_child(work: Callable[[], None]) -> int:
    """Run something in a process of its own, which has imported all there is to import."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--defect", choices=("orphans",), help="plant a defect, which has to be found")
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    if asked.defect:
        mock.patch.object(ContentWriter, "sweep", new=mock.AsyncMock()).start()
    folder: Path = asked.folder
    for number in range(asked.kills):
        child = in_child(lambda seed=number: asyncio.run(act(folder, asked.store, seed)))  # type: ignore[misc]
        # By what it has done, and not by the clock: a busy machine lets it do little.
        lines = _lines(folder) + chance.randrange(1, 9)
        while _lines(folder) < lines:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    verdict = folder / "verdict"
    child = in_child(lambda: _write(verdict, asyncio.run(judge(folder, asked.store))))
    os.waitpid(child, 0)
    result = json.loads(verdict.read_text()) | {"kills": asked.kills}
    print(json.dumps(result))
    return 1 if result["problems"] else 0


def _lines(folder: Path) -> int:
    path = folder / "acknowledged"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
