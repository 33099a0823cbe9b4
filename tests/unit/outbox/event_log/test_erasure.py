"""The content of a deleted or reset conversation is erased from the file in steps, whatever its length."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa

from letopis.outbox import History, OutboxFile, Relay
from letopis.outbox.event_log import erasing, erasures
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.erasing import count_unerased
from letopis.outbox.event_log.erasures import NOTHING_KNOWN, carry_out_step, erase_messages_of
from letopis.outbox.event_log.held import HeldSubjects
from letopis.outbox.event_log.lookups import left_of_erasure
from letopis.outbox.event_log.statements import on_cursor
from letopis.store import ConversationDeleted, ConversationStore, ConversationTrimmed, Message, StoreUnavailable
from letopis.store.erasures import Erasure
from letopis.store.model.events import utc_now
from tests.support.relays import sql
from tests.support.sayings import present

STEP = 20
LONG = 5 * STEP
NO_HOLDS = HeldSubjects()


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasing, "MAX_ERASED_PER_TRANSACTION", STEP)
    monkeypatch.setattr(erasures, "MAX_ERASED_PER_TRANSACTION", STEP)


def erased(connection: sa.Connection) -> int:
    statement = "SELECT count(*) FROM letopis_outbox_events WHERE redacted = 1 AND type = 'message.appended'"
    return int(connection.exec_driver_sql(statement).scalar_one())


def kept(outbox: OutboxFile, words: bytes = b"words of ") -> bool:
    files = [outbox.path, outbox.path.with_name(f"{outbox.path.name}-wal")]
    return any(words in file.read_bytes() for file in files if file.exists())


async def deliver_erasure(history: History, verb: str, count: int) -> None:
    """Append messages, deliver them, and deliver their erasure up to its acknowledgement."""
    await history.append("long", *(Message.user(f"words of {number}", id=f"m{number}") for number in range(count)))
    relay = Relay(history.outbox, history.store)
    await relay.drain_once()
    await getattr(history.chat("long"), verb)()
    assert await relay.drain_once() >= 1


@pytest.mark.parametrize("verb", ["delete", "reset"])
@pytest.mark.parametrize("count", [LONG, 4 * LONG])
async def test_an_acknowledgement_erases_as_much_whatever_the_length(history: History, verb: str, count: int) -> None:
    await deliver_erasure(history, verb, count)
    assert 0 < STEP - await history.outbox.read(erased) < 3  # the first event starts the conversation
    assert await history.outbox.read(count_unerased) == 1
    steps = 0
    while await history.outbox.write(partial(on_cursor, work=erasing.erase_delivered)):
        steps += 1
    assert steps == count // STEP
    assert (await history.outbox.read(erased), await history.outbox.read(count_unerased)) == (count, 0)


@pytest.mark.parametrize("verb", ["delete", "reset"])
async def test_what_is_not_erased_yet_is_not_read_while_the_store_is_down(tmp_path: Path, verb: str) -> None:
    store = ConversationStore(tmp_path / "history.db", migrate=True)
    async with History(tmp_path / "bot.outbox.db", store=store, relay=False, watch=False, read_timeout=0.5) as history:
        await deliver_erasure(history, verb, LONG)
        await store.close()
        (tmp_path / "history.db").rename(tmp_path / "elsewhere.db")
        history = History(tmp_path / "bot.outbox.db", store=tmp_path / "none" / "history.db", relay=False, watch=False)
    async with history:
        assert [one.text for one in await history.messages("long", last=None, every=True) if one.text] == []
        assert (await history.messages("long")).items == ()
        assert (await history.search("words")).items == ()
        with suppress(StoreUnavailable):  # the past may not be known without the store
            assert [one.text for one in await history.messages("long", as_of=50) if one.text] == []


async def test_a_step_writes_as_much_however_many_conversations_wait(outbox: OutboxFile) -> None:
    for number in range(3 * STEP):
        await outbox.append(prepare(f"c{number}", [Message.user("words"), ConversationDeleted()]))
    await sql(outbox, "UPDATE letopis_outbox_lanes SET delivered = head")

    def step(connection: sa.Connection) -> int:
        changes = [connection.exec_driver_sql("SELECT total_changes()").scalar_one()]
        assert on_cursor(connection, work=erasing.erase_delivered)
        changes.append(connection.exec_driver_sql("SELECT total_changes()").scalar_one())
        return changes[1] - changes[0]

    assert 0 < await outbox.write(step) <= 2 * STEP
    assert STEP < await outbox.read(count_unerased) < 3 * STEP


async def test_a_trim_that_comes_again_leaves_nothing_to_erase(outbox: OutboxFile) -> None:
    trim = ConversationTrimmed(upto=2, rule="r", sequence=2)
    await outbox.append(prepare("c", [Message.user("words of 1")], owner="42"))
    for _ in range(2):
        await outbox.append(prepare("c", [trim]))
        await sql(outbox, "UPDATE letopis_outbox_lanes SET delivered = head")
        await outbox.write(partial(on_cursor, work=erasing.erase_delivered))
        await outbox.append(prepare("c", [Message.user("words of 2")]))
        assert await outbox.read(partial(left_of_erasure, owner="42")) == (0, 0), "what is pending erases nothing"


def owner_erasure() -> partial[bool | None]:
    erasure = Erasure(
        number=3,
        kind="owner",
        subject="42",
        how="reset",
        reason=None,
        requested_by=None,
        origin_id=None,
        positions=(0,),
        erasure_id=UUID(int=3),
        answers=False,
        recorded_at=utc_now(),
    )
    return partial(carry_out_step, erasure=erasure, held=NO_HOLDS, incarnation=0, now_us=1)


async def test_an_erasure_spares_what_is_said_between_its_steps(outbox: OutboxFile) -> None:
    await outbox.append(prepare("c", [Message.user(f"words of {number}") for number in range(STEP)], owner="42"))
    step = owner_erasure()
    assert await outbox.write(partial(step, incarnation=1)) is None, "another relay has taken over"
    assert await outbox.write(step) is True
    await outbox.append(prepare("c", [Message.user("words after")], owner="42"))
    while await outbox.write(step):
        pass

    assert await sql(outbox, "SELECT number, state FROM letopis_outbox_erasures") == [(3, "carried_out")]
    assert await outbox.write(step) is False, "one that was carried out is not begun again"
    messages = "SELECT redacted FROM letopis_outbox_events WHERE type = 'message.appended' ORDER BY position"
    assert await sql(outbox, messages) == [(1,)] * STEP + [(0,)]


async def test_an_erasure_spares_records_that_are_put_between_its_steps(history: History) -> None:
    records = history.records(owner="42")
    for number in range(2 * STEP):
        await records.put(("notes",), f"key {number}", "words of")
    step = owner_erasure()
    assert await history.outbox.write(step) is True
    await records.put(("notes",), "new", "stays")
    while await history.outbox.write(step):
        assert present(await records.get(("notes",), "new")).value == "stays"
    assert [record.key for record in await records.list(("notes",))] == ["new"]
    assert not kept(history.outbox)


async def test_an_erasure_of_messages_is_left_to_the_relay_that_took_over(outbox: OutboxFile) -> None:
    await outbox.append(prepare("c", [Message.user("words of 1", id="m")]))
    step = partial(erase_messages_of, message_ids={"c": ["m"]}, known=NOTHING_KNOWN, **owner_erasure().keywords)
    assert await outbox.write(partial(step, incarnation=1)) is None
    assert await outbox.read(erased) == 0
    assert await outbox.write(partial(step, incarnation=0)) is True
    assert await outbox.read(erased) == 1
