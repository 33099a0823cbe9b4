"""Count the calls and modules that a message passes, exactly, whatever the load: so that ways stay short."""

import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import letopis
from letopis.outbox import History, Relay
from letopis.store import Message

PLACES = tuple(f"{path}{os.sep}" for path in letopis.__path__)
"""Where our modules are; the folder of a checkout may be called letopis, too."""
RUNS = 3
"""Each trip is made several times, and the shortest counts: a timer of the loop may fire in one."""


@contextmanager
def profiled() -> Iterator[list[str]]:
    """Give the modules of all calls of functions of ours, in all threads that are started in the block."""
    calls: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PLACES):
            calls.append(frame.f_code.co_filename)

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield calls
    finally:
        threading.setprofile(None)
        sys.setprofile(before)


async def calls_of(trip: Callable[[], Awaitable[object]], calls: list[str]) -> list[str]:
    calls.clear()
    await trip()
    return [*calls]


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


TRIPS = {append: (43, 20), deliver: (327, 50), read_settled: (94, 24), read_pending: (164, 33)}
"""Ways through the code, by what prepares them and returns what is counted; the most calls and modules of each."""


@pytest.mark.parametrize("prepare", TRIPS)
async def test_a_trip_is_no_longer_than_it_was(prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)  # without spans
    most, modules = TRIPS[prepare]
    with profiled() as calls:
        async with History(tmp_path / "bot.outbox.db", store=tmp_path / "h.db", relay=False, watch=False) as history:
            relay = Relay(history.outbox, history.store)
            for number in range(3 * RUNS):  # everything is used before it is counted
                await history.append(f"chat-{number % RUNS}", Message.user(f"m{number}"), owner=42)
                await relay.drain()
                await history.messages(f"chat-{number % RUNS}", last=50)
            trips = [await calls_of(await prepare(history, relay, f"chat-{run}"), calls) for run in range(RUNS)]
    shortest = min(trips, key=len)
    assert len(shortest) > most // 2, "a trip that is half as long needs a lower number, or was not counted"
    assert len(shortest) <= most, shortest
    assert len(set(shortest)) <= modules, sorted(set(shortest))
