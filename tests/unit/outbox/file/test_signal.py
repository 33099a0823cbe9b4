"""Waiters are woken, and no notification is lost between a check and a wait."""

from __future__ import annotations

import asyncio

import pytest

from letopis.outbox.file.change_watcher import Signal


async def test_everybody_who_waits_hears_a_ring() -> None:
    signal = Signal()
    waiting = [asyncio.ensure_future(signal.wait()) for _ in range(3)]
    await asyncio.sleep(0)

    signal.notify()

    await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert signal.generation == 1


async def test_a_ring_between_look_and_wait_is_not_lost() -> None:
    signal = Signal()
    seen = signal.generation
    signal.notify()

    await asyncio.wait_for(signal.wait(after=seen), 60)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(signal.wait(after=signal.generation), 0.01)


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    signal = Signal()
    task = asyncio.ensure_future(signal.wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    signal.notify()

    assert not signal._waiters
