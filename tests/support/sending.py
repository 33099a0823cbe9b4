"""Be a bot that appends replies, sends them to a platform that is a file, and is killed while it does."""

import asyncio
import logging
import os
import random
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from letopis.outbox import History, UnsentReply


class FilePlatform:
    """Accepts a reply by one write at the end of a file, which no kill of the writer takes back."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._path = path

    def accept(self, key: str) -> int:
        os.write(self._descriptor, f"{key}\n".encode())
        return os.fstat(self._descriptor).st_size

    @property
    def accepted(self) -> list[str]:
        return self._path.read_text().split()


def sender_to(platform: FilePlatform, pause: Callable[[], Any]) -> Callable[[UnsentReply], Any]:
    async def send(reply: UnsentReply) -> dict[str, int]:
        await pause()
        number = platform.accept(reply.idempotency_key)
        await pause()
        return {"file": number}

    return send


def answer(outbox: str, accepted: str, steps: Connection, *, seed: int, again: bool) -> None:
    """Send replies without end: in ``live`` the bot itself, in ``left`` its history's sender. Report each step."""
    chance = random.Random(seed)

    async def pause() -> None:
        steps.send(None)
        await asyncio.sleep(chance.choice((0, 0.001, 0.004)))

    async def live() -> None:
        platform = FilePlatform(Path(accepted))
        sender = sender_to(platform, pause) if again else None
        async with History(Path(outbox), relay=False, sender=sender) as history:
            for number in range(10**9):
                for chat in ("live", "left"):
                    async with history.reply(chat, owner="42", every=None) as reply:
                        await reply.add(f"{seed} {number}")
                    await pause()
                    if chat == "live":
                        position = platform.accept(str(reply.event_id))
                        await pause()
                        await reply.sent(platform_ids={"file": position})
                    else:
                        await reply.send()

    logging.disable()
    asyncio.run(live())
