"""A block that another loop or thread is in ends after the calls inside it, whenever they end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import Mock

import pytest

from letopis.outbox.concurrency.home_loop import HomeBlock


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("turns", range(4))
async def test_a_call_may_end_just_as_its_block_is_left(turns: int) -> None:
    """After Ctrl-C, the interrupted call and its block end in neighbouring turns of the loop."""
    block: HomeBlock[None] = HomeBlock(Mock(), _nothing, holds=False)
    leave = asyncio.Event()

    async def call() -> None:
        await leave.wait()
        for _ in range(turns):
            await asyncio.sleep(0)

    life = asyncio.create_task(block._live())
    await asyncio.sleep(0)
    inside = asyncio.create_task(block.run(call))
    await asyncio.sleep(0)
    block._leave(None)
    leave.set()

    assert await life is None
    assert inside.done()
