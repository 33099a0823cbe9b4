"""Follow the whole log from another process, which is killed: nothing is left out, and redactions come too."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import orjson
import pytest

from letopis.outbox import History
from letopis.store import ConversationStore, InvalidInput, Message, RecordedEvent
from letopis.store.projections.base import read_lags
from tests.support.sayings import NewStore, present

SAID = 40


class Following:
    """``letopis follow --json`` in a process of its own, which is killed in the end."""

    def __init__(self, *arguments: str, url: str, folder: Path) -> None:
        words = (sys.executable, "-m", "letopis.ops.cli", "follow", "--json", "--store", url, *arguments)
        environment = {**os.environ, "LETOPIS_CONFIG": ""}
        self._start = asyncio.create_subprocess_exec(*words, cwd=folder, stdout=PIPE, env=environment)
        self.lines: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        self._process = await self._start
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        self._take(await present(self._process.stdout).read())
        await self._process.wait()

    def _take(self, output: bytes) -> None:
        whole, _, _ = output.rpartition(b"\n")  # it may be killed within a line
        self.lines += map(orjson.loads, whole.splitlines())

    async def wait_for(self, what: Callable[[list[dict[str, Any]]], bool]) -> None:
        async with asyncio.timeout(120):
            while not what(self.lines):
                self._take(line := await present(self._process.stdout).readline())
                assert line, "it ended by itself"


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
    async with Following("--from", "warehouse", url=store_url, folder=tmp_path) as first:
        await first.wait_for(lambda lines: len(_ids(lines)) >= SAID // 2)
    await _say(tmp_path, store_url, SAID, 2 * SAID)
    async with Following("--from", "warehouse", url=store_url, folder=tmp_path) as second:
        # The last one said need not be the last one delivered: chats have no order between them.
        await second.wait_for(lambda lines: {*_ids(first.lines), *_ids(lines)} >= everything)

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
        assert (await store.runtime.connected(read_lags))["follower.slow"] == await follower.behind() > 0


async def test_follower_is_told_of_a_redaction(store_url: str, tmp_path: Path) -> None:
    await _say(tmp_path, store_url, 0, 1)
    async with Following("--from", "copy", url=store_url, folder=tmp_path) as process:
        await process.wait_for(lambda lines: "m-0" in _ids(lines))
        async with History(tmp_path / "bot.outbox.db", store=store_url) as history:
            await history.chat("chat-0").redact("m-0")
            assert await history.drained(timeout=60)
        await process.wait_for(lambda lines: lines[-1]["type"] == "message.redacted")
    async with Following("--from", "later", url=store_url, folder=tmp_path) as late:
        await late.wait_for(lambda lines: bool(lines) and lines[-1]["type"] == "message.redacted")

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
        read: list[RecordedEvent] = []
        async for events in follower.batches():
            read += events
            if len(read) >= whole:
                break
        left = await follower.behind()

        assert {event.partition for event in read} == {0, 1, 2, 3}
        assert whole == len(read) == len({event.event_id for event in read})
        assert 0 < left <= 3  # the last batch is not done: nobody asked for the next one
        assert (await store.runtime.connected(read_lags))["follower.all"] == left


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


def test_name_of_a_follower_is_checked(tmp_path: Path) -> None:
    for name in ("", "Upper", "two words", "-x", "x" * 64):
        with pytest.raises(InvalidInput):
            ConversationStore(tmp_path / "history.db").follower(name)
