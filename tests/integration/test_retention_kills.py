"""A relay process that is killed in each step of retention leaves the rest to the next, on each kind of store."""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from letopis.outbox import History, Relay
from letopis.store import ConversationStore, Message
from letopis.store.model.events import utc_now
from tests.conformance.tables import stored_text
from tests.conformance.test_trims import assert_agrees
from tests.integration.test_erasure_bytes import TOKEN, assert_gone_soon

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
