"""An erasure is a number in the counters that every apply locks: who has not carried it out cannot deliver."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from letopis.store import (
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    ConversationStore,
    ErasuresPending,
    Held,
    InvalidInput,
    Message,
    MessageRedacted,
    StoreFault,
    move,
)
from letopis.store.testing.delivery import ONLY, texts
from letopis.store.testing.outbox import Outbox, assert_no_gaps
from letopis.store.write.applier import DecodedBatch
from tests.conformance.tables import on_sqlite
from tests.support.sayings import new_outbox, present, problems, send


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
    outbox.origin = replace(outbox.origin, erasures=1)
    await outbox.deliver(store)
    assert await texts(store) == ["before", "after"]
    assert await store.erasures.unacknowledged() == []
    await assert_no_gaps(store)


async def test_an_idle_outbox_acknowledges_by_a_delivery_of_nothing(store: ConversationStore) -> None:
    outbox = await new_outbox(store, ONLY, Message.user("before"))
    erasure = await store.erasures.register("owner", "42", how="reset")
    [unacknowledged] = await store.erasures.unacknowledged()
    assert (unacknowledged.carried_out, unacknowledged.since) == (0, erasure.recorded_at)
    await store.apply(replace(outbox.origin, erasures=1), [])
    assert await store.erasures.unacknowledged() == []
    await store.apply(outbox.origin, [])  # a stale relay takes nothing back
    assert await store.erasures.unacknowledged() == []
    await store.apply(replace(outbox.origin, epoch=2), [])  # an older copy does
    assert len(await store.erasures.unacknowledged()) == 1


async def test_a_restored_store_counts_on_from_what_outboxes_have_carried_out(store: ConversationStore) -> None:
    outbox = Outbox()
    outbox.origin = replace(outbox.origin, erasures=7)
    await send(store, outbox, ONLY, Message.user("a store that knows of fewer erasures takes it"))
    assert (await store.erasures.register("owner", "42", how="reset")).number == 8


async def test_an_erasure_waits_for_an_apply_in_flight_and_refuses_the_next(store: ConversationStore) -> None:
    if store.url.get_backend_name() == "sqlite":
        pytest.skip("an SQLite file has one writer at a time")
    outbox = Outbox()
    outbox.append(ONLY, Message.user("in flight"))
    batch = outbox.pending()
    applier = (await store._runtime.prepared()).applier
    decoded = DecodedBatch(applier._upcasters)
    await decoded.decode(batch)
    async with store._runtime.engine.connect() as connection:
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


async def test_a_hold_that_comes_while_an_erasure_is_applied_wins(store: ConversationStore) -> None:
    if store.url.get_backend_name() == "sqlite":
        pytest.skip("an SQLite file has one writer at a time")
    outbox = await new_outbox(store, ONLY, Message.user("evidence"))
    outbox.append(ONLY, ConversationRewound(erase=True))
    applier = (await store._runtime.prepared()).applier
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
