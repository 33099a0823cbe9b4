"""Follow the whole log from another process, which is killed: nothing is left out, and redactions come too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from letopis.outbox import History
from letopis.store import ConversationStore, InvalidInput, Message
from tests.support.sayings import NewStore

SAID = 40


class Following:
    """``letopis follow --json`` in a process of its own."""

    def __init__(self, *arguments: str, url: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "letopis.outbox.cli", "follow", "--json", "--store", url, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            env={**os.environ, "LETOPIS_CONFIG": ""},
        )
        self.lines: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith(b"\n"):
                break  # killed within a line
            with self._changed:
                self.lines.append(orjson.loads(line))
                self._changed.notify_all()

    def wait_for(self, what: Callable[[list[dict[str, Any]]], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: what(self.lines), timeout=120), self.lines

    def end(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait(timeout=60)
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def following(*arguments: str, url: str, folder: Path) -> Iterator[Following]:
    process = Following(*arguments, url=url, folder=folder)
    try:
        yield process
    finally:
        process.end(signal.SIGKILL)


def _ids(lines: list[dict[str, Any]]) -> list[str]:
    return [line["data"]["message_id"] for line in lines if line["type"] == "message.appended"]


async def _say(folder: Path, url: str, start: int, end: int, *, chats: int = 5) -> None:
    async with History(folder / "bot.outbox.db", store=url) as history:
        for number in range(start, end):
            await history.append(f"chat-{number % chats}", Message.user(f"word {number}", id=f"m-{number}"))
        assert await history.drained(timeout=60)


async def test_follower_that_is_killed_leaves_nothing_out(store_url: str, tmp_path: Path) -> None:
    everything = {f"m-{number}" for number in range(2 * SAID)}
    await _say(tmp_path, store_url, 0, SAID)
    with following("--from", "warehouse", url=store_url, folder=tmp_path) as first:
        first.wait_for(lambda lines: len(_ids(lines)) >= SAID // 2)
        first.end(signal.SIGKILL)
    await _say(tmp_path, store_url, SAID, 2 * SAID)
    with following("--from", "warehouse", url=store_url, folder=tmp_path) as second:
        # The last one said need not be the last one delivered: chats have no order between them.
        second.wait_for(lambda lines: {*_ids(first.lines), *_ids(lines)} >= everything)

    read = first.lines + second.lines
    assert set(_ids(read)) == everything
    for lines in (first.lines, second.lines):
        assert len(set(_ids(lines))) == len(_ids(lines))
        for chat in range(5):
            versions = [line["version"] for line in lines if line["conversation_id"] == f"chat-{chat}"]
            assert versions == sorted(versions)
    async with ConversationStore.open(store_url) as store:
        follower = store.follower("slow", batch=10)
        batches = follower.batches()
        for _ in range(2):
            await anext(batches)
        await batches.aclose()
        assert (await store.outbox_access.lags())["follower.slow"] == await follower.behind() > 0


async def test_follower_is_told_of_a_redaction(store_url: str, tmp_path: Path) -> None:
    await _say(tmp_path, store_url, 0, 1)
    with following("--from", "copy", url=store_url, folder=tmp_path) as process:
        process.wait_for(lambda lines: "m-0" in _ids(lines))
        async with History(tmp_path / "bot.outbox.db", store=store_url) as history:
            await history.chat("chat-0").redact("m-0")
            assert await history.drained(timeout=60)
        process.wait_for(lambda lines: lines[-1]["type"] == "message.redacted")
    with following("--from", "later", url=store_url, folder=tmp_path) as late:
        late.wait_for(lambda lines: bool(lines) and lines[-1]["type"] == "message.redacted")

    assert process.lines[-1]["data"]["message_id"] == "m-0"
    (said,) = (line for line in late.lines if line["type"] == "message.appended")
    assert said["redacted"]
    assert not said["data"].get("content")


async def test_follower_reads_every_partition_and_counts_what_is_left(new_store_url: NewStore, tmp_path: Path) -> None:
    url = new_store_url("sqlite")
    async with ConversationStore.open(url, partitions=4) as store:
        await _say(tmp_path, url, 0, SAID, chats=20)
        follower = store.follower("all", batch=3)
        whole = await follower.behind()
        batches = follower.batches()
        read = [event async for events in _until(batches, whole) for event in events]
        left = await follower.behind()

        assert {event.partition for event in read} == {0, 1, 2, 3}
        assert whole == len(read) == len({event.event_id for event in read})
        assert 0 < left <= 3  # the last batch is not done: nobody asked for the next one
        assert (await store.outbox_access.lags())["follower.all"] == left


async def test_second_process_under_a_name_is_refused(new_store_url: NewStore, tmp_path: Path) -> None:
    url = new_store_url("sqlite")
    await _say(tmp_path, url, 0, 4)
    async with ConversationStore.open(url) as store:
        first, second = store.follower("one", batch=2).batches(), store.follower("one", batch=2).batches()
        await anext(first)
        await anext(second)
        await anext(first)

        with pytest.raises(InvalidInput, match="another process"):
            await anext(second)


@pytest.mark.parametrize("name", ["", "Upper", "two words", "-x", "x" * 64])
async def test_name_of_a_follower_is_checked(name: str, new_store_url: NewStore) -> None:
    async with ConversationStore.open(new_store_url("sqlite")) as store:
        with pytest.raises(InvalidInput):
            store.follower(name)


async def _until(batches: Any, count: int) -> Any:
    read = 0
    async for events in batches:
        yield events
        read += len(events)
        if read >= count:
            return
