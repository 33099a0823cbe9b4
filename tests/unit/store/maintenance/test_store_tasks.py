"""Long work in the store as a relay sees it: a step between two deliveries, told in the file, with signs of life."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from letopis import ConversationStore, History, Message
from letopis.outbox.operations.status import read_status
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.read.task_marks import PendingTasks
from letopis.store.write.erasing import Eraser
from tests.support.relays import sql, until
from tests.support.sayings import occurs


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("write.loading", "write.erasing"):
        monkeypatch.setattr(f"letopis.store.{module}.MAX_ROWS_PER_TRANSACTION", 3)
    monkeypatch.setattr("letopis.store.maintenance.task_steps.STEP_SECONDS", 0.0)
    monkeypatch.setattr("letopis.store.maintenance.task_steps.PIECE_VERSIONS", 2)


async def told(history: History) -> tuple[int, int]:
    found = await history.outbox.read(lambda connection: read_status(connection, now_us=0))
    assert found.to_json()["store_tasks"] == found.store_tasks
    return found.store_tasks, found.store_rows


async def say(history: History, conversation_id: str, number: int = 1) -> None:
    said = await history.append(conversation_id, *(Message.user(f"words of {one}") for one in range(number)))
    assert await said.saved(timeout=20)


async def delete(history: History, conversation_id: str) -> None:
    assert await (await history.chat(conversation_id).delete()).saved(timeout=20)


async def test_a_relay_carries_out_what_a_deletion_left_and_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("letopis.outbox.relay.lease.HEARTBEAT_SECONDS", 0.0)  # each step is reported
    async with (
        ConversationStore.open(tmp_path / "history.db") as store,
        History(tmp_path / "bot.outbox.db", store=store, watch=False) as history,
    ):
        await say(history, "long", 40)
        await delete(history, "long")
        assert (await history.messages("long", last=None)).items == ()
        seen = set()
        await say(history, "other")
        async with asyncio.timeout(60):
            while len(seen) < 3 or await store.pending_tasks() != PendingTasks() or await told(history) != (0, 0):
                seen.add(await told(history))
                await asyncio.sleep(0.005)
        assert any(tasks for tasks, _ in seen)
        assert b"words of 30" not in (tmp_path / "history.db").read_bytes()
    assert any("has carried out all long rewinds and deletions" in one for one in caplog.messages)


async def test_a_task_whose_step_is_refused_stays_in_the_status_until_it_is_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.outbox.relay.lease.HEARTBEAT_SECONDS", 0.0)

    async def refused(*_: object, **__: object) -> bool:
        raise StoreFault(fault_class=FaultClass.POISON, code="22021", reason="refused")

    async with ConversationStore.open(tmp_path / "history.db") as store:
        with monkeypatch.context() as patch:
            patch.setattr(Eraser, "erase_released", refused)
            async with History(tmp_path / "bot.outbox.db", store=store, watch=False) as history:
                await history.append("parent", Message.user("the secret"), owner="42")
                await history.chat("parent").fork("fork")
                await history.chat("parent").delete()
                await delete(history, "fork")
                await until(lambda: tells_of_tasks(history))
                await say(history, "other")
                assert await tells_of_tasks(history)
        assert occurs("the secret", tmp_path / "history.db")

        async with History(tmp_path / "bot.outbox.db", store=store, watch=False) as history:
            await until(lambda: has_no_tasks(store, history))
    assert not occurs("the secret", tmp_path / "history.db")


async def tells_of_tasks(history: History) -> bool:
    return (await told(history))[0] > 0


async def has_no_tasks(store: ConversationStore, history: History) -> bool:
    return await store.pending_tasks() == PendingTasks() and await told(history) == (0, 0)


async def test_a_relay_gives_signs_of_life_while_the_store_works_on_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("letopis.outbox.relay.lease.HEARTBEAT_SECONDS", 0.1)
    apply = ConversationStore.apply

    async def slow(self: ConversationStore, *given: Any) -> Any:
        await asyncio.sleep(1.0)
        return await apply(self, *given)

    monkeypatch.setattr(ConversationStore, "apply", slow)
    async with History(tmp_path / "bot.outbox.db", watch=False) as history:
        receipt = await history.append("chat", Message.user("hi"))
        beats = set()
        while not await receipt.saved(timeout=0.05):
            beats.update(await sql(history.outbox, "SELECT heartbeat_at FROM letopis_outbox_relay"))
    assert len(beats) >= 4
    assert any("has worked on a batch for" in one for one in caplog.messages)
