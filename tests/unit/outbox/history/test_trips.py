"""Count the calls and modules that a message passes, exactly, whatever the load: so that ways stay short."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from letopis.outbox import History, Relay
from letopis.store import Message

MARK = f"{os.sep}letopis{os.sep}"
RUNS = 3
"""Each trip is made several times, and the shortest counts: a timer of the loop may fire in one."""


class Profile:
    """The calls of functions of ours in all threads that were started in its block."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.counting = False

    def __enter__(self) -> Profile:
        self._before = sys.getprofile()
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        threading.setprofile(None)
        sys.setprofile(self._before)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if self.counting and event == "call" and MARK in frame.f_code.co_filename:
            self.calls.append(frame.f_code.co_filename.rsplit(MARK, 1)[1])

    async def of(self, trip: Callable[[], Awaitable[object]]) -> list[str]:
        """Return the module of each call of a trip."""
        self.calls, self.counting = [], True
        try:
            await trip()
        finally:
            self.counting = False
        return self.calls


async def append(history: History, _: Relay, chat: str) -> Callable[[], Awaitable[object]]:
    await history.append(chat, Message.user("before"), owner=42)
    message = Message.user("What is tea?")
    return lambda: history.append(chat, message, owner=42)


async def deliver(history: History, relay: Relay, chat: str) -> Callable[[], Awaitable[object]]:
    await history.append(chat, Message.user("What is tea?"), owner=42)
    return relay.drain_once


async def read_settled(history: History, _: Relay, chat: str) -> Callable[[], Awaitable[object]]:
    await history.messages(chat, last=50)
    return lambda: history.messages(chat, last=50)


async def read_pending(history: History, _: Relay, chat: str) -> Callable[[], Awaitable[object]]:
    await history.append(chat, Message.user("pending"), owner=42)
    return lambda: history.messages(chat, last=50)


TRIPS = {append: (43, 20), deliver: (318, 50), read_settled: (94, 24), read_pending: (164, 33)}
"""Ways through the code, by what prepares them and returns what is counted; the most calls and modules of each."""


@asynccontextmanager
async def warm(folder: Path) -> AsyncIterator[tuple[Profile, History, Relay]]:
    """An embedded SQLite store, with everything used once."""
    with Profile() as profile:
        async with History(folder / "bot.outbox.db", store=folder / "h.db", relay=False, watch=False) as history:
            relay = Relay(history.outbox, history.store)
            for number in range(3 * RUNS):
                chat = f"chat-{number % RUNS}"
                await history.append(chat, Message.user(f"m{number}"), owner=42)
                await relay.drain()
                await history.messages(chat, last=50)
            yield profile, history, relay


@pytest.mark.parametrize("prepare", TRIPS)
async def test_a_trip_is_no_longer_than_it_was(prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)  # without spans
    calls, modules = TRIPS[prepare]
    async with warm(tmp_path) as (profile, history, relay):
        trips = [await profile.of(await prepare(history, relay, f"chat-{run}")) for run in range(RUNS)]
    shortest = min(trips, key=len)
    assert len(shortest) > calls // 2, "a trip that is half as long needs a lower number, or was not counted"
    assert len(shortest) <= calls, shortest
    assert len(set(shortest)) <= modules, sorted(set(shortest))
