"""A fork reads its ancestors as they were when it was made, in every store; and what happens to them later."""

from contextlib import nullcontext

import pytest
import sqlalchemy as sa

from letopis.store import ConversationStore, Message
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.schema import conversations as conversations_table
from letopis.store.database.schema import messages as messages_table
from letopis.store.model.event_types import ConversationDeleted, ConversationRewound, MessageRedacted
from letopis.store.ops.rebuild import rebuild
from letopis.store.read.task_marks import PendingTasks
from letopis.store.testing.forks import ForkConformance, forked, texts
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.time_travel import paged
from letopis.store.write.erasing import Eraser
from tests.conformance.tables import LooksIntoTables, on_sqlite, stored_text
from tests.support.sayings import send


class TestForks(LooksIntoTables, ForkConformance):
    """The published contract."""


@pytest.mark.parametrize("first", ["cleared", "deleted", "together", "undone", "gone"])
async def test_fork_of_a_fork_keeps_what_it_reads_whatever_comes(store: ConversationStore, first: str) -> None:
    """What a fork reads is settled when it is made; only its own end lets it go."""
    outbox = Outbox()
    outbox.append("p", Message.user("first", id="1"), Message.assistant("second", id="2"))
    outbox.append("f", forked("p", 1), Message.user("mine", id="3"))
    await send(store, outbox, "g", forked("f", 2), Message.user("deeper", id="4"))
    leaving = (
        [ConversationRewound(to_message_id="1"), ConversationRewound()]
        if first == "undone"
        else [ConversationDeleted() if first == "gone" else ConversationRewound()]
    )
    for name, what in [("p", [ConversationDeleted()]), ("f", leaving)][:: 1 if first == "deleted" else -1]:
        outbox.append(name, *what)
        if first != "together":
            await outbox.deliver(store)
    outbox.append("late", forked("f", 2 + len(leaving)))  # made after the clear, so it inherits nothing
    await outbox.deliver(store)

    assert texts((await store.messages("g")).items) == ["first", "mine", "deeper"]
    assert (await store.messages("f")).items == (await store.messages("late")).items == ()
    held = await stored_text(store, "p")
    assert "first" in held and "second" not in held
    assert await rebuilt(store) == {}
    # Lost rows are rebuilt without a guess: the forks' rows are lost as well.
    async with store.runtime.callers_engine.begin() as connection:
        for table in (messages_table, conversations_table):
            await connection.execute(sa.delete(table))
    await rebuilt(store)
    assert texts((await store.messages("g")).items) == ["first", "mine", "deeper"]
    assert await stored_text(store, "p") == held

    outbox.append("p", MessageRedacted(message_id="1"))  # too late: in a deleted conversation nothing has an effect
    await send(store, outbox, "g", ConversationRewound(to_message_id="1"))
    assert texts((await store.messages("g")).items) == ["first"]
    await send(store, outbox, "g", ConversationRewound())
    assert "first" not in await stored_text(store, "p")


class Killed(Exception):
    """A process ended here."""


@on_sqlite
@pytest.mark.parametrize("how", ["cut off", "unavailable", "poison"])
async def test_what_no_fork_reads_any_more_is_erased_by_a_task_if_its_apply_was_disturbed(
    store: ConversationStore, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends, or the store is lost or refuses it, between the two transactions of an apply."""
    outbox = Outbox()
    outbox.append("p", Message.user("secret", id="1"))
    await send(store, outbox, "f", forked("p", 1))
    await send(store, outbox, "p", ConversationDeleted())
    assert "secret" in await stored_text(store, "p")

    async def disturbed(*_: object, **__: object) -> bool:
        raise Killed if how == "cut off" else StoreFault(fault_class=FaultClass(how), code="x", reason="disturbed")

    outbox.append("f", ConversationDeleted())
    with monkeypatch.context() as patch:
        patch.setattr(Eraser, "erase_released", disturbed)
        with pytest.raises(Killed) if how == "cut off" else nullcontext():
            await outbox.deliver(store)
    assert "secret" in await stored_text(store, "p")
    assert await store.pending_tasks() == PendingTasks(tasks=1, rows=1, erasing=1)
    assert await store.run_pending_tasks()
    assert "secret" not in await stored_text(store, "p")
    assert await store.pending_tasks() == PendingTasks() and not await store.run_pending_tasks()


async def rebuilt(store: ConversationStore) -> dict[str, tuple[str, ...]]:
    return {one.conversation_id: one.differences async for one in rebuild(store)}


@on_sqlite
async def test_very_deep_forks_are_read_as_far_as_they_go(store: ConversationStore) -> None:
    outbox = Outbox()
    outbox.append("0", Message.user("0"))
    for number in range(1, 70):
        outbox.append(str(number), forked(str(number - 1), 2 if number > 1 else 1), Message.user(str(number)))
    await outbox.deliver(store)
    page = await store.messages("60")
    assert (texts(page.items), page.complete) == ([str(number) for number in range(61)], True)
    page = await store.messages("69")
    assert (texts(page.items), page.complete) == ([str(number) for number in range(5, 70)], False)
    assert len(await paged(store, "69", 40)) == 65
