"""What an erasure reaches in an outbox file, and what a hold spares there; each by one step, without a store."""

from functools import partial
from typing import Any
from uuid import UUID

import pytest

from letopis import History, Message
from letopis.adapters.telegram_core.local_state import LocalState
from letopis.outbox import OutboxFile
from letopis.outbox.event_log import drafts
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.contents import read_contents
from letopis.outbox.event_log.effects import erase_superseded
from letopis.outbox.event_log.erasing import erase_delivered
from letopis.outbox.event_log.erasures import NOTHING_KNOWN, carry_out_step, erase_messages_of
from letopis.outbox.event_log.held import HeldSubjects
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.event_log.statements import on_cursor
from letopis.store import (
    ConversationActivated,
    ConversationRenamed,
    ConversationRewound,
    ConversationTrimmed,
    MessageEdited,
)
from letopis.store.erasures import Erasure
from letopis.store.model.events import utc_now
from letopis.store.rules.preconditions import Conflict
from tests.support.relays import sql
from tests.support.sayings import occurs

WORDS = "gheldrimmer"


def step(kind: Any, *, subject: str = "42", how: Any = "reset", held: HeldSubjects | None = None) -> partial[Any]:
    erasure = Erasure(
        number=3,
        kind=kind,
        subject=subject,
        how=how,
        reason=None,
        requested_by=None,
        origin_id=None,
        positions=(0,),
        erasure_id=UUID(int=3),
        answers=False,
        recorded_at=utc_now(),
    )
    return partial(carry_out_step, erasure=erasure, held=held or HeldSubjects(), incarnation=0, now_us=1)


async def delivered(outbox: OutboxFile) -> None:
    """Have the store know everything, and carry out what waited for that."""
    await sql(outbox, "UPDATE letopis_outbox_lanes SET delivered = head, pending_since = NULL")
    while await outbox.write(partial(on_cursor, work=erase_delivered)):
        pass


@pytest.mark.parametrize("kind", ["owner", "person"])
async def test_the_records_of_an_owner_and_of_a_person_go(history: History, kind: str) -> None:
    await history.records(owner="42").put(("profile",), "name", WORDS)
    await history.records(owner="43").put(("profile",), "name", "stays")
    assert await history.outbox.write(step(kind)) is False
    bodies = await sql(history.outbox, "SELECT body FROM letopis_outbox_record_bodies")
    assert bodies == [(b'"stays"',)]


@pytest.mark.parametrize(("how", "left"), [("delete", ["43"]), ("reset", ["42", "43"])])
async def test_who_is_deleted_has_no_active_conversation(outbox: OutboxFile, how: str, left: list[str]) -> None:
    for owner in ("42", "43"):
        await outbox.append(prepare(f"c{owner}", [ConversationActivated()], owner=owner))
    assert await outbox.write(step("owner", how=how)) is False
    owners = await sql(outbox, "SELECT owner_id FROM letopis_outbox_owners ORDER BY owner_id")
    assert [owner for (owner,) in owners] == left


async def test_an_erasure_is_left_to_the_relay_that_took_over(outbox: OutboxFile) -> None:
    await outbox.append(prepare("c", [Message.user(WORDS)], owner="42"))
    assert await outbox.write(partial(step("owner"), incarnation=1)) is None
    assert occurs(WORDS, outbox.path)
    assert await outbox.write(step("owner")) is False
    assert not await sql(outbox, f"SELECT 1 FROM letopis_outbox_events WHERE data LIKE '%{WORDS}%'")


async def test_messages_of_a_person_stay_where_a_hold_is(outbox: OutboxFile) -> None:
    held = HeldSubjects(frozenset({"by itself"}), frozenset({"43"}))
    for name, owner in (("by itself", "44"), ("by its owner", "43"), ("free", "44")):
        await outbox.append(prepare(name, [Message.user(WORDS, id="m")], owner=owner))
    names = ("by itself", "by its owner", "free")
    work = partial(erase_messages_of, message_ids={name: ["m"] for name in names}, known=NOTHING_KNOWN)
    assert await outbox.write(partial(work, **step("person", held=held).keywords)) is True
    left = "SELECT conversation_id FROM letopis_outbox_log WHERE type = 'message.appended' AND salt IS NOT NULL"
    assert await sql(outbox, f"{left} ORDER BY 1") == [("by its owner",), ("by itself",)]


