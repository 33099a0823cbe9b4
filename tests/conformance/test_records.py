"""Records as an application keeps them: pending or delivered, over every store, and while that is away."""

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from letopis import Bounds, History, RecordPut, Records
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.outbox.relay.relay import Relay
from letopis.store import (
    ABSENT,
    ConversationGone,
    InvalidInput,
    Message,
    OutboxFull,
    OutboxUnavailable,
    RecordConflict,
    StoreUnavailable,
)
from tests.conformance.tables import on_sqlite
from tests.conformance.talk import count, deliver
from tests.support.bench import ask
from tests.support.relays import sql
from tests.support.sayings import Bots, all_pages, present

NOWHERE = "postgresql://127.0.0.1:1/none"
CHAT = "chat-1"
CP = ("cp",)


async def value(records: Records, key: str) -> Any:
    found = await records.get(CP, key)
    return None if found is None else found.value


@pytest.mark.parametrize("delivered", [False, True])
async def test_what_was_put_is_read_as_it_was_given(bot: History, *, delivered: bool) -> None:
    records = bot.records(conversation=CHAT)
    values: dict[str, Any] = {
        "object": {"z": 1, "a": [True, None, "é"]},
        "text": "words",
        "none": None,
        "bytes": b"\x00\xff",
        "empty": b"",
        "large": bytes(range(256)) * 4_000,
    }
    for key, one in values.items():
        await records.put(CP, key, one, tags={"run": "r1"})
    if delivered:
        await deliver(bot)
        assert await count(bot, "letopis_outbox_lanes WHERE delivered < head") == 0

    for key, one in values.items():
        found = present(await records.get(CP, key))
        assert (found.value, found.tags, found.saved, found.current) == (one, {"run": "r1"}, delivered, True)
    assert list(await value(records, "object")) == ["z", "a"]
    page = await records.list(CP)
    assert {one.key: one.value for one in page} == values and page.next is None
    assert await records.get(CP, "nothing") is await records.get(("other",), "text") is None
    assert await bot.records(conversation="chat-2").get(CP, "text") is None


@on_sqlite
async def test_records_are_in_no_list_statistics_window_or_search(bot: History) -> None:
    records, memory = bot.records(conversation=CHAT), bot.records(owner="42")
    await bot.append(CHAT, Message.user("hello"), owner="42")
    await deliver(bot)
    seen = await bot.messages(CHAT)

    for scope in (records, memory, bot.records(space="app"), bot.records(conversation="only records")):
        await scope.put(CP, "words", "hello words", tags={"words": "words"})
    assert [one.text for one in await bot.messages(CHAT)] == ["hello"]
    assert [one.conversation_id for one in await bot.conversations()] == [CHAT]
    assert [one.conversation_id for one in await bot.conversations(owner="42")] == [CHAT]
    assert (await bot.statistics()).messages == (await bot.statistics(owner="42")).messages == 1
    assert [one.message.text for one in await bot.search("hello")] == ["hello"]
    assert not (await bot.search("words")).items
    assert [one.type for one in await bot.chat(CHAT).events()] == ["conversation.started", "message.appended"]
    assert await bot.chat("only records").conversation() is None
    # What a condition has seen is not made old by a record.
    await bot.append(CHAT, Message.assistant("good", id="answer"), expected=seen)


@on_sqlite
@pytest.mark.parametrize("delivered", [False, True])
async def test_conditions(bot: History, *, delivered: bool) -> None:
    records = bot.records(space="app")

    async def turn() -> None:
        if delivered:
            await deliver(bot)

    first = await records.put(CP, "a", 1, expected=ABSENT)
    await turn()
    with pytest.raises(RecordConflict) as there:
        await records.put(CP, "a", 2, expected=ABSENT)
    assert there.value.actual == first.revision and there.value.expected is None
    kept = await records.put(CP, "a", 2, expected=ABSENT, on_exists="keep")
    assert kept.kept and kept.revision == first.revision and await value(records, "a") == 1
    second = await records.put(CP, "a", 2, expected=first.revision)  # type: ignore[arg-type]
    await turn()
    with pytest.raises(RecordConflict) as old:
        await records.put(CP, "a", 3, expected=first.revision)  # type: ignore[arg-type]
    assert (old.value.expected, old.value.actual) == (first.revision, second.revision)
    with pytest.raises(RecordConflict):
        await records.delete(CP, "a", expected=uuid4())
    with pytest.raises(RecordConflict):
        await records.put(CP, "nothing", 3, expected=uuid4())
    await records.delete(CP, "a", expected=second.revision)  # type: ignore[arg-type]
    await turn()
    assert await value(records, "a") is None
    await records.put(CP, "a", 4, expected=ABSENT)
    await deliver(bot)
    assert await value(records, "a") == 4


