"""Run the bots of ``docs/examples`` on a Bot API server of ours."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from letopis.outbox import History
from tests.support.bot_api import TOKEN, bot_api
from tests.support.paths import ROOT


async def run_example(name: str, folder: Path, conversation_id: str) -> None:
    """Ask an example one question; it answers, ends in order, tells no secret, and keeps both."""
    path = folder / "bot.outbox.db"
    with bot_api() as api:
        given = {"BOT_TOKEN": TOKEN, "TELEGRAM_API": api.url, "LETOPIS_OUTBOX": str(path)}
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI", "LETOPIS"))}
        script = ROOT / "docs" / "examples" / name
        with subprocess.Popen(
            [sys.executable, script], env={**environment, **given}, stderr=subprocess.PIPE
        ) as running:
            try:
                api.say("What is tea?")
                await asyncio.to_thread(api.wait, lambda: api.texts() == ["You said: What is tea?"], 90)
                running.send_signal(signal.SIGINT)
                _, told = running.communicate(timeout=60)
            finally:
                running.kill()

    assert running.returncode == 0, told.decode()
    assert TOKEN.partition(":")[2] not in told.decode()
    async with History(path) as history:
        assert [one.text for one in await history.messages(conversation_id)] == [
            "What is tea?",
            "You said: What is tea?",
        ]
        assert await history.unconfirmed() == ()
