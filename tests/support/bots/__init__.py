"""Bots on the frameworks that there are adapters for, each on Letopis and on a backend of the framework itself."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.bot_api import BotApi, until
from tests.support.child import command
from tests.support.paths import ROOT


async def shown_by(api: BotApi, question: str) -> str:
    """Ask on Telegram, and return the answer; a model that hangs is waited for until the process is killed."""
    before = len(api.texts())
    api.say(question)
    await until(api, lambda: len(api.texts()) > before, 120)
    return api.texts()[before]


@contextmanager
def process(bot: Callable[..., Any], *given: Any, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a bot in a process of its own, and kill it in the end."""
    running = subprocess.Popen(command(bot, *given, **options), cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.kill()
        running.wait()
