"""The verbs of a conversation at the edges: what is there no more or is not known, races, forks."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from letopis import Event, Held, History, InvalidInput, Message
from letopis.outbox.history import path as back
from letopis.store import ConversationGone, ConversationStarted, Reaction, StoreUnavailable
from tests.support.outboxes import open_apart
from tests.support.relays import deliver_all
from tests.support.sayings import present


def said(*texts: str) -> list[Message]:
    """Messages whose text is their id: ``u...`` of a user, ``s...`` of the system, else of an assistant."""
    roles = {"u": "user", "s": "system"}
    return [Message(role=roles.get(text[0], "assistant"), content=text, id=text) for text in texts]


async def path(history: History, name: str = "c1") -> list[str]:
    return [one.id for one in await history.messages(name)]


@pytest.mark.parametrize("change", ["rename", "annotate", "tag"])
async def test_conversation_that_is_not_there_is_not_described(history: History, tmp_path: Path, change: str) -> None:
    def described(one: History, name: str) -> Any:
        return getattr(one.chat(name), change)({"tea": "green"} if change == "annotate" else "tea")

    await history.append("c1", *said("u1"))
    await described(history, "c1")
    await deliver_all(history)
    with pytest.raises(InvalidInput, match="there is no such conversation"):
        await described(history, "typo")
    assert await history.chat("typo").conversation() is None
    # What another outbox has begun is known to the store only.
    async with open_apart(tmp_path / "other.outbox.db", store=history.store, relay=False, watch=False) as other:
        await described(other, "c1")


async def test_conversation_that_may_be_there_is_described_while_the_store_is_away(alone: History) -> None:
    await alone.chat("unknown").rename("tea")
    assert present(await alone.chat("unknown").conversation()).title == "tea"


async def test_undo_of_the_first_message_leaves_none(history: History) -> None:
    chat = history.chat("c1")
    await history.append("c1", *said("u1", "a1"))
    await chat.undo()
    for _ in range(2):
        assert (await path(history), await chat.undo(), await chat.pop()) == ([], None, None)
        await deliver_all(history)
    await history.append("c1", *said("s0"))
    assert present(await chat.pop()).id == "s0"
    assert (await path(history), await chat.regenerate()) == ([], ())


async def test_all_answers_to_a_question_come_in_order(history: History) -> None:
    chat = history.chat("c1")

    async def answers(question: str) -> list[list[str]]:
        return [[message.id for message in answer] for answer in await chat.answers(question)]

    await history.append("c1", *said("s0", "u0", "u1", "a1"))
    await chat.regenerate()
    await history.append("c1", *said("a2", "u2", "a3"))
    await deliver_all(history)
    await chat.undo()
    assert await answers("u1") == [["a1"], ["a2"]], "not a third time, although a2 was on the path again"
    await chat.rewind(to="u1")
    await history.append("c1", *said("a4", "a5"))
    await chat.pop()
    await history.append("c1", *said("a6"))
    assert await answers("u0") == await answers("u1") == [["a1"], ["a2"], ["a4", "a5"], ["a4", "a6"]]
    assert (await answers("u2"), await answers("a1"), await answers("none")) == ([["a3"]], [], [])
    assert [message.on_path for answer in await chat.answers("u1") for message in answer][-3:] == [False, True, True]
    await chat.rewind(to=None)
    await history.append("c1", *said("a7"))
    assert await answers("u1") == [["a1"], ["a2"], ["a4", "a5"], ["a4", "a6"]]


async def test_undo_while_the_store_is_away(alone: History) -> None:
    """The outbox knows that it holds all of its own events, and not what others have appended."""
    chat = alone.chat("c1")
    await alone.append("c1", *said("u1", "a1", "u2", "a2"))
    await chat.edit("older", "x")
    await chat.undo()
    assert present(await chat.pop()).id == "a1"
    for refused in (chat.undo(), chat.pop(), chat.regenerate()):
        with pytest.raises(StoreUnavailable, match="the history store is unreachable"):
            await refused
    assert await path(alone) == ["u1"]
    await chat.rewind(to="older")
    assert present(await chat.conversation()).pending == 9


async def test_small_pages_find_what_is_far_back(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(back, "MIN_PAGE_SIZE", 2)
    monkeypatch.setattr(back, "MAX_PAGE_SIZE", 3)
    await history.append("c1", *said("s0", "u1", *(f"a{number}" for number in range(20))))
    await deliver_all(history)
    await history.append("c1", *said("b1", "b2"))
    assert [one.id for one in await history.chat("c1").regenerate()] == ["u1"]
    assert await path(history) == ["s0", "u1"]
    before = await history.chat("c1").conversation()
    assert [one.id for one in await history.chat("c1").regenerate()] == ["u1"]
    assert await history.chat("c1").conversation() == before, "with nothing to take away, nothing is written"


async def test_an_undo_takes_what_came_meanwhile(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message comes between the look and the undo: it is a turn of its own, and the one that goes."""
    await history.append("c1", *said("u1", "a1", "u2", "a2"))
    reader = history._parts.reader
    messages = reader.messages
    late = said("u3")

    async def slow(*arguments: Any, **window: Any) -> Any:
        page = await messages(*arguments, **window)
        if late:
            await history.append("c1", late.pop())
        return page

    monkeypatch.setattr(reader, "messages", slow)
    await history.chat("c1").undo()
    assert await path(history) == ["u1", "a1", "u2", "a2"]


async def test_concurrent_undos_take_a_turn_each(history: History) -> None:
    await history.append("c1", *said(*(f"{who}{number}" for number in range(9) for who in "ua")))
    await asyncio.gather(*(history.chat("c1").undo() for _ in range(3)))
    assert len(await path(history)) == 12


