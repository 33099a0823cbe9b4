"""An erasure is a number in the counters that every apply locks: who has not carried it out cannot deliver."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from letopis.store import (
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    ConversationStore,
    ConversationTrimmed,
    ErasuresPending,
    Held,
    InvalidInput,
    Message,
    MessageRedacted,
    StoreFault,
)
from letopis.store.database.schema import erasures, log_heads
from letopis.store.ops.move import move
from letopis.store.rules.apply_plan import Origin
from letopis.store.testing.delivery import ONLY, texts
from letopis.store.testing.outbox import Outbox, assert_no_gaps
from letopis.store.write.applier import DecodedBatch
from tests.conformance.tables import on_sqlite
from tests.support.sayings import back_up, change, new_outbox, present, problems, restore, send


async def test_erasures_are_numbered_from_one_and_read_in_order(store: ConversationStore) -> None:
    outbox = Outbox()
    refused: list[tuple[Any, str, Any]] = [("chat", "42", "reset"), ("owner", "", "reset"), ("owner", "42", "hide")]
    for kind, subject, how in refused:
        with pytest.raises(InvalidInput):
            await store.erasures.register(kind, subject, how=how)
    one = await store.erasures.register("owner", "42", how="reset", reason="asked", origin=outbox.origin)
    two = await store.erasures.register("person", "7", how="delete", requested_by="admin")
    assert (one.number, two.number) == (1, 2)
    assert (await store.erasures.after(0), await store.erasures.after(1)) == ([one, two], [two])
    assert (one.kind, one.subject, one.how, one.reason) == ("owner", "42", "reset", "asked")
    assert one.origin_id == outbox.origin.origin_id
    assert (await store.identity()).erasures == 2


async def test_a_delivery_of_an_outbox_that_lacks_an_erasure_writes_nothing(store: ConversationStore) -> None:
    outbox = await new_outbox(store, ONLY, Message.user("before"))
    await store.erasures.register("owner", "42", how="reset")
    outbox.append(ONLY, Message.user("after"))
    with pytest.raises(ErasuresPending) as refused:
        await outbox.deliver(store)
    assert (refused.value.carried_out, refused.value.last) == (0, 1)
    assert await texts(store) == ["before"]
    assert [unheard.name for unheard in await store.erasures.unacknowledged()] == [outbox.origin.name]
    outbox.origin = await at_last(store, outbox)
    await outbox.deliver(store)
    assert await texts(store) == ["before", "after"]
    assert await store.erasures.unacknowledged() == []
    await assert_no_gaps(store)


async def test_an_idle_outbox_acknowledges_by_a_delivery_of_nothing(store: ConversationStore) -> None:
    outbox = await new_outbox(store, ONLY, Message.user("before"))
    erasure = await store.erasures.register("owner", "42", how="reset")
    [unacknowledged] = await store.erasures.unacknowledged()
    assert (unacknowledged.carried_out, unacknowledged.since) == (0, erasure.recorded_at)
    for unknown in (replace(outbox.origin, erasures=1), replace(outbox.origin, erasures=1, erasure_id=uuid4())):
        with pytest.raises(ErasuresPending):
            await store.apply(unknown, [])
    assert len(await store.erasures.unacknowledged()) == 1
    await store.apply(await at_last(store, outbox), [])
    assert await store.erasures.unacknowledged() == []
    with pytest.raises(ErasuresPending):
        await store.apply(outbox.origin, [])  # a stale relay takes nothing back
    assert await store.erasures.unacknowledged() == []


async def at_last(store: ConversationStore, outbox: Outbox) -> Origin:
    """Return an outbox that has carried out all erasures of the store."""
    last = await store.identity()
    return replace(outbox.origin, erasures=last.erasures, erasure_id=last.erasure_id)


async def test_a_delivery_under_another_erasure_of_the_same_number_is_refused(store: ConversationStore) -> None:
    outbox = await new_outbox(store, ONLY, Message.user("before"))
    await store.erasures.register("owner", "42", how="reset")
    outbox.append(ONLY, Message.user("after"))
    for number in (1, 2):
        outbox.origin = replace(outbox.origin, erasures=number, erasure_id=uuid4())
        with pytest.raises(ErasuresPending):
            await outbox.deliver(store)
    assert await texts(store) == ["before"]


async def test_an_erasure_is_bounded_by_what_the_store_held_when_it_was_recorded(store: ConversationStore) -> None:
    outbox = await new_outbox(store, ONLY, Message.user("one"), Message.user("two"))
    before = await store.conversation(ONLY)
    erasure = await store.erasures.register("owner", "42", how="reset")
    assert before is not None and sum(erasure.positions) == before.version
    outbox.origin = await at_last(store, outbox)
    await send(store, outbox, ONLY, Message.user("said since"))
    await send(store, outbox, "begun since", Message.user("said since"))
    assert await store.erasures.erasure_bounds(erasure.number, [ONLY, "begun since", "never begun"]) == {
        ONLY: before.version
    }
    assert await store.erasures.after(0) == [erasure]
    with pytest.raises(InvalidInput):
        await store.erasures.erasure_bounds(erasure.number + 1, [ONLY])


async def test_a_number_that_is_known_to_anyone_is_not_given_out_again(store: ConversationStore) -> None:
    assert (await store.erasures.register("owner", "42", how="reset", used=7)).number == 8
    outbox = Outbox()
    await store.apply(await at_last(store, outbox), [])
    await change(store, sa.delete(erasures), sa.update(log_heads).values(erasures=0, erasure_id=None))
    assert (await store.erasures.register("owner", "42", how="reset")).number == 9


async def test_an_erasure_that_is_recorded_again_keeps_its_id_and_its_bounds(store: ConversationStore) -> None:
    outbox = await new_outbox(store, ONLY, Message.user("before"))
    backup, held = await back_up(store), present(await store.conversation(ONLY)).version
    outbox.append(ONLY, Message.user("lost"), Message.user("lost, too"))
    await outbox.deliver(store)
    erasure = await store.erasures.register("owner", "42", how="reset", reason="asked")
    await restore(store, backup)
    await send(store, Outbox("other"), "new", Message.user("said since"))
    await store.erasures.register("owner", "7", how="delete")
    repeated = await store.erasures.repeat(erasure)
    assert (repeated.number, repeated.erasure_id, repeated.recorded_at) == (2, erasure.erasure_id, erasure.recorded_at)
    assert await store.erasures.repeat(erasure) == repeated == (await store.erasures.after(1))[0]
    assert await store.erasures.erasure_bounds(2, [ONLY, "new"]) == {ONLY: held}
    assert (await store.identity()).erasure_id == erasure.erasure_id


async def test_an_erasure_waits_for_an_apply_in_flight_and_refuses_the_next(store: ConversationStore) -> None:
    if store.url.get_backend_name() == "sqlite":
        pytest.skip("an SQLite file has one writer at a time")
    outbox = Outbox()
    outbox.append(ONLY, Message.user("in flight"))
    batch = outbox.pending()
    applier = (await store.runtime.prepared()).applier
    decoded = DecodedBatch(applier._upcasters)
    await decoded.decode(batch)
    async with store.runtime.engine.connect() as connection:
        transaction = applier.begin(connection, outbox.origin)
        await applier.run_phases(transaction, batch, decoded)
        registering = asyncio.create_task(store.erasures.register("owner", "42", how="reset"))
        done, _ = await asyncio.wait({registering}, timeout=0.3)
        assert not done
        await connection.commit()
    assert (await registering).number == 1
    assert await texts(store) == ["in flight"]
    outbox.delivered[ONLY] = 1
    outbox.append(ONLY, Message.user("too late"))
    with pytest.raises(ErasuresPending):
        await outbox.deliver(store)


async def test_every_partition_refuses(store_url: str) -> None:
    async with ConversationStore.open(store_url, migrate=True, partitions=4) as store:
        await store.erasures.register("owner", "42", how="reset")
        for number in range(8):
            with pytest.raises(ErasuresPending):
                await new_outbox(store, f"chat-{number}", Message.user("words"))


async def test_a_move_takes_erasures_holds_and_the_number_along(store: ConversationStore, tmp_path: Path) -> None:
    outbox = await new_outbox(store, ONLY, Message.user("words"))
    erasure = await store.erasures.register("owner", "42", how="reset")
    hold = await store.erasures.hold("owner", "43", reason="a court asked")
    await move(store.url, tmp_path / "moved.db")
    async with ConversationStore.open(tmp_path / "moved.db") as moved:
        assert (await moved.erasures.after(0), await moved.erasures.holds()) == ([erasure], [hold])
        assert (await moved.identity()).erasures == 1
        outbox.append(ONLY, Message.user("more"))
        with pytest.raises(ErasuresPending):
            await outbox.deliver(moved)


async def test_a_hold_refuses_an_erasure_until_it_is_released(store: ConversationStore) -> None:
    await new_outbox(store, ONLY, Message.user("words"))
    await store.erasures.hold("owner", "42", reason="a court asked", requested_by="admin")
    with pytest.raises(Held, match="a court asked"):
        await store.erasures.register("owner", "42", how="reset")
    await store.erasures.check_not_held(conversation=ONLY)
    await store.erasures.hold("conversation", ONLY, reason="evidence")
    with pytest.raises(Held, match="evidence"):
        await store.erasures.check_not_held(conversation=ONLY)
    assert await store.erasures.release("owner", "42") is True
    assert await store.erasures.release("owner", "42") is False
    assert (await store.erasures.register("owner", "42", how="reset")).number == 1


@on_sqlite
async def test_a_hold_on_a_conversation_refuses_the_erasure_of_its_owner(store: ConversationStore) -> None:
    await new_outbox(store, ONLY, ConversationStarted(owner_id="42"), Message.user("words"))
    await store.erasures.hold("conversation", ONLY, reason="evidence")
    for kind in ("owner", "person"):
        with pytest.raises(Held, match="evidence"):
            await store.erasures.register(kind, "42", how="delete")
    with pytest.raises(Held, match="evidence"):
        await store.erasures.check_not_held(owner="42")
    await store.erasures.check_not_held(owner="43")


@on_sqlite
@pytest.mark.parametrize("kind", ["owner", "conversation"])
@pytest.mark.parametrize("what", ["reset", "delete", "redact"])
async def test_an_erasure_that_meets_a_hold_is_set_aside(store: ConversationStore, kind: str, what: str) -> None:
    outbox = Outbox()
    message = Message.user("evidence")
    await send(store, outbox, ONLY, ConversationStarted(owner_id="42"), message)
    await store.erasures.hold(kind, "42" if kind == "owner" else ONLY, reason="a court asked")  # type: ignore[arg-type]
    body = {
        "reset": ConversationRewound(erase=True),
        "delete": ConversationDeleted(),
        "redact": MessageRedacted(message_id=message.id),
    }[what]
    outbox.append(ONLY, body)
    [applied] = (await outbox.deliver(store)).applied
    assert [conflict.held for conflict in applied.superseded.values()] == [True]
    assert await texts(store) == ["evidence"]
    assert present(await store.conversation(ONLY)).state == "active"
    assert await problems(store) == []
    await store.erasures.release(kind, "42" if kind == "owner" else ONLY)  # type: ignore[arg-type]
    await send(store, outbox, ONLY, body)
    assert "evidence" not in await texts(store)


async def test_a_hold_on_an_author_spares_what_they_wrote_in_conversations_of_others(store: ConversationStore) -> None:
    outbox = Outbox()
    said = [Message.user("free", id="a", author="7"), Message.user("evidence", id="b", author="42")]
    await send(store, outbox, ONLY, ConversationStarted(owner_id="43"), *said, Message.user("free", id="c", author="7"))
    await store.erasures.hold("owner", "42", reason="a court asked")
    trims = [ConversationTrimmed(upto=upto, rule="default") for upto in (2, 3)]
    late = Message.user("late evidence", id="d", author="42")
    redactions = [MessageRedacted(message_id=name) for name in "bcd"]
    outbox.append(ONLY, *trims, late, *redactions)
    [applied] = (await outbox.deliver(store)).applied
    assert {sequence: conflict.held for sequence, conflict in applied.superseded.items()} == dict.fromkeys(
        (6, 8, 10), True
    )
    assert await texts(store) == ["", "evidence", "", "late evidence"]
    assert await problems(store) == []
    await store.erasures.release("owner", "42")
    await send(store, outbox, ONLY, trims[1], redactions[2])
    assert await texts(store) == ["", "", "", ""]


async def test_a_hold_that_comes_while_an_erasure_is_applied_wins(store: ConversationStore) -> None:
    if store.url.get_backend_name() == "sqlite":
        pytest.skip("an SQLite file has one writer at a time")
    outbox = await new_outbox(store, ONLY, Message.user("evidence"))
    outbox.append(ONLY, ConversationRewound(erase=True))
    applier = (await store.runtime.prepared()).applier
    find, held = applier._loader._find_holds, []

    async def find_then_hold(*arguments: Any) -> Any:
        answer = await find(*arguments)
        if not held:
            held.append(await store.erasures.hold("conversation", ONLY, reason="a court asked"))
        return answer

    applier._loader._find_holds = find_then_hold  # type: ignore[method-assign]
    with pytest.raises(StoreFault, match="a hold was set"):
        await outbox.deliver(store)
    [applied] = (await outbox.deliver(store)).applied
    assert [conflict.held for conflict in applied.superseded.values()] == [True]
    assert await texts(store) == ["evidence"]
