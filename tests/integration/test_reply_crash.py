"""A streamed reply is killed in the middle: what was kept of it is in the history, marked interrupted, once."""

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Final

import pytest

from letopis.outbox import History, Unconfirmed
from letopis.store import ConversationStore
from tests.campaigns.victims import Context, fork_server
from tests.support import victim
from tests.support.relays import until

KILLS: Final = 50
CHUNKS: Final = 40
SEED: Final = 20261125


@pytest.fixture(scope="module")
def context() -> Context:
    return fork_server("tests.support.victim")


def heard(
    context: Context, outbox: Path, store: str, *, seed: int, after: int, every: float | None
) -> tuple[str, int, int]:
    """Let a bot speak, kill it with SIGKILL once it has said ``after`` chunks, and return the last it told: the id of
    the message, how many chunks were said, and how much of them was kept."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=victim.stream,
        args=(str(outbox), store, theirs),
        kwargs={"seed": seed, "count": CHUNKS, "every": every},
        daemon=True,
    )
    process.start()
    theirs.close()
    last = ("", 0, 0)
    with ours, contextlib.suppress(EOFError):
        while last[1] < after or not last[0]:
            assert ours.poll(20), f"the bot says nothing after {last}"
            last = ours.recv()
        process.kill()
        process.join()
        while True:  # it continued until it was killed
            last = ours.recv()
    assert process.exitcode in (-9, 1), process.exitcode  # 1: Windows
    return last


@pytest.mark.slow
async def test_killed_at_fifty_random_chunks(context: Context, tmp_path: Path) -> None:
    outbox, store = tmp_path / "bot.outbox.db", f"sqlite:///{(tmp_path / 'history.db').as_posix()}"
    chance = random.Random(SEED)
    told: list[tuple[Unconfirmed, ...]] = []
    seen, cut_short = [], 0
    for seed in range(KILLS):
        message_id, chunks, kept = await asyncio.to_thread(
            heard, context, outbox, store, seed=seed, after=chance.randrange(CHUNKS + 1), every=0.002
        )
        # Another text than it said at any time would be no prefix; less than was reported as kept would be too short.
        whole = "".join(victim.chunks(seed, chunks))
        async with History(outbox, store=store, relay=False, on_unconfirmed=told.append) as history:
            found = [one for one in await history.messages("chat", last=None) if one.message.id == message_id]
            for one in found:
                assert one.interrupted
                assert whole.startswith(one.text)
                assert len(one.text) >= kept
                assert one.text.endswith(" ")  # whole chunks
                seen.append(message_id)
                cut_short += len(one.text) < len(whole)
                await until(lambda one=one: any(one.message.id == last for last in ids(told)))
                await history.chat("chat").sent(one.message.id)
            assert len(found) <= 1
            assert found or kept == 0
        if seed % 10 == 0:
            async with History(outbox, store=store) as history:
                assert await history.drained(timeout=20)

    async with History(outbox, store=store) as history:  # once more, and delivered
        assert await history.drained(timeout=20)
        assert await history.unconfirmed() == ()
        messages = list(await history.messages("chat", last=None))
    async with ConversationStore.open(store) as stored:
        assert list(await stored.messages("chat")) == messages

    assert [one.message.id for one in messages] == seen
    assert all(one.interrupted and one.message.role == "assistant" for one in messages)
    assert ids(told) == seen
    # Otherwise it would have shown nothing.
    assert len(seen) >= KILLS * 3 // 4
    assert cut_short > 0
    assert not [path.name for path in tmp_path.iterdir() if ".writer-" in path.name]


async def test_without_checkpoints_a_kill_takes_all(context: Context, tmp_path: Path) -> None:
    """The control: what the test above finds comes from the drafts."""
    outbox, store = tmp_path / "bot.outbox.db", f"sqlite:///{(tmp_path / 'history.db').as_posix()}"
    for seed in range(3):
        _, *told = await asyncio.to_thread(heard, context, outbox, store, seed=seed, after=CHUNKS, every=None)
        assert told == [CHUNKS, 0]

    async with History(outbox, store=store, relay=False) as history:
        assert list(await history.messages("chat", last=None)) == []
        assert await history.unconfirmed() == ()


def ids(told: list[tuple[Unconfirmed, ...]]) -> list[str]:
    """The messages that were reported, in order."""
    return [one.message_id for found in told for one in found]
