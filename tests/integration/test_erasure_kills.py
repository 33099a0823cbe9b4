"""Erasures and retention whose processes are killed at any step are completed by doing it again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from letopis.outbox import History, Relay, erase_owner
from letopis.outbox.diagnostics.integrity import find_problems
from letopis.outbox.event_log import erasures
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ConversationStore, Message
from letopis.store.erasures import ErasureRegister
from letopis.store.model.events import utc_now
from tests.conformance.tables import stored_text
from tests.conformance.test_trims import assert_agrees
from tests.integration.test_erasure_bytes import TOKEN, assert_gone_soon
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


# --- Retention: a relay that is killed in each step leaves the rest to the next ---


RELAY = """
import asyncio, os, signal, sys
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay import content_retention, relay
from letopis.outbox.event_log import acknowledge, effects
from letopis.store import ContentRetention
from letopis.store.conversation_store import ConversationStore
from letopis.store.maintenance import retention, task_steps
from letopis.store.outbox_access import OutboxAccess
from letopis.store.write import redaction, row_writer

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def after(owner, name):
    inner = getattr(owner, name)
    async def work(*args, **kwargs):
        result = await inner(*args, **kwargs)
        if name != "due_content" or result.due:
            die()
        return result
    setattr(owner, name, work)

redaction.MAX_ROWS_PER_TRANSACTION = row_writer.MAX_ROWS_PER_TRANSACTION = 3
task_steps.PIECE_VERSIONS, task_steps.STEP_SECONDS = 4, 0.0
where = sys.argv[3]
if where == "found":
    after(OutboxAccess, "due_content")
elif where == "appended":
    after(content_retention, "append_trims")
elif where == "applying":
    after(redaction.Eraser, "trim")
elif where == "applied":
    after(ConversationStore, "apply")
elif where == "erasing the tail":
    acknowledge.erase_delivered = lambda *args: die()
elif where == "in a step":
    after(redaction.Eraser, "strip_some")
elif where == "after a step":
    after(task_steps.TaskSteps, "step")
elif where == "places kept":
    after(OutboxAccess, "keep_places")

async def main(outbox, store):
    file = await OutboxFile.open(outbox)
    async with ConversationStore.open(store) as history:
        content = ContentRetention(max_age_days=30)
        await relay.Relay(file, history, retention=content).drain()
    await file.close()

asyncio.run(main(*sys.argv[1:3]))
"""
STEPS = ("found", "appended", "applying", "applied", "erasing the tail", "in a step", "after a step", "places kept")
OLD, YOUNG = TOKEN, "young-t0ken"


async def run_relay(outbox: Path, store_url: str, where: str) -> int:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", RELAY, str(outbox), store_url, where)
    return await process.wait()


@pytest.mark.slow
async def test_a_kill_in_each_step_is_resumed(store_url: str, tmp_path: Path) -> None:
    path = tmp_path / "bot.outbox.db"
    for days, text, count in ((40, OLD, 12), (1, YOUNG, 5)):

        def now(days: int = days) -> object:
            return utc_now() - timedelta(days=days)

        async with (
            ConversationStore.open(store_url, now=now) as store,
            History(path, store=store, relay=False, watch=False, now=now) as history,
        ):
            for name in ("a", "b"):
                for number in range(count):
                    await history.append(name, Message.user(f"{text} {number}", id=f"{name}-{days}-{number}"))
            await Relay(history.outbox, store, now=now).drain()
            before = {name: (await store.messages(name)).items[12:] for name in ("a", "b")}

    reached = {where: await run_relay(path, store_url, where) for where in STEPS}
    assert reached == dict.fromkeys(STEPS, -signal.SIGKILL)
    for _ in range(10):  # a server may hold the locks of a killed client for a moment, so that a step fails
        assert await run_relay(path, store_url, "nowhere") == 0
        async with ConversationStore.open(store_url) as store:
            if not (await store.pending_tasks()).tasks:
                break

    async with ConversationStore.open(store_url) as store:
        for name in ("a", "b"):
            shown = (await store.messages(name)).items
            assert [message.redacted for message in shown] == [True] * 12 + [False] * 5
            assert shown[12:] == before[name]
        held = await stored_text(store)
        assert OLD not in held and held.count(YOUNG) == 10
        assert len(await store.search("young")) == 10 and len(await store.search("old")) == 0
        assert (await store.statistics()).questions == 34
        await assert_agrees(store, "a", "b")
    files = [path] if "sqlite" not in store_url else [path, Path(store_url.removeprefix("sqlite:///"))]
    await assert_gone_soon(*files)
