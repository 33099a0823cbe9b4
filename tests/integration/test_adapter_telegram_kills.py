"""Bots on python-telegram-bot that are killed while they work: no update is lost, and no answer recorded twice."""

import asyncio
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("telegram.ext", reason="needs python-telegram-bot: pip install 'letopis[telegram]'")

from letopis.outbox import History
from tests.support.bot_api import BotApi, until
from tests.support.bots import CHAT, process
from tests.support.telegram_bots import answering

pytestmark = pytest.mark.slow
QUESTIONS = 9
KILLS = 4


async def recorded_answers(api: BotApi, folder: Path, monkeypatch: pytest.MonkeyPatch, *, recalls: bool) -> list[str]:
    """Kill a bot while Telegram takes an answer of its, four times; return the answers that are recorded in the end.

    In each life the bot answers one question, and is killed at the second one: Telegram has shown that answer, or not.
    """
    take, lives = api.take, list[subprocess.Popen[bytes]]()
    sends = 0

    def killing(method: str, payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        nonlocal sends
        if method != "sendMessage":
            return take(method, payload)
        sends += 1
        if sends != 2 or len(lives) > KILLS:
            return take(method, payload)
        if len(lives) % 2:
            take(method, payload)
        lives[-1].kill()
        return 0, {}

    monkeypatch.setattr(api, "take", killing)
    for number in range(QUESTIONS):
        api.say(f"question {number}")
    for _ in range(KILLS):
        sends = 0
        with process(answering, api.url, folder, recalls=recalls) as running:
            lives.append(running)
            assert await asyncio.to_thread(running.wait, 120) == -9
    with process(answering, api.url, folder, recalls=recalls) as running:
        lives.append(running)
        await until(api, lambda: len(set(api.texts())) == QUESTIONS)
        running.terminate()
        assert await asyncio.to_thread(running.wait, 60) == 0
    async with History(folder / "bot.outbox.db", relay=False) as history:
        return [one.text for one in await history.messages(CHAT, last=None) if one.role == "assistant"]


async def test_no_answer_is_recorded_twice_whenever_the_bot_is_killed(
    api: BotApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = await recorded_answers(api, tmp_path, monkeypatch, recalls=True)
    assert Counter(answers) == Counter(f"answer to question {number}" for number in range(QUESTIONS))


async def test_a_bot_that_forgets_what_it_had_sent_records_it_twice(
    api: BotApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same kills."""
    answers = await recorded_answers(api, tmp_path, monkeypatch, recalls=False)
    assert set(answers) == {f"answer to question {number}" for number in range(QUESTIONS)}
    assert len(answers) > QUESTIONS
