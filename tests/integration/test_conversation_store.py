"""A history store that is cancelled, unreachable or closed leaves nothing behind and says what is wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from letopis.store import ConfigurationError, ConversationStore, FaultClass, Message, StoreFault, _components
from tests.support.sayings import new_outbox


@pytest.fixture
async def filled(store_url: str) -> AsyncIterator[ConversationStore]:
    async with ConversationStore.open(store_url, migrate=True, pool_size=3) as store:
        await new_outbox(store, "chat-1", *(Message.user(str(number)) for number in range(500)))
        yield store


def open_files() -> int:
    descriptors = Path("/proc/self/fd")
    return len(list(descriptors.iterdir())) if descriptors.exists() else 0


async def test_reads_that_are_cancelled_leave_no_connection_task_or_file(filled: ConversationStore) -> None:
    chance = random.Random(5)
    await asyncio.gather(*(filled.messages("chat-1") for _ in range(3)))  # the pool is as large as it gets
    files, tasks = open_files(), len(asyncio.all_tasks())
    for number in range(60):
        moment = chance.random() * 0.01
        if number % 2:
            with anyio.move_on_after(moment):
                await filled.messages("chat-1")
        else:
            task = asyncio.ensure_future(filled.messages("chat-1"))
            await asyncio.sleep(moment)
            task.cancel()
            await asyncio.wait([task])
    for _ in range(100):
        if len(asyncio.all_tasks()) <= tasks and open_files() <= files:
            break
        await asyncio.sleep(0.02)

    assert len(asyncio.all_tasks()) <= tasks
    assert open_files() <= files
    assert len(await filled.messages("chat-1")) == 500


async def test_a_file_that_is_no_database_is_never_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("These are my notes, and they are not a database at all.\n" * 100)
    before = path.read_bytes()
    store = ConversationStore(path)

    with pytest.raises(StoreFault) as caught:
        await store.prepare()

    assert caught.value.fault_class is FaultClass.MISCONFIGURED
    assert "my notes" not in str(caught.value)
    assert path.read_bytes() == before
    await store.close()


@pytest.mark.parametrize("partitions", [0, -1, 1025])
def test_a_number_of_partitions_that_is_none_is_refused(partitions: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="partitions"):
        ConversationStore(tmp_path / "history.db", partitions=partitions)


async def test_preparing_at_once_prepares_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, prepared = _components.prepare_schema, list[object]()

    async def counted(*given: Any, **named: Any) -> int:
        prepared.append(given)
        return await real(*given, **named)

    monkeypatch.setattr(_components, "prepare_schema", counted)
    store = ConversationStore(tmp_path / "history.db")
    await asyncio.gather(*(store.prepare() for _ in range(8)), *(store.head() for _ in range(8)))
    await store.close()
    assert len(prepared) == 1
