"""Bots on the frameworks that there are adapters for, each on Letopis and on a backend of the framework itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from letopis.outbox import History
from tests.support.bot_api import BOT_ID, TOKEN, USER, BotApi, bot_api, until
from tests.support.child import command
from tests.support.paths import ROOT

CHAT = f"tg:{BOT_ID}:{USER['id']}"


async def shown_by(api: BotApi, question: str, **more: Any) -> str:
    """Ask on Telegram, and return the answer; a model that hangs is waited for until the process is killed."""
    before = len(api.texts())
    api.say(question, **more)
    await until(api, lambda: len(api.texts()) > before, 120)
    return api.texts()[before]


@contextmanager
def process(bot: Callable[..., Any], *given: Any, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(command(bot, *given, **options), cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


async def run_example(name: str, folder: Path) -> None:
    """Ask a bot of ``docs/examples`` one question; it answers, ends in order, tells no secret, and keeps both."""
    path, said = folder / "bot.outbox.db", ["What is tea?", "You said: What is tea?"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI", "LETOPIS"))}
    words = [sys.executable, ROOT / "docs" / "examples" / name]
    with bot_api() as api:
        environment |= {"BOT_TOKEN": TOKEN, "TELEGRAM_API": api.url, "LETOPIS_OUTBOX": str(path)}
        with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE) as running:
            try:
                assert await shown_by(api, said[0]) == said[1]
                running.send_signal(signal.SIGINT)
                _, told = running.communicate(timeout=60)
            finally:
                running.kill()

    assert running.returncode == 0, told.decode()
    assert TOKEN.partition(":")[2] not in told.decode()
    async with History(path) as history:
        assert [one.text for one in await history.messages(CHAT)] == said
        assert await history.unconfirmed() == ()