@on_sqlite
async def test_late_loser_is_told_and_reads_the_winner(bots: Bots) -> None:
    bot, other = bots
    mine, theirs = (one.records(conversation=CHAT) for one in bots)
    base = await mine.put(CP, "a", "base")
    await deliver(bot)
    won = await theirs.put(CP, "a", "theirs", expected=base.revision)  # type: ignore[arg-type]
    lost = await mine.put(CP, "a", "mine", expected=base.revision)  # type: ignore[arg-type]
    after = await mine.put(CP, "b", 1)
    assert await value(mine, "a") == "mine"
    await deliver(other, bot)
    assert not await won.superseded(5) and await won.saved(5)
    assert await lost.superseded(5) and not await lost.saved(5)
    assert await after.saved(5)
    for records in (mine, theirs):
        found = present(await records.get(CP, "a"))
        assert (found.value, found.revision) == ("theirs", won.revision)


@on_sqlite
async def test_records_and_messages_of_a_transaction_are_written_together_or_not(bot: History) -> None:
    records = bot.records(conversation=CHAT)

    async def fail() -> None:
        async with bot.transaction() as tx:
            await tx.append(CHAT, Message.user("hello"))
            await tx.put(records, CP, "a", 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await count(bot, "letopis_outbox_events") == 0 and await value(records, "a") is None
    async with bot.transaction() as tx:
        await tx.execute(sa.text("CREATE TABLE credits (rest INTEGER)"))
        await tx.append(CHAT, Message.user("hello"))
        receipt = await tx.put(records, CP, "a", 1)
        with pytest.raises(RecordConflict):
            await tx.put(records, CP, "a", 2, expected=ABSENT)
        await tx.delete_record(records, CP, "b")
    assert await value(records, "a") == 1 and not await receipt.saved(0)
    await deliver(bot)
    assert await receipt.saved(5) and await value(records, "a") == 1
    assert [one.text for one in await bot.messages(CHAT)] == ["hello"]


async def test_pages_hold_what_is_pending_and_skip_what_is_gone(bot: History) -> None:
    records = bot.records(conversation=CHAT)
    for number in range(0, 40, 2):
        await records.put(CP, f"{number:02}", number, tags={"third": number % 3 == 0})
    await deliver(bot)
    for number in range(1, 40, 2):
        await records.put(CP, f"{number:02}", number, tags={"third": number % 3 == 0})
    for number in range(10, 20):
        await records.delete(CP, f"{number:02}")
    await records.put(CP, "00", "anew")
    wanted = ["anew", *range(1, 10), *range(20, 40)]
    for reverse in (False, True):
        for limit in (1, 3, 7, 100):
            found = await all_pages(partial(records.list, CP, limit=limit, reverse=reverse), most=limit)
            assert [one.value for one in found] == (wanted[::-1] if reverse else wanted)
    [latest] = await records.list(CP, reverse=True, limit=1)
    assert latest.value == 39
    before = await records.list(CP, reverse=True, end="25", limit=2)
    assert [one.value for one in before] == [24, 23]
    assert [one.value for one in await records.list(CP, tags={"third": True}, start="30")] == [30, 33, 36, 39]
    assert not await records.list(CP, tags={"third": 1})


@on_sqlite
async def test_a_list_beside_writers_claims_no_damage(bot: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value is replaced between the look into the file and the answer of the store, in every attempt."""
    records = bot.records(conversation=CHAT)
    for key in "abc":
        await records.put(CP, key, 0)
    await deliver(bot)
    real, rounds = StoreGateway.read, 0

    async def read(self: StoreGateway, *args: Any, **options: Any) -> Any:
        nonlocal rounds
        rounds += 1
        for key in "abcd":
            await records.put(CP, key, rounds)
        if rounds % 2:
            await deliver(bot)
        return await real(self, *args, **options)

    await records.put(CP, "b", -1)
    monkeypatch.setattr(StoreGateway, "read", read)
    for _ in range(6):
        before = rounds
        page = await records.list(CP, limit=2)
        assert [one.key for one in page] == ["a", "b"] and page.complete
        assert all(before <= max(one.value, 0) <= rounds for one in page)
        assert before <= await value(records, "c") <= rounds


async def test_what_was_deleted_here_is_not_known_to_be_gone_without_the_store(alone: History) -> None:
    records = alone.records(space="app")
    await records.put(CP, "a", 1)
    await records.delete(CP, "a")
    await sql(alone.outbox, "UPDATE letopis_outbox_lanes SET delivered = head")
    with pytest.raises(StoreUnavailable):
        await records.get(CP, "a")


@on_sqlite
async def test_damage_is_told_where_one_look_into_the_file_shows_it(bot: History) -> None:
    records = bot.records(conversation=CHAT)
    await records.put_many([RecordPut(CP, "a", 1), RecordPut(CP, "b", 2)])
    last = "SELECT max(position) FROM letopis_outbox_events"
    await sql(bot.outbox, f"DELETE FROM letopis_outbox_record_bodies WHERE position = ({last})")
    assert await value(records, "a") == 1
    assert [one.key for one in await records.list(CP, values=False)] == ["a", "b"]
    for read in (records.get(CP, "b"), records.list(CP)):
        with pytest.raises(OutboxUnavailable, match="value of a record is missing"):
            await read


@on_sqlite
async def test_bad_input_is_named_and_writes_nothing(bot: History) -> None:
    records = bot.records(space="app")
    bad: list[tuple[Any, Any, Any, dict[str, Any]]] = [
        ("cp", "a", 1, {}),
        (CP, "é" * 257, 1, {}),
        (CP, "a\0", 1, {}),
        (CP, "a", "\ud800", {}),
        (CP, "a", bytes(64 * 1024 * 1024 + 1), {}),
        (CP, "a", 1, {"tags": {str(number): 1 for number in range(9)}}),
        (CP, "a", 1, {"expected": "yes"}),
        (CP, "a", 1, {"on_exists": "keep"}),
    ]
    for namespace, key, given, options in bad:
        with pytest.raises(InvalidInput):
            await records.put(namespace, key, given, **options)
    for wrong in ({}, {"space": "a", "owner": 1}, {"conversation": "a\1"}):
        with pytest.raises(InvalidInput):
            bot.records(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        await records.list(after="nonsense")
    assert await count(bot, "letopis_outbox_events") == 0


async def test_records_are_found_by_their_tags_in_all_scopes(bot: History) -> None:
    scopes = [bot.records(conversation="one"), bot.records(owner="42"), bot.records(space="app")]
    for number, records in enumerate(scopes):
        for run in ("r1", "r2"):
            await records.put(CP, run, number, tags={"run": run, "n": number})
            await records.put(CP, f"{run} gone", number, tags={"run": run})
    await deliver(bot)
    for records in scopes:
        await records.delete(CP, "r1 gone")
        await records.put(("new",), "r1", 7, tags={"run": "r1"})
    await scopes[0].put(CP, "r1", "anew", tags={"run": "r3"})

    async def expect() -> None:
        for limit in (1, 2, 100):
            found = await all_pages(partial(bot.records.find, {"run": "r1"}, limit=limit))
            assert sorted((str(one.scope), one.namespace, one.key) for one in found) == [
                ("conversation one", ("new",), "r1"),
                ("owner 42", CP, "r1"),
                ("owner 42", ("new",), "r1"),
                ("space app", CP, "r1"),
                ("space app", ("new",), "r1"),
            ]
        [one] = await bot.records.find({"run": "r1", "n": 2})
        assert present(await bot.records(one.scope).get(one.namespace, one.key)).value == 2
        assert not await bot.records.find({"n": "2"}) and not await bot.records.find({"n": True})

    await expect()
    await deliver(bot)
    await expect()
    await scopes[1].delete_where()
    assert {str(one.scope) for one in await bot.records.find({"run": "r1"})} == {"conversation one", "space app"}
    with pytest.raises(InvalidInput):
        await bot.records.find({})


@on_sqlite
@pytest.mark.parametrize("delivered", [False, True])
async def test_deleting_takes_what_a_list_takes(bot: History, *, delivered: bool) -> None:
    records = bot.records(space="app")

    async def refill() -> None:
        for number in range(6):
            await records.put(("a",), f"{number}", number, tags={"even": number % 2 == 0})
            await records.put(("a", "below"), f"{number}", number, tags={"even": number % 2 == 0})
            await records.put(("b",), f"{number}", number, tags={"even": True})
        if delivered:
            await deliver(bot)

    async def places(*prefix: str, **more: Any) -> set[tuple[tuple[str, ...], str]]:
        return {(one.namespace, one.key) for one in await records.list(prefix, **more)}

    asked: tuple[dict[str, Any], ...] = (
        {"tags": {"even": True}},
        {"start": "2", "end": "4"},
        {"end": "3", "tags": {"even": True}},
    )
    for more in asked:
        await refill()
        assert set(await records.namespaces()) == {("a",), ("a", "below"), ("b",)}
        assert set(await records.namespaces(("a",))) == {("a",), ("a", "below")}
        found, before = await places("a", **more), await places()
        receipt = await records.delete_where(("a",), **more)
        after = await places()
        assert found and after == before - found
        if delivered:
            await deliver(bot)
            assert await receipt.saved(5)
            assert await places() == after
    assert [one.value for one in await records.list(("b",))] == list(range(6))
    nothing = await records.delete_where(("a",), tags={"even": "yes"})
    assert nothing.revision is None and await nothing.saved(0)
    await records.delete_where(tags={})
    assert not await records.list()


@on_sqlite
async def test_record_that_changes_meanwhile_stays(bots: Bots) -> None:
    """It may not have the tag any more; who changed it has not asked for its deletion."""
    bot, other = bots
    mine, theirs = (one.records(space="app") for one in bots)
    for key in ("a", "b"):
        await mine.put(CP, key, 1, tags={"old": True})
    await deliver(bot)
    receipt = await mine.delete_where(CP, tags={"old": True})
    await theirs.put(CP, "a", 2)
    await deliver(other, bot)
    assert await receipt.saved(5) and not await receipt.superseded(5)
    assert {one.key: one.value for one in await mine.list()} == {"a": 2}


@on_sqlite
async def test_a_receipt_of_a_space_waits_for_all_its_lanes(bot: History) -> None:
    records = bot.records(space="app")
    receipt = await records.delete_where()
    lanes = await count(bot, "letopis_outbox_lanes WHERE delivered < head")
    assert lanes == 16 and await receipt.state() == "pending"
    await sql(bot.outbox, "UPDATE letopis_outbox_lanes SET state = 'blocked' WHERE conversation_id LIKE '%:3'")
    await deliver(bot)
    assert await receipt.state() == "blocked" and not await receipt.saved(0.2)
    await sql(bot.outbox, "UPDATE letopis_outbox_lanes SET state = 'ready'")
    await deliver(bot)
    assert await receipt.state() == "saved" and await receipt.saved(5)


@on_sqlite
async def test_conditions_that_cannot_hold_are_refused_by_name(bot: History, tmp_path: Path) -> None:
    """``expected`` takes a revision, ``ABSENT`` or ``ANY``; a refusal says what is there, and writes nothing."""
    records = bot.records(conversation=CHAT)
    second = await records.put(CP, "a", 2)
    before = await count(bot, "letopis_outbox_events"), await count(bot, "letopis_outbox_record_bodies")
    for there in (RecordPut(CP, "b", 2, ABSENT), RecordPut(CP, "a", 1, ABSENT)):
        with pytest.raises(RecordConflict):
            await records.put_many([RecordPut(CP, "b", 1, ABSENT), RecordPut(("x",), "c", 1), there])
    for wrong in (records.delete(CP, "a", expected=ABSENT), records.put(CP, "a", 3, expected=None)):  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            await wrong
    assert (await count(bot, "letopis_outbox_events"), await count(bot, "letopis_outbox_record_bodies")) == before
    # In one append a later condition sees the earlier change.
    await records.put_many([RecordPut(CP, "c", 1, ABSENT), RecordPut(CP, "c", 2)])
    await bot.append(CHAT, Message.user("hello"))
    await bot.chat(CHAT).delete()
    with pytest.raises(ConversationGone):
        await records.put(CP, "a", 3, expected=second.revision)  # type: ignore[arg-type]
    with pytest.raises(ConversationGone):
        await records.erase()
    async with History(tmp_path / "full.outbox.db", relay=False, watch=False, bounds=Bounds(max_events=1)) as full:
        mine = full.records(space="app")
        await mine.put(CP, "a", 1, expected=ABSENT)
        with pytest.raises(OutboxFull):
            await mine.put(CP, "b", 1, expected=ABSENT)


@on_sqlite
async def test_a_quiet_lane_keeps_no_ledger_of_what_its_outbox_has_pruned(bot: History, store_url: str) -> None:
    records = bot.records(space="app")
    for number in range(30):
        await records.put(CP, "a", number)
    await bot.records(conversation=CHAT).put(CP, "a", 1)
    await deliver(bot)
    await bot.outbox.write(Pruner(Retention(keep_last=2, keep_for=timedelta(0)), bot.outbox.now_us))
    ledger = "SELECT count(*) FROM letopis_record_ledger"
    assert await ask(store_url, ledger) == 31
    relay = Relay(bot.outbox, bot.store)
    relay._dispatcher.schedule_reconcile()
    await relay.drain()  # there is nothing to deliver any more
    assert await ask(store_url, ledger) == 3
    assert await ask(store_url, "SELECT max(floor) FROM letopis_lanes") == 28
    await records.put(CP, "a", "last")
    await deliver(bot)
    assert await value(records, "a") == "last" and await ask(store_url, ledger) == 4
