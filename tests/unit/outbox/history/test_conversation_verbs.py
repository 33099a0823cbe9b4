"""The verbs of a conversation: what they undo and what they refuse; pending or saved, store up or down."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from letopis import Conversation, Event, Held, History, InvalidInput, Message
from letopis.outbox.history import _path as back
from letopis.store import ConversationGone, ConversationStarted, Reaction, RecordedMessage, StoreUnavailable
from tests.support.relays import deliver_all
from tests.support.sayings import present


def said(*texts: str) -> list[Message]:
    """Messages whose text is their id: ``u...`` of a user, ``s...`` of the system, else of an assistant."""
    roles = {"u": "user", "s": "system"}
    return [Message(role=roles.get(text[0], "assistant"), content=text, id=text) for text in texts]


async def path(history: History, name: str = "c1") -> list[str]:
    return [one.id for one in await history.messages(name)]


async def whole(history: History, name: str = "c1") -> tuple[Any, ...]:
    """All that a reader sees of a conversation and that does not change with its delivery."""

    def lasting(one: Conversation | RecordedMessage) -> tuple[Any, ...]:
        if isinstance(one, Conversation):
            return one.title, one.state, one.metadata, one.message_count, one.tokens, one.updated_at
        return one.message, one.on_path, one.edited, one.redacted, one.reactions, one.delivery, one.delivery_data

    found = present(await history.chat(name).conversation())
    return lasting(found), [lasting(one) for one in await history.messages(name, every=True)]


async def same_when_delivered(history: History) -> None:
    before = await whole(history)
    assert await path(history) == [one.id for one in await history.messages("c1", every=True) if one.on_path]
    await deliver_all(history)
    assert await whole(history) == before


@pytest.fixture(params=["pending", "saved", "half"])
async def chat(request: pytest.FixtureRequest, history: History) -> History:
    """Two turns after a system message: all of it pending, all of it saved, or the second turn pending."""
    await history.append("c1", *said("s0", "u1", "a1"), owner="42")
    if request.param == "half":
        await deliver_all(history)
    await history.append("c1", *said("u2", "tool", "a2"))
    if request.param == "saved":
        await deliver_all(history)
    return history


class TestTakingBack:
    @pytest.mark.parametrize("turns", [2, 3, 1000])
    async def test_undo_of_several_turns(self, chat: History, turns: int) -> None:
        await chat.chat("c1").undo(turns)
        assert await path(chat) == ["s0"]
        await same_when_delivered(chat)

    async def test_undo_of_the_first_message_leaves_none(self, history: History) -> None:
        await history.append("c1", *said("u1", "a1"))
        await history.chat("c1").undo()
        assert (await path(history), await history.chat("c1").undo()) == ([], None)
        await same_when_delivered(history)

    async def test_pop_gives_back_what_it_takes(self, chat: History) -> None:
        popped = [await chat.chat("c1").pop() for _ in range(7)]
        assert [None if one is None else one.id for one in popped] == ["a2", "tool", "u2", "a1", "u1", "s0", None]
        assert await path(chat) == []
        await same_when_delivered(chat)

    async def test_regenerate_keeps_the_question(self, chat: History) -> None:
        asked = await chat.chat("c1").regenerate()
        assert [one.id for one in asked] == ["u2"]
        assert await path(chat) == ["s0", "u1", "a1", "u2"]
        # Nothing to take away any more: nothing is written.
        before = await chat.chat("c1").conversation()
        assert [one.id for one in await chat.chat("c1").regenerate()] == ["u2"]
        assert await chat.chat("c1").conversation() == before
        await chat.append("c1", *said("better"))
        assert await path(chat) == ["s0", "u1", "a1", "u2", "better"]
        await same_when_delivered(chat)

    async def test_regenerate_where_nobody_asked(self, history: History) -> None:
        await history.append("c1", *said("s0", "a1"))
        assert await history.chat("c1").regenerate() == ()
        assert await history.chat("nowhere").regenerate() == ()
        assert await path(history) == ["s0", "a1"]
        assert await history.chat("nowhere").conversation() is None

    async def test_rewind_to_a_message(self, chat: History) -> None:
        await chat.chat("c1").rewind(to="u2", reason="wrong tool")
        assert await path(chat) == ["s0", "u1", "a1", "u2"]
        with pytest.raises(InvalidInput, match="to:"):
            await chat.chat("c1").rewind(to="a2")
        await chat.chat("c1").rewind(to="u1")
        for _ in range(2):
            with pytest.raises(InvalidInput, match="to:"):
                await chat.chat("c1").rewind(to="u2")
            await same_when_delivered(chat)
        assert await path(chat) == ["s0", "u1"]

    async def test_small_pages_find_what_is_far_back(self, history: History, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(back, "MIN_PAGE_SIZE", 2)
        monkeypatch.setattr(back, "MAX_PAGE_SIZE", 3)
        await history.append("c1", *said("s0", "u1", *(f"a{number}" for number in range(20))))
        await deliver_all(history)
        await history.append("c1", *said("b1", "b2"))
        assert [one.id for one in await history.chat("c1").regenerate()] == ["u1"]
        assert await path(history) == ["s0", "u1"]

    async def test_an_undo_takes_what_came_meanwhile(self, chat: History, monkeypatch: pytest.MonkeyPatch) -> None:
        """A message comes between the look and the undo: it is a turn of its own, and the one that goes."""
        reader = chat._parts.reader
        messages = reader.messages
        late = said("u3")

        async def slow(*arguments: Any, **window: Any) -> Any:
            page = await messages(*arguments, **window)
            if late:
                await chat.append("c1", late.pop())
            return page

        monkeypatch.setattr(reader, "messages", slow)
        await chat.chat("c1").undo()
        monkeypatch.undo()

        assert await path(chat) == ["s0", "u1", "a1", "u2", "tool", "a2"]

    async def test_concurrent_undos_take_a_turn_each(self, history: History) -> None:
        await history.append("c1", *said(*(f"{who}{number}" for number in range(9) for who in "ua")))
        await asyncio.gather(*(history.chat("c1").undo() for _ in range(3)))
        assert len(await path(history)) == 12

    @pytest.mark.parametrize("turns", [0, -1, True, "1", None])
    async def test_a_wrong_number_of_turns(self, history: History, turns: Any) -> None:
        with pytest.raises(InvalidInput, match="turns"):
            await history.chat("c1").undo(turns)


class TestTargets:
    """A message that is known not to be there is no target."""

    async def test_all_verbs_of_a_message_refuse_one_that_is_not_there(self, chat: History) -> None:
        before = await whole(chat)
        for call in (
            chat.chat("c1").edit("absent", "x"),
            chat.chat("c1").redact("absent"),
            chat.chat("c1").react("absent", "👍"),
            chat.chat("c1").unreact("absent", "👍"),
            chat.chat("c1").react("absent", "rating", value=5),
            chat.chat("nowhere").edit("u1", "x"),
        ):
            with pytest.raises(InvalidInput, match="message_id"):
                await call
        with pytest.raises(InvalidInput, match="to:"):
            await chat.chat("c1").rewind(to="absent")
        assert await whole(chat) == before
        assert await chat.chat("nowhere").conversation() is None

    async def test_all_kinds_of_ids_are_found(self, history: History) -> None:
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
    async def test_what_a_fork_inherits_is_its_parents(self, history: History, saved: bool) -> None:
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
        assert [one.id for one in await history.chat("c1").regenerate()] == ["u2"]
        await history.chat("c1").undo()
        assert await path(history) == ["s0", "u1", "a1"]
        with pytest.raises(InvalidInput, match="to:"):
            await history.chat("c1").rewind(to="u2")
        await history.chat("c1").rewind(to="u1")
        for _ in range(2):
            assert await path(history) == ["s0", "u1"]
            assert await path(history, "c0") == ["s0", "u1", "a1", "u2", "a2"]
            await deliver_all(history)
        await history.chat("c1").pop()
        await history.chat("c1").rewind(to=None)
        assert await path(history) == []

    async def test_while_the_store_is_away_nobody_knows(self, alone: History) -> None:
        await alone.append("c1", *said("u1", "a1"))
        await alone.chat("c1").edit("older", "x")
        await alone.chat("c1").react("older", "👍")
        await alone.chat("c1").rewind(to="u1")
        await alone.chat("c1").rewind(to="older")
        assert present(await alone.chat("c1").conversation()).pending == 7

    async def test_undo_while_the_store_is_away(self, alone: History) -> None:
        """The outbox knows that it holds all of its own events, and not what others have appended."""
        await alone.append("c1", *said("u1", "a1", "u2", "a2"))
        await alone.chat("c1").undo()
        assert present(await alone.chat("c1").pop()).id == "a1"
        for refused in (alone.chat("c1").undo(), alone.chat("c1").pop(), alone.chat("c1").regenerate()):
            with pytest.raises(StoreUnavailable, match="the history store is unreachable"):
                await refused
        assert await path(alone) == ["u1"]


class TestMessages:
    async def test_redacted_at_once_and_for_good(self, chat: History) -> None:
        await chat.chat("c1").edit("a2", "a secret")
        await chat.chat("c1").redact("a2", by="42", reason="asked")
        with pytest.raises(InvalidInput, match="erased"):
            await chat.chat("c1").edit("a2", "a secret again")
        assert (await chat.messages("c1", last=1))[0].text == ""
        await same_when_delivered(chat)
        (found,) = await chat.messages("c1", last=1)
        assert (found.text, found.redacted, found.edited) == ("", True, False)

    async def test_bad_input_writes_nothing(self, history: History) -> None:
        await history.append("c1", *said("u1"))
        before = await whole(history)
        chat: Any = history.chat("c1")
        for call in (
            chat.react("u1", ""),
            chat.react("u1", "x" * 256),
            chat.react("u1", "👍", actor=""),
            chat.react("u1", "👍", value=float("nan")),
            chat.react("u1", "rating", value=True),
            chat.react("u1", "rating", value=[1]),
            chat.unreact("u1", "\n"),
            chat.redact(""),
            chat.annotate([1]),
            chat.annotate({"a": "\0"}),
            chat.rename(None),
            chat.rewind(to=""),
            history.chat("").rewind(to=None),
            history.chat("").archive(),
        ):
            with pytest.raises(InvalidInput):
                await call
            assert await whole(history) == before


class TestConversations:
    async def test_deleted_is_gone(self, chat: History) -> None:
        await chat.chat("c1").delete(reason="asked")
        for _ in range(2):
            assert await path(chat) == []
            assert not await chat.conversations()
            for call in (
                chat.append("c1", Message.user("late")),
                chat.chat("c1").rename("late"),
                chat.chat("c1").rewind(to=None),
                chat.chat("c1").restore(),
                chat.chat("c1").activate(),
                chat.chat("c1").delete(),
                chat.chat("c1").fork(),
                chat.start("42", conversation_id="c1"),
            ):
                with pytest.raises(ConversationGone):
                    await call
            await deliver_all(chat)
        found = present(await chat.chat("c1").conversation())
        assert (found.state, found.owner_id, found.message_count) == ("deleted", "42", 0)

    async def test_what_another_outbox_has_deleted_is_gone_too(self, history: History, tmp_path: Path) -> None:
        await history.append("c1", ConversationStarted(owner_id="42"))
        await deliver_all(history)
        async with History(tmp_path / "other.outbox.db", store=history.store, relay=False) as other:
            await other.chat("c1").delete()
            await deliver_all(other)
        for call in (history.chat("c1").activate(), history.chat("c1").restore(), history.chat("c1").delete()):
            with pytest.raises(ConversationGone):
                await call

    async def test_there_is_no_such_conversation(self, history: History) -> None:
        nowhere = history.chat("nowhere")
        for call in (nowhere.archive, nowhere.restore, nowhere.delete, nowhere.activate):
            with pytest.raises(InvalidInput, match="no such conversation"):
                await call()
        assert await history.chat("nowhere").conversation() is None

    async def test_a_reset_everywhere_without_the_store_writes_nothing(self, alone: History) -> None:
        await alone.append("c1", *said("u1"))
        with pytest.raises(StoreUnavailable):
            await alone.chat("c1").reset(everywhere=True)
        assert await path(alone) == ["u1"]
        assert len(await alone.chat("c1").events()) == 2

    async def test_a_reset_everywhere_that_is_refused_records_nothing(self, history: History) -> None:
        await history.append("c1", *said("u1"), owner="42")
        await deliver_all(history)
        before = await whole(history)

        with pytest.raises(InvalidInput, match="no such conversation"):
            await history.chat("nowhere").reset(everywhere=True)
        with pytest.raises(InvalidInput, match="everywhere"):
            await history.chat("c1").reset(everywhere="no")  # type: ignore[arg-type]
        await history.store.erasures.hold("owner", "42", reason="a court asked")
        with pytest.raises(Held):
            await history.chat("c1").reset(everywhere=True)

        assert await whole(history) == before
        assert await history.store.erasures.after(0) == []