async def test_all_kinds_of_ids_are_found(history: History) -> None:
    """Chosen by the caller, made by the message, and of an event of the caller's own making."""
    made = Message.user("made")
    own = Event(type="message.appended", data=Message.user("own", id="own").to_data())
    await history.append("c1", *said("u1"), made, own)
    for _ in range(2):
        for name in ("u1", made.id, "own"):
            await history.chat("c1").react(name, "👍", actor="42")
            await history.chat("c1").edit(name, "edited")
        await deliver_all(history)

    found = await history.messages("c1")
    assert [(one.text, one.reactions) for one in found] == [("edited", (Reaction(key="👍", actor="42"),))] * 3


@pytest.mark.parametrize("saved", [False, True])
async def test_what_a_fork_inherits_is_its_parents(history: History, saved: bool) -> None:
    await history.append("c0", *said("s0", "u1", "a1", "u2", "a2"), owner="42")
    fork = {"conversation_id": "c0", "event_id": str((await history.messages("c0"))[3].event_id)}
    await history.append("c1", ConversationStarted(forked_from=fork), *said("a3"), owner="42")
    if saved:
        await deliver_all(history)
    assert await path(history) == ["s0", "u1", "a1", "u2", "a3"]
    chat = history.chat("c1")
    for call in (chat.react("u1", "👍"), chat.edit("u1", "x"), chat.redact("u1")):
        with pytest.raises(InvalidInput, match="message_id"):
            await call
    assert [one.id for one in await chat.regenerate()] == ["u2"]
    await chat.undo()
    with pytest.raises(InvalidInput, match="to:"):
        await chat.rewind(to="u2")
    await chat.rewind(to="u1")
    for _ in range(2):
        assert await path(history) == ["s0", "u1"]
        assert await path(history, "c0") == ["s0", "u1", "a1", "u2", "a2"]
        await deliver_all(history)


async def test_deleted_is_gone(history: History, tmp_path: Path) -> None:
    await history.append("c1", *said("u1", "a1"), owner="42")
    chat = history.chat("c1")
    await chat.delete(reason="asked")
    for _ in range(2):
        assert await path(history) == []
        assert not await history.conversations()
        for call in (
            history.append("c1", Message.user("late")),
            chat.rename("late"),
            chat.rewind(to=None),
            chat.restore(),
            chat.activate(),
            chat.delete(),
            chat.fork(),
            history.start("42", conversation_id="c1"),
        ):
            with pytest.raises(ConversationGone):
                await call
        await deliver_all(history)
    found = present(await chat.conversation())
    assert (found.state, found.owner_id, found.message_count) == ("deleted", "42", 0)
    async with History(tmp_path / "other.outbox.db", store=history.store, relay=False) as other:
        for call in (other.chat("c1").activate(), other.chat("c1").restore(), other.chat("c1").delete()):
            with pytest.raises(ConversationGone):
                await call


async def test_there_is_no_such_conversation_or_number_of_turns(history: History) -> None:
    nowhere: Any = history.chat("nowhere")
    for call in (nowhere.archive, nowhere.restore, nowhere.delete, nowhere.activate):
        with pytest.raises(InvalidInput, match="no such conversation"):
            await call()
    for turns in (0, -1, True, "1", None):
        with pytest.raises(InvalidInput, match="turns"):
            await nowhere.undo(turns)
    assert await nowhere.regenerate() == ()
    assert await nowhere.conversation() is None


async def test_a_reset_everywhere_that_is_refused_records_nothing(history: History) -> None:
    await history.append("c1", *said("u1"), owner="42")
    await deliver_all(history)
    with pytest.raises(InvalidInput, match="no such conversation"):
        await history.chat("nowhere").reset(everywhere=True)
    with pytest.raises(InvalidInput, match="everywhere"):
        await history.chat("c1").reset(everywhere="no")  # type: ignore[arg-type]
    await history.store.erasures.hold("owner", "42", reason="a court asked")
    with pytest.raises(Held):
        await history.chat("c1").reset(everywhere=True)
    assert len(await history.chat("c1").events()) == 2
    assert await history.store.erasures.after(0) == []


async def test_an_owner_on_hold_whom_the_outbox_alone_knows_keeps_what_was_said(history: History) -> None:
    await history.store.erasures.hold("owner", "42", reason="a court asked")
    await history.append("c1", *said("u1"), owner="42")
    for erase in (
        history.chat("c1").reset,
        partial(history.chat("c1").reset, everywhere=True),
        history.chat("c1").delete,
    ):
        with pytest.raises(Held):
            await erase()
    assert await history.store.erasures.after(0) == []
    assert [message.text for message in await history.messages("c1")] == ["u1"]


async def test_a_reset_everywhere_without_the_store_writes_nothing(alone: History) -> None:
    await alone.append("c1", *said("u1"))
    with pytest.raises(StoreUnavailable):
        await alone.chat("c1").reset(everywhere=True)
    assert len(await alone.chat("c1").events()) == 2


async def test_a_redaction_of_what_an_author_on_hold_wrote_is_refused(history: History) -> None:
    written = [Message.user("evidence", id=name, author="42") for name in ("stored", "pending")]
    await history.append("c1", written[0], Message.user("free", id="free", author="7"), owner="43")
    await deliver_all(history)
    await history.append("c1", written[1])
    await history.store.erasures.hold("owner", "42", reason="a court asked")
    for name in ("stored", "pending"):
        with pytest.raises(Held):
            await history.chat("c1").redact("free", name)
    assert [message.text for message in await history.messages("c1")] == ["evidence", "free", "evidence"]
    await history.chat("c1").redact("free")
