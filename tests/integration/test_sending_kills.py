"""A bot is killed between append, sending and confirmation: each reply reaches the platform, and few reach it twice.

LETOPIS_SENDING_KILLS sets the number of kills.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest

from letopis.outbox import History
from tests.support.sending import FilePlatform, answer, sender_to

KILLS: Final = int(os.environ.get("LETOPIS_SENDING_KILLS", "20"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 15 * KILLS)]
SEED: Final = 20261129

Context = ForkServerContext | SpawnContext


@pytest.fixture(scope="module")
def context(fork_server: Callable[[str], Context]) -> Context:
    return fork_server("tests.support.sending")


@dataclass(slots=True)
class Lives:
    """The lives of one bot.

    :ivar windows: how often a kill fell between the platform's acceptance of a reply and its confirmation, by key.
    :ivar unsent: how many kills left a reply that the platform had not accepted.
    """

    outbox: Path
    platform: FilePlatform
    windows: Counter[str] = field(default_factory=Counter)
    unsent: int = 0

    def live(self, context: Context, accepted: Path, *, seed: int, steps: int, seconds: float, again: bool) -> None:
        """Let the bot do some steps, kill it, and count what it left."""
        ours, theirs = context.Pipe(duplex=False)
        given = {"seed": seed, "again": again}
        process = context.Process(
            target=answer, args=(str(self.outbox), str(accepted), theirs), kwargs=given, daemon=True
        )
        process.start()
        theirs.close()
        with ours:
            for _ in range(steps):
                assert ours.poll(60), "the bot does nothing"
                ours.recv()
            process.join(seconds)
            process.kill()
            process.join()
        assert process.exitcode in (-9, 1), process.exitcode  # 1: Windows
        with closing(sqlite3.connect(self.outbox)) as file:
            rows = file.execute("SELECT event_id FROM letopis_outbox_unconfirmed").fetchall()
        accepted_keys = set(self.platform.accepted)
        left = [str(UUID(bytes=row[0])) for row in rows]
        self.windows.update(key for key in left if key in accepted_keys)
        self.unsent += any(key not in accepted_keys for key in left)


async def killed(context: Context, folder: Path, *, kills: int, again: bool) -> tuple[Lives, dict[str, list[str]]]:
    """Kill a bot at random moments, end in peace, and return what it appended in each chat, in order."""
    accepted, chance = folder / "platform", random.Random(SEED)
    lives = Lives(folder / "bot.outbox.db", FilePlatform(accepted))
    for seed in range(kills):
        steps, seconds = chance.randrange(1, 24), chance.uniform(0, 0.005)
        await asyncio.to_thread(lives.live, context, accepted, seed=seed, steps=steps, seconds=seconds, again=again)

    async def pause() -> None:
        await asyncio.sleep(0)

    sender = sender_to(lives.platform, pause) if again else None
    async with History(lives.outbox, relay=False, sender=sender) as history:
        if again:
            async with asyncio.timeout(120):
                while await history.unconfirmed():  # noqa: ASYNC110 - nothing rings
                    await asyncio.sleep(0.01)
        messages = {chat: await history.messages(chat, last=None) for chat in ("live", "left")}
    return lives, {chat: [str(message.event_id) for message in page] for chat, page in messages.items()}


async def test_every_reply_is_sent_and_those_of_a_conversation_in_order(context: Context, tmp_path: Path) -> None:
    lives, appended = await killed(context, tmp_path, kills=KILLS, again=True)
    accepted = lives.platform.accepted
    times = Counter(accepted)
    keys = {key for chat in appended.values() for key in chat}
    doubles = {key: count - 1 for key, count in times.items() if count > 1}
    print(
        f"\n{KILLS} kills, {lives.unsent} of them with a reply that was not sent; {len(keys)} replies,"
        f" {len(keys - times.keys())} unsent, {sum(doubles.values())} doubles in {lives.windows.total()} windows"
    )

    assert keys - times.keys() == set()
    assert times.keys() - keys == set()
    for key, count in doubles.items():
        assert count <= lives.windows[key]
    left = set(appended["left"])
    assert [key for key in dict.fromkeys(accepted) if key in left] == appended["left"]
    # Otherwise it would have shown nothing.
    assert lives.unsent > KILLS // 4
    assert len(keys) > KILLS


async def test_without_a_sender_replies_stay_unsent(context: Context, tmp_path: Path) -> None:
    """The control: the same kills."""
    lives, appended = await killed(context, tmp_path, kills=5, again=False)

    assert lives.unsent > 0
    assert {key for chat in appended.values() for key in chat} - set(lives.platform.accepted)
