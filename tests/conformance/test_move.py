"""A history that holds everything is the same after a move between stores of any kind, also while it is written to."""

import asyncio
from collections.abc import Callable

import pytest

from letopis.store import ConversationDeleted, ConversationRewound, ConversationStore, FaultClass, Message, StoreFault
from letopis.store.database.store_identity import LogState
from letopis.store.ops.move import MoveProgress, move
from letopis.store.ops.move.handover import arriving_id
from letopis.store.testing.forks import forked
from letopis.store.testing.outbox import Outbox
from tests.conformance.test_tasks import take_small_steps
from tests.support.moves import PARTITIONS, Writer, dump, fill, held, identity, sound, states, takes_deliveries
from tests.support.sayings import finish_tasks, send

each_pair = pytest.mark.parametrize(
    ("kind", "other"), [("sqlite", "postgresql"), ("postgresql", "mariadb"), ("mariadb", "sqlite")]
)
New = Callable[[str], str]


@each_pair
async def test_everything_arrives(kind: str, other: str, new_store_url: New) -> None:
    source, target = new_store_url(kind), new_store_url(other)
    outboxes = await fill(source, talks=4, each=20)
    before, (store_id, _, _) = await dump(source), await identity(source)
    async with ConversationStore.open(source, migrate=False) as store:
        searched = [hit.message.id for hit in await store.search("edit", limit=1_000)]

    done = await move(source, target)
    assert await dump(target) == before == await dump(source)
    assert await sound(target) == [] == await sound(source)
    assert (await identity(target)) == (store_id, None, None)
    assert done.store_id == store_id and done.projections == ("counting",) and not done.already
    assert done.events == len(before["letopis_events"]) and done.messages == len(before["letopis_messages"])
    assert 0 < done.paused < done.seconds
    # The old one refuses and says where it went; the new one continues with each outbox's next event.
    assert await states(source) == {LogState.MOVED} and (await identity(source))[1] == done.target
    assert not await takes_deliveries(source)
    async with ConversationStore.open(target, migrate=False) as store:
        assert await store.partitions() == PARTITIONS
        for outbox in outboxes:
            result = await send(store, outbox, "talk 1", Message.user("after the move"))
            assert [applied.inserted for applied in result.applied] == [1]
            # What was delivered before the move is known by its id, and not taken twice.
            again = await store.apply(outbox.origin, [outbox.batch("talk 2")])
            assert [applied.inserted for applied in again.applied] == [0]
        assert sorted(hit.message.id for hit in await store.search("edit", limit=1_000)) == sorted(searched)
    assert await sound(target) == []


@each_pair
async def test_bots_go_on_meanwhile(kind: str, other: str, new_store_url: New) -> None:
    source, target = new_store_url(kind), new_store_url(other)
    await fill(source, talks=2, each=5)
    async with ConversationStore.open(target, migrate=True):
        pass  # made by `letopis db upgrade`, with one partition
    async with Writer(source, target).running() as writer:
        done = await move(source, target)
    assert done.store_id == (await identity(target))[0] != arriving_id(done.store_id)
    said = writer.said()
    assert await held(target, *said) == said  # nothing lost, doubled or out of order
    assert await sound(target) == []


@each_pair
async def test_tasks_go_along(kind: str, other: str, new_store_url: New, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion, a rewind and a reset that are marked: steps run during the copy, and the target does the rest."""
    take_small_steps(monkeypatch)
    source, target = new_store_url(kind), new_store_url(other)
    names, outbox = ("gone", "back", "anew", "fork"), Outbox()
    async with ConversationStore.open(source, migrate=True, partitions=PARTITIONS) as store:
        for name in names[:3]:
            outbox.append(name, *(Message.user(f"words of {name} {n}", id=f"{name}{n}") for n in range(16)))
        await send(store, outbox, "fork", forked("gone", 5))
        outbox.append("gone", ConversationDeleted())
        outbox.append("back", ConversationRewound(to_message_id="back9"), Message.user("after", id="after"))
        await send(store, outbox, "anew", ConversationRewound(erase=True), Message.user("hello again", id="again"))
        for _ in range(3):
            await store.run_pending_tasks()
        read = await _read(store, *names)

        before, copied = await store.pending_tasks(), 0

        def step(_: MoveProgress) -> None:
            """Have a step taken after some of the pages, while the source takes any."""
            nonlocal copied
            copied += 1
            if copied % 4 == 0:
                under_way.append(asyncio.create_task(store.run_pending_tasks()))

        under_way: list[asyncio.Task[bool]] = []
        monkeypatch.setattr("letopis.store.maintenance.task_steps.PIECE_VERSIONS", 1)
        await move(source, target, progress=step)
        ended = await asyncio.gather(*under_way, return_exceptions=True)
        left = await store.pending_tasks()
        # Some were taken while it was copied, the later ones were refused, and there is something that has gone along.
        assert 0 < left.rows < before.rows and True in ended
        assert all(one is True or isinstance(one, StoreFault) for one in ended)
        with pytest.raises(StoreFault) as refused:
            await store.run_pending_tasks()
        assert refused.value.fault_class is FaultClass.WRONG_STORE
        assert await store.pending_tasks() == left
    assert await dump(target) == await dump(source) and await sound(target) == []

    monkeypatch.setattr("letopis.store.maintenance.task_steps.PIECE_VERSIONS", 4)
    async with ConversationStore.open(target, migrate=False) as store:
        assert await store.pending_tasks() == left
        assert await _read(store, *names) == read
        await finish_tasks(store)
        assert await _read(store, *names) == read
    texts = repr(await dump(target))
    assert "words of gone 5" not in texts and "words of anew" not in texts and "words of gone 4" in texts


async def _read(store: ConversationStore, *names: str) -> list[object]:
    """What can be read of conversations, by whatever heeds a mark."""
    found = list[object]()
    for name in names:
        log = await store.events(name)
        found.append([(one.version, one.data, one.digest) for one in log])
        found += [list(await store.messages(name)), list(await store.messages(name, every=True))]
        found += [list(await store.messages(name, as_of=at)) for at in (4, len(log))]
        found.append(await store.conversation(name))
    return found
