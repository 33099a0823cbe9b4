"""Append: sequences without gaps, an id never with two contents, a conversation never with two owners."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from letopis import CallerError, Event, IdReused, InvalidInput, Message, OutboxFile
from letopis.outbox.event_log.append import append_events
from letopis.outbox.event_log.append_encoding import Prepared, prepare
from letopis.store import (
    Body,
    ConversationRenamed,
    ConversationRewound,
    ConversationStarted,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    Reuse,
)
from letopis.store.model.identifiers import derived_event_id
from tests.support.relays import sql


async def rows(outbox: OutboxFile, conversation_id: str = "c1") -> list[tuple[int, str, dict[str, Any]]]:
    statement = "SELECT sequence, type, data FROM letopis_outbox_log WHERE conversation_id = ? ORDER BY sequence"
    found = await sql(outbox, statement, (conversation_id,))
    return [(sequence, name, orjson.loads(data)) for sequence, name, data in found]


async def lane(outbox: OutboxFile, conversation_id: str = "c1") -> tuple[Any, ...]:
    statement = "SELECT owner_id, head, delivered, state FROM letopis_outbox_lanes WHERE conversation_id = ?"
    found = await sql(outbox, statement, (conversation_id,))
    return found[0] if found else ()


def said(text: str = "hi", **fields: Any) -> Prepared:
    return prepare("c1", [Message.user(text, **fields)])


HI = Message.user("hi")


@pytest.mark.parametrize(
    ("appends", "started"),
    [
        ([prepare("c1", [HI], owner="42")], [{"owner_id": "42"}]),
        # A beginning that was given is not said twice.
        ([prepare("c1", [ConversationStarted(owner_id="42", title="Tea"), HI])], [{"owner_id": "42", "title": "Tea"}]),
        # An owner beside a beginning without one still reaches the history.
        ([prepare("c1", [ConversationStarted(title="Tea")], owner="42")], [{"title": "Tea"}, {"owner_id": "42"}]),
        # It may become known later, and is said once.
        ([said(), *(prepare("c1", [Message.user(text)], owner="42") for text in "ab")], [{}, {"owner_id": "42"}]),
    ],
)
async def test_an_owner_is_said_once(outbox: OutboxFile, appends: list[Prepared], started: list[Any]) -> None:
    for one in appends:
        await outbox.append(one)
    found = await rows(outbox)
    assert found[0][1] == "conversation.started"
    assert [data for _, name, data in found if name == "conversation.started"] == started
    assert (await lane(outbox))[:2] == ("42", len(found))


@pytest.mark.parametrize(
    "other",
    [
        prepare("c1", [Message.user("mine")], owner="43"),
        prepare("c1", [ConversationStarted(owner_id="43")]),
        prepare("c1", [ConversationStarted(owner_id="42")], owner="43"),
    ],
)
async def test_another_owner_is_refused_and_nothing_is_written(outbox: OutboxFile, other: Prepared) -> None:
    await outbox.append(prepare("c1", [Message.user("hi")], owner="42"))
    with pytest.raises(InvalidInput, match="owner"):
        await outbox.append(other)
    assert (await lane(outbox))[:2] == ("42", 2)


async def test_two_owners_in_one_append_are_refused(outbox: OutboxFile) -> None:
    with pytest.raises(InvalidInput, match="owner"):
        await outbox.append(prepare("c1", [ConversationStarted(owner_id="1"), ConversationStarted(owner_id="2")]))
    assert await lane(outbox) == ()


async def test_the_same_event_id_again_is_found_though_it_derives_from_nothing(outbox: OutboxFile) -> None:
    event = Event(type="custom.paid", data={"n": 1})
    first = await outbox.append(prepare("c1", [event]))
    assert (await outbox.append(prepare("c1", [event]))).sequences == first.sequences
    for name, other in (("c1", Event(type="custom.paid", data={"n": 2}, event_id=event.event_id)), ("c2", event)):
        with pytest.raises(IdReused):
            await outbox.append(prepare(name, [other]))

    assert len(await rows(outbox)) == 2
    assert await lane(outbox, "c2") == ()


async def test_other_content_under_a_message_id_is_refused_by_name(outbox: OutboxFile) -> None:
    await outbox.append(said("yes", id="m-1"))
    with pytest.raises(IdReused, match="m-1") as caught:
        await outbox.append(prepare("c1", [Message.user("new"), Message.user("no", id="m-1")]))
    error = caught.value
    assert isinstance(error, InvalidInput)
    assert isinstance(error, CallerError)
    assert (error.message_id, error.reuse, error.field) == ("m-1", Reuse.OTHER_CONTENT, "message_id")
    assert error.event_id == derived_event_id("c1", "m-1")
    assert len(await rows(outbox)) == 2, "the append is all or nothing"


async def test_an_id_twice_in_one_append_is_one_event_or_an_error(outbox: OutboxFile) -> None:
    twice = await outbox.append(prepare("c1", [Message.user("a", id="m"), Message.user("a", id="m")]))
    assert twice.sequences == (2, 2)
    with pytest.raises(IdReused):
        await outbox.append(prepare("c1", [Message.user("b", id="n"), Message.user("c", id="n")]))
    assert len(await rows(outbox)) == 2


async def test_a_part_that_is_there_already_keeps_its_place(outbox: OutboxFile) -> None:
    await outbox.append(said("one", id="m-1"))
    appended = await outbox.append(
        prepare("c1", [Message.user("two", id="m-2"), Message.user("one", id="m-1"), Message.user("three", id="m-3")])
    )
    assert appended.sequences == (3, 2, 4)
    assert appended.message_ids == ("m-2", "m-1", "m-3")


def test_metadata_and_time_go_to_every_event_that_is_made_here() -> None:
    moment = datetime(2026, 5, 1, tzinfo=UTC)
    what: list[Message | Body] = [Message.user("x", id="m"), ConversationRenamed(title="T")]
    prepared = prepare("c1", what, metadata={"k": 1}, occurred_at=moment)
    assert {event.metadata for event in prepared.events} == {'{"k":1}'}
    assert {event.occurred_at for event in prepared.events} == {int(moment.timestamp() * 1_000_000)}
    assert prepared.message_ids == ("m", None)


async def test_many_appends_in_one_transaction_are_judged_one_by_one(outbox: OutboxFile) -> None:
    """A refused append in the middle of a group takes nothing with it, and leaves no hole in the sequences."""
    appends = [
        prepare("c1", [Message.user("a", id="m-1")], owner="1"),
        prepare("c1", [Message.user("b", id="m-1")]),
        prepare("c1", [Message.user("c")], owner="2"),
        prepare("c2", [Message.user("d")]),
        prepare("c1", [Message.user("e")]),
    ]

    outcomes = await outbox.write(lambda connection: append_events(connection.connection.cursor(), appends, now_us=1))

    assert [getattr(one, "sequences", type(one)) for one in outcomes] == [(2,), IdReused, InvalidInput, (2,), (3,)]
    assert [sequence for sequence, _, _ in await rows(outbox)] == [1, 2, 3]


async def test_a_message_that_left_the_path_is_the_same_event_still(outbox: OutboxFile) -> None:
    first = await outbox.append(said(id="m"))
    await outbox.append(prepare("c1", [ConversationRewound()]))
    again = prepare("c1", [Message.user("hi", id="m")])

    done = await outbox.write(lambda connection: append_events(connection.connection.cursor(), [again] * 2, now_us=1))

    assert done == [replace(first, written=0)] * 2


async def test_more_ids_than_one_statement_takes_are_looked_up(outbox: OutboxFile) -> None:
    messages = [Message.user(str(number), id=f"m-{number}") for number in range(1_001)]
    first = await outbox.append(prepare("c1", messages))
    again = await outbox.append(prepare("c1", messages))
    assert again.sequences == first.sequences == tuple(range(2, 1_003))
    assert again.written == 0


async def test_append_tells_that_content_was_erased(outbox: OutboxFile) -> None:
    """The WAL has to be truncated then."""
    await outbox.append(prepare("c1", [Message.user("one", id="m"), Message.user("two", id="gone")]))
    for body, erased in (
        (MessageFailed(message_id="m", reason="words"), False),
        (MessageRedacted(message_id="gone"), True),
        (MessageSent(message_id="gone", platform_ids={"chat": 1}), False),
        (MessageFailed(message_id="gone", reason="words"), True),
    ):
        assert (await outbox.append(prepare("c1", [body]))).erased is erased
