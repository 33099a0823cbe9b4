"""An owner's erasure whose processes are killed at any step is completed by doing it again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from letopis.outbox import History, erase_owner
from letopis.outbox.diagnostics.integrity import find_problems
from letopis.outbox.event_log import erasures
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.store import ConversationStore, Message
from letopis.store.erasures import ErasureRegister
from tests.support.child import command

pytestmark = pytest.mark.slow

WORDS: Final = "gheldrimmer"
POINTS: Final = ("recorded", "appended", "begun", "halfway", "carried out", "acknowledged", "noted")


async def speak(path: Path, store: str, chat: str, *texts: str, deliver: bool) -> None:
    async with History(path, store=store, relay=False, watch=False) as history:
        for text in texts:
            await history.append(chat, Message.user(text), owner="42")
        if deliver:
            await Relay(history.outbox, history.store).drain()


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(point: str) -> None:
    """Have this process killed at a step of an erasure; of those in the file, at one in the outbox ``two``."""
    erasures.MAX_ERASED_PER_TRANSACTION = 2  # type: ignore[misc]
    register, write, apply = ErasureRegister.register, OutboxFile.write, ConversationStore.apply
    steps = {"begun": ("carry_out_step", 1), "halfway": ("carry_out_step", 2), "noted": ("note_acknowledged", 1)}
    steps["carried out"] = ("end_erasures", 1)
    seen: list[str] = []

    async def registering(*arguments: Any, **options: Any) -> Any:
        erasure = await register(*arguments, **options)
        if point == "recorded":
            end()
        return erasure

    def writing(self: OutboxFile, fn: Callable[..., Any]) -> Any:
        async def then_end() -> Any:
            result = await write(self, fn)
            name = getattr(getattr(fn, "func", fn), "__name__", "")
            if self.path.name.startswith("two"):
                seen.append(name)
                if point in steps and seen.count(steps[point][0]) == steps[point][1]:
                    end()
            return result

        return asyncio.ensure_future(then_end())

    async def applying(self: ConversationStore, origin: Any, batch: Any) -> Any:
        result = await apply(self, origin, batch)
        if point == "acknowledged" and origin.name.startswith("two") and not batch:
            end()
        return result

    ErasureRegister.register = registering  # type: ignore[method-assign]
    OutboxFile.write = writing  # type: ignore[method-assign]
    ConversationStore.apply = applying  # type: ignore[method-assign]


async def erase_everywhere(folder: str, store: str, how: str, point: str) -> int:
    """Erase through one outbox, then let both deliver, unless killed before."""
    if point:
        kill_at(point)
    async with History(Path(folder, "one.outbox.db"), store=store, relay=False, watch=False) as one:
        await erase_owner(one, "42", how=how, reason="asked")  # type: ignore[arg-type]
        if point == "appended":
            end()
        await Relay(one.outbox, one.store).drain()
    async with History(Path(folder, "two.outbox.db"), store=store, relay=False, watch=False) as two:
        await Relay(two.outbox, two.store).drain()
        if point:
            end()
    return 0


@pytest.mark.parametrize("how", ["reset", "delete"])
@pytest.mark.parametrize("point", POINTS)
async def test_killed_erasure_is_completed_by_repeating_it(
    tmp_path: Path, store_url: str, point: str, how: str
) -> None:
    async with ConversationStore.open(store_url, migrate=True):
        pass
    one, two = tmp_path / "one.outbox.db", tmp_path / "two.outbox.db"
    await speak(one, store_url, "shared", WORDS, deliver=True)
    await speak(two, store_url, "shared", WORDS, deliver=True)
    await speak(two, store_url, "shared", *[WORDS] * 3, deliver=False)
    await speak(two, store_url, "new", *[WORDS] * 3, deliver=False)

    killed = subprocess.run(command(erase_everywhere, str(tmp_path), store_url, how, point), check=False, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    if point == "halfway" and how == "reset":  # how far it reaches is settled, so this is new
        await speak(two, store_url, "third", "new words", deliver=False)
    again = how if point == "recorded" else ""  # the only step after which the command had appended nothing
    done = subprocess.run(command(resume, str(tmp_path), store_url, again), check=False, timeout=300)

    assert done.returncode == 0
    for path in (one, two):
        assert list(find_problems(path)) == []
        assert all(WORDS.encode() not in file.read_bytes() for file in tmp_path.glob(f"{path.name}*"))
    async with ConversationStore.open(store_url) as store:
        assert await store.erasures.unacknowledged() == []
        for chat in ("shared", "new"):
            assert all(message.text == "" for message in await store.messages(chat, every=True))
        if point == "halfway" and how == "reset":
            assert [message.text for message in await store.messages("third")] == ["new words"]


async def resume(folder: str, store: str, again: str) -> int:
    """Deliver from both, as restarted relays do; erase again what a killed command had not appended."""
    for name in ("two", "one", "two"):
        async with History(Path(folder, f"{name}.outbox.db"), store=store, relay=False, watch=False) as history:
            if again and name == "one":
                await erase_owner(history, "42", how=again, reason="asked")  # type: ignore[arg-type]
            await Relay(history.outbox, history.store).drain()
    return 0
