"""Conditional appends: what came since is looked at in the outbox at once, and a conflict writes nothing."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from letopis import ConversationGone, Event, History, IdReused, InvalidInput, Message, Receipt, VersionConflict
from letopis.store import (
    ConversationDeleted,
    ConversationRenamed,
    ConversationRewound,
    MessageEdited,
    MessageRedacted,
    Page,
    ReactionAdded,
    Seen,
)
from letopis.store.rules.preconditions import PRECONDITION_KEY
from tests.support.outboxes import prune
from tests.support.relays import sql

CHAT = "c1"


async def held(history: History) -> list[tuple[int, str]]:
    log = "SELECT sequence, type FROM letopis_outbox_log WHERE conversation_id = ? ORDER BY 1"
    return list(await sql(history.outbox, log, (CHAT,)))


async def said(history: History) -> list[str]:
    return [one.text for one in await history.messages(CHAT)]


async def asked(history: History) -> Receipt:
    """Append the question that all answer."""
    return await history.append(CHAT, Message.user("what?", id="m-1"))


async def refused(history: History, *what: Any, **options: Any) -> VersionConflict:
    """Append, and expect a conflict that writes nothing."""
    before = await held(history)
    with pytest.raises(VersionConflict) as caught:
        await history.append(CHAT, *(what or (Message.assistant("too late"),)), **options)
    assert await held(history) == before
    assert caught.value.conversation_id == CHAT
    assert "read it again" in str(caught.value)
    return caught.value


FORMS: list[Callable[[History], Any]] = [
    lambda history: history.append(CHAT, ReactionAdded(message_id="m-1", key="x")),
    lambda history: history.messages(CHAT, last=1),
    lambda history: history.chat(CHAT).conversation(),
    lambda history: history.context(CHAT, last=6),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("option", ["after", "expected"])
async def test_whatever_was_read_can_be_given_back(history: History, form: Callable[..., Any], option: str) -> None:
    await asked(history)
    seen = await form(history)
    await history.append(CHAT, Message.assistant("that"), **{option: seen})
    for same in (seen, seen.seen, seen.seen.sequence):
        assert (await refused(history, **{option: same})).actual == seen.seen.sequence + 1


async def test_what_is_not_there_yet_can_be_expected_empty_and_more_than_there_is_cannot(history: History) -> None:
    await history.append(CHAT, Message.user("first"), expected=(await history.messages(CHAT)).seen)
    for options in ({"expected": 0}, {"after": 0}, {"after": 7}):
        assert (await refused(history, **options)).actual == 2


LIKE, WORDS = ReactionAdded(message_id="m-1", key="like"), Message.user("and?")
EDIT, REDACTION = MessageEdited(message_id="m-1", content="WHAT?"), MessageRedacted(message_id="m-1")
RENAMED, PAID = ConversationRenamed(title="t"), Event(type="custom.paid")


@pytest.mark.parametrize(
    ("since", "conditions", "actual"),
    [
        *(([change], [{"after": 2}, {"expected": 2}], 3) for change in (WORDS, EDIT, REDACTION, ConversationRewound())),
        *(([change], [{"after": 2, "fail_if_types": {change.type}}], 3) for change in (LIKE, RENAMED, PAID)),
        *(([change], [{"expected": 2}], 3) for change in (LIKE, RENAMED, PAID)),
        ([LIKE, WORDS, Message.user("and?")], [{"after": 2}], 4),  # the first that is in the way
        *(([change], [{"after": 2}], None) for change in (LIKE, RENAMED, PAID)),
        ([WORDS], [{"after": 2, "fail_if_types": ()}], None),
    ],
)
async def test_what_changes_the_messages_is_in_the_way_and_for_a_strict_one_anything(
    history: History, since: list[Any], conditions: list[dict[str, Any]], actual: int | None
) -> None:
    await asked(history)
    await history.append(CHAT, *since)
    for options in conditions:
        if actual is not None:
            assert (await refused(history, **options)).actual == actual
        else:
            await history.append(CHAT, Message.assistant("that"), **options)


@pytest.mark.parametrize("name", ["m-2", ""], ids=["chosen", "made here"])
async def test_a_retry_succeeds_although_the_conversation_moved_on_or_was_deleted(history: History, name: str) -> None:
    question = await asked(history)
    answer = Message.assistant("that", id=name)
    first = await history.append(CHAT, answer, after=question)
    await history.append(CHAT, Message.user("and?"))
    before = await held(history)

    assert await history.append(CHAT, answer, after=question) == first
    assert await history.append(CHAT, answer, expected=question) == first
    assert await history.append(CHAT, answer) == first
    assert await held(history) == before
    # What Letopis notes is not part of the content.
    for what, metadata in ((Message.assistant("else", id=answer.id), {}), (answer, {"run": 2})):
        with pytest.raises(IdReused):
            await history.append(CHAT, what, metadata=metadata, after=question)

    await history.append(CHAT, ConversationDeleted(reason="asked"))
    forms: list[dict[str, Any]] = [{}, {"after": question}, {"expected": 4}]
    for options in forms:
        with pytest.raises(ConversationGone, check=lambda gone: gone.conversation_id == CHAT):
            await history.append(CHAT, Message.user("still there?"), **options)
    assert await history.append(CHAT, answer, after=question) == first


async def test_of_many_strict_appends_after_the_same_exactly_one_wins(history: History) -> None:
    question = await asked(history)

    outcomes = await asyncio.gather(
        *(history.append(CHAT, Message.assistant(f"answer {n}"), expected=question) for n in range(50)),
        *(history.append(CHAT, Message.assistant(f"reply {n}"), after=question) for n in range(50)),
        return_exceptions=True,
    )

    lost = [(one.expected, one.actual) for one in outcomes if isinstance(one, VersionConflict)]
    assert lost == [(question.sequence, question.sequence + 1)] * (len(outcomes) - 1)
    assert len(await held(history)) == 3


async def test_in_a_transaction_a_conflict_leaves_the_rest_of_it_usable(history: History) -> None:
    question = await asked(history)
    async with history.transaction() as tx:
        answer = await tx.append(CHAT, Message.assistant("that"), after=question)
        with pytest.raises(VersionConflict):
            await tx.append(CHAT, Message.assistant("late"), expected=question)
        await tx.append(CHAT, Message.assistant("more"), after=answer)
    async with AsyncSession(history.outbox.engine) as session, session.begin():
        with pytest.raises(VersionConflict):
            await history.append_in(session, CHAT, Message.assistant("late"), after=question)
        last = await history.append_in(session, CHAT, Message.assistant("own"), expected=await history.messages(CHAT))
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the end of the block is part of it
        async with history.transaction() as tx:
            await tx.append(CHAT, Message.assistant("taken back"), after=last)
            raise ZeroDivisionError
    await history.append(CHAT, Message.assistant("this"), expected=last)
    assert await said(history) == ["what?", "that", "more", "own", "this"]


async def test_what_was_let_go_may_have_been_anything(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db") as history:
        question = await asked(history)
        await history.append(CHAT, ReactionAdded(message_id="m-1", key="x"))
        last = await history.append(CHAT, ReactionAdded(message_id="m-1", key="y"))
        assert await history.drained(timeout=20)
        await prune(history, keep_last=1)
        assert [sequence for sequence, _ in await held(history)] == [last.sequence]

        await refused(history, after=question)
        await refused(history, after=0)
        seen = await history.messages(CHAT)
        await history.append(CHAT, Message.assistant("that"), after=seen)


NOTHING_SEEN = (-1, "7", 1.5, object(), 2**70, Seen(sequence=-1), Seen(sequence=2**63))
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"expected": 1, "after": 1}, "after"),
    ({"expected": 1, "fail_if_types": {"message.appended"}}, "fail_if_types"),
    ({"fail_if_types": {"message.appended"}}, "fail_if_types"),
    *(({"after": 1, "fail_if_types": types}, "fail_if_types") for types in ("message.appended", {"A b"}, [1], 5)),
    *(({"after": wrong}, "after") for wrong in NOTHING_SEEN),
    *(({"after": Seen(sequence=1, version=version)}, "after") for version in (-1, True)),
    *(({"expected": wrong}, "expected") for wrong in (-1, True, Page(()))),
]


@pytest.mark.parametrize(("options", "field"), WRONG)
async def test_a_condition_without_sense_is_refused(history: History, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, check=lambda refusal: refusal.field == field):
        await history.append(CHAT, Message.user("hi"), **options)
    assert await held(history) == []


@pytest.mark.parametrize("key", [PRECONDITION_KEY, "letopis.", "letopis.mine"])
async def test_what_letopis_notes_itself_is_refused_from_callers(history: History, key: str) -> None:
    with pytest.raises(InvalidInput, match="Letopis"):
        await history.append(CHAT, Message.user("hi"), metadata={key: 1})
    with pytest.raises(InvalidInput, match="Letopis"):
        await history.append(CHAT, Event(type="custom.x", metadata={key: {"sequence": 0}}))
    assert await held(history) == []
