"""The turn: one writer at a time, first come, first served, and never lost."""

from __future__ import annotations

import asyncio
import random

from letopis.outbox.turn import Turn


async def test_turns_are_taken_in_the_order_of_asking() -> None:
    turn = Turn()
    order: list[int] = []

    async def write(number: int) -> None:
        await turn.take()
        order.append(number)
        await asyncio.sleep(0)
        turn.give()

    await asyncio.gather(*(write(number) for number in range(20)))

    assert order == list(range(20))
    assert not turn.taken


async def test_a_free_turn_begins_at_once() -> None:
    turn = Turn()
    begun = False

    def begin() -> bool:
        nonlocal begun
        begun = True
        return True

    turn.ask(begin)

    assert begun
    assert turn.taken


async def test_cancelled_waits_pass_the_turn_on() -> None:
    """Whenever a wait is cancelled, also in the very moment it is granted, the turn is not lost and not doubled."""
    chance = random.Random(7)
    turn = Turn()
    inside = 0

    async def write() -> None:
        nonlocal inside
        await turn.take()
        try:
            inside += 1
            assert inside == 1
            await asyncio.sleep(chance.choice((0, 0, 0.0005)))
        finally:
            inside -= 1
            turn.give()

    for _ in range(60):
        tasks = [asyncio.ensure_future(write()) for _ in range(8)]
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        for task in chance.sample(tasks, 4):
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)

    assert not turn.taken
    assert not turn._asking