async def test_adapters_keep_what_is_on_hold(history: History) -> None:
    """Whether the file has a lane of the conversation or the row alone tells whose it is."""
    state = LocalState(history)
    await state.prepare()
    await history.append("lane", Message.user("hello"), owner="43")
    rows = [("lane", None), ("row", "43"), (None, "43"), ("by itself", "44"), ("free", "44")]
    async with history.transaction() as tx:
        for number, (name, owner) in enumerate(rows):
            await state.receive(tx, 1, {"update_id": number, "text": WORDS}, name, owner=owner, author="42")
    held = HeldSubjects(frozenset({"by itself"}), frozenset({"43"}))
    assert await history.outbox.write(step("person", held=held)) is False
    emptied = await sql(history.outbox, "SELECT conversation_id FROM letopis_telegram_updates WHERE data = ''")
    assert emptied == [("free",)]


@pytest.mark.parametrize("erased", ["message", "conversation"])
async def test_what_the_store_erased_elsewhere_is_neither_a_draft_nor_unconfirmed(
    outbox: OutboxFile, erased: Any
) -> None:
    await outbox.append(prepare("c", [Message.assistant(WORDS, id="m"), Message.assistant("other", id="n")]))

    def reply(cursor: Any, message_id: str) -> None:
        draft = drafts.Draft("c", message_id, UUID(int=ord(message_id)), None, WORDS, "w", started_at=1, updated_at=1)
        assert drafts.begin(cursor, draft) and drafts.save(cursor, draft)
        drafts.mark_unconfirmed(cursor, drafts.UnconfirmedDraft("c", message_id, draft.event_id, None, "w", 1))

    for message_id in "mn":
        await outbox.write(lambda connection, name=message_id: on_cursor(connection, reply, name))
    conflicts = {2: Conflict(expected=0, actual=1, erased=erased)}
    await outbox.write(lambda connection: on_cursor(connection, erase_superseded, "c", conflicts))
    left = [("n",)] if erased == "message" else []
    for table in ("drafts", "unconfirmed"):
        assert await sql(outbox, f"SELECT message_id FROM letopis_outbox_{table}") == left
    shown = "SELECT sequence FROM letopis_outbox_log WHERE type = 'message.appended' AND salt IS NOT NULL"
    assert await sql(outbox, shown) == [(3,)]


async def test_a_reset_after_a_trim_takes_the_state_that_the_trim_left(outbox: OutboxFile) -> None:
    await outbox.append(prepare("c", [ConversationRenamed(title=WORDS), Message.user(WORDS)]))
    await delivered(outbox)
    await outbox.append(prepare("c", [ConversationTrimmed(upto=3, rule="r", sequence=3)]))
    await delivered(outbox)
    holding = f"SELECT type FROM letopis_outbox_events WHERE data LIKE '%{WORDS}%'"
    assert await sql(outbox, holding) == [("conversation.renamed",)]
    await outbox.append(prepare("c", [ConversationRewound(erase=True)]))
    await delivered(outbox)
    assert await sql(outbox, holding) == []


async def test_a_trim_takes_later_changes_of_its_messages_once_it_is_delivered(outbox: OutboxFile) -> None:
    await outbox.append(prepare("c", [Message.user(WORDS, id="old")]))
    edits = [MessageEdited(message_id=name, content=WORDS) for name in ("old", "young", "of another outbox")]
    await outbox.append(prepare("c", [Message.user("young", id="young"), *edits]))
    await delivered(outbox)
    await outbox.append(prepare("c", [ConversationTrimmed(upto=2, rule="r", sequence=2)]))
    await outbox.write(lambda connection: on_cursor(connection, erase_delivered))
    holding = f"SELECT sequence FROM letopis_outbox_events WHERE data LIKE '%{WORDS}%' ORDER BY sequence"
    assert await sql(outbox, holding) == [(2,), (4,), (5,), (6,)], "a hold may still refuse it"
    await delivered(outbox)
    assert await sql(outbox, holding) == [(5,), (6,)]


async def test_large_content_stays_while_a_later_message_shows_it(outbox: OutboxFile) -> None:
    text = WORDS * 40_000
    for _ in range(2):
        await outbox.append(prepare("c", [Message.user(text)]))
    [(name,)] = await sql(outbox, "SELECT name FROM letopis_outbox_contents")
    await sql(outbox, "UPDATE letopis_outbox_lanes SET delivered = head, pending_since = NULL")
    await sql(outbox, "UPDATE letopis_outbox_events SET appended_at = 0")
    assert await outbox.write(Pruner(Retention(keep_last=1), outbox.now_us)) is False
    assert await sql(outbox, "SELECT sequence FROM letopis_outbox_events") == [(3,)]
    assert await outbox.read(lambda connection: read_contents(connection, "c", [name])) == {name: text.encode()}
