"""The bell: who waits hears it, and no ring is lost between a look and a wait."""

from __future__ import annotations

import asyncio

import pytest

from letopis.outbox.bell import Bell


async def test_everybody_who_waits_hears_a_ring() -> None:
    bell = Bell()
    waiting = [asyncio.ensure_future(bell.wait()) for _ in range(3)]
    await asyncio.sleep(0)

    bell.ring()

    await asyncio.wait_for(asyncio.gather(*waiting), 1)
    assert bell.rings == 1


async def test_a_ring_between_look_and_wait_is_not_lost() -> None:
    bell = Bell()
    rings = bell.rings
    bell.ring()

    await asyncio.wait_for(bell.wait(rings), 1)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bell.wait(bell.rings), 0.01)


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    bell = Bell()
    task = asyncio.ensure_future(bell.wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    bell.ring()

    assert not bell._waiting
