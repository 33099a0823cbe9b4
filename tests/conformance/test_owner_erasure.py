"""All words of an owner or of a person, through every outbox: also through one that was offline at the erasure."""

from typing import Any
from unittest.mock import patch

import pytest

from letopis import Closed, ConversationGone, ConversationStore, Held, History, InvalidInput, Message, Selection
from letopis.outbox.event_log.statements import fetch_all
from letopis.outbox.history.erasing import register
from letopis.outbox.operations.repair import fix, pause, resume
from letopis.outbox.relay.erasures import ErasureCarrier
from letopis.store.ops.rebuild import rebuild
from tests.conformance.tables import on_sqlite
from tests.support.relays import until
from tests.support.sayings import Bots, assert_nowhere, drain, dump, occurs, present

WORDS = "gheldrimmer"


class Killed(Exception): ...


async def texts(store: ConversationStore, chat: str) -> list[str]:
    return [message.text for message in await store.messages(chat, every=True)]


async def speak(history: History, chat: str, *, owner: str | None = None, words: str = WORDS) -> None:
    await history.append(chat, Message.user(f"{words} said"), owner=owner, metadata={"about": words})
    await history.append(chat, Message.assistant(f"{words} answered"))
    await history.chat(chat).annotate({"note": words})
    await history.records(conversation=chat).put(("notes",), "key", {"value": words}, tags={"tag": words})


@pytest.mark.parametrize("how", ["reset", "delete"])
async def test_what_an_offline_outbox_held_stays_unreadable(store: ConversationStore, bots: Bots, how: str) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await drain(one)
    await speak(two, "shared")  # it was never told whose the conversation is
    await drain(two)
    await speak(two, "shared")
    await speak(two, "new", owner="42")
    await two.chat("new").activate()
    await two.records(owner="42").put(("profile",), "name", WORDS)
    await speak(two, "other", owner="43", words="stays")
    await erase(one, "42", how)
    await drain(one)
    assert [behind.name for behind in await store.erasures.unacknowledged()] == ["two.outbox.db"]
    await drain(two)
    assert await store.erasures.unacknowledged() == []
    if how == "delete":
        with pytest.raises(ConversationGone):
            await two.append("new", Message.user("too late"))
    active = await two.outbox.read(lambda file: fetch_all(file, "SELECT owner_id FROM letopis_outbox_owners"))
    assert [owner for (owner,) in active] == ([] if how == "delete" else ["42"])
    await assert_nowhere(WORDS, store, one, two)
    assert "stays said" in await texts(store, "other")
    shared, new = [present(await store.conversation(chat)) for chat in ("shared", "new")]
    assert shared.state == new.state == ("deleted" if how == "delete" else "active")
    assert new.message_count == 0


async def greet(history: History) -> None:
    """Have an outbox known to the store: a new one begins at the present number."""
    await history.append("hello", Message.user("hello"), owner="41")


async def erase(history: History, owner: str, how: Any) -> None:
    await history.erase(owner=owner, how=how, reason="asked")


@on_sqlite
async def test_new_words_after_the_erasure_survive(store: ConversationStore, one: History, two: History) -> None:
    await speak(one, "shared", owner="42")
    await greet(two)
    await drain(one, two)
    await speak(two, "shared")
    await speak(two, "new", owner="42")
    await erase(one, "42", "reset")
    await drain(one)
    await one.append("shared", Message.user("new words through one"))
    await drain(one)
    await drain(two)
    await two.append("shared", Message.user("new words through two"))
    await two.append("new", Message.user("new words in the other chat"))
    await drain(two)
    shown = [message.text for message in await one.messages("shared") if message.text]
    assert shown == ["new words through one", "new words through two"]
    assert [message.text for message in await store.messages("new")] == ["new words in the other chat"]
    await assert_nowhere(WORDS, store, one, two)


@on_sqlite
async def test_a_new_outbox_begins_at_the_present_number(store: ConversationStore, one: History, two: History) -> None:
    await speak(one, "shared", owner="42")
    await drain(one)
    await erase(one, "42", "reset")
    await drain(one)
    await two.append("shared", Message.user("words of a new outbox"))
    await drain(two)
    assert "words of a new outbox" in await texts(store, "shared")


@on_sqlite
async def test_drafts_and_unconfirmed_replies_go(store: ConversationStore, one: History, two: History) -> None:
    await speak(one, "shared", owner="42")
    await speak(two, "shared", owner="42")
    await drain(one, two)
    with pytest.raises(Closed, match="erased while the reply was written"):  # noqa: PT012 - the block of the reply raises
        async with two.reply("chat", owner="42", every=0) as reply:
            await reply.add(f"{WORDS} half")
            await until(lambda: reply.kept > 0)
            assert occurs(WORDS, two.outbox.path)
            await erase(one, "42", "reset")
            await drain(one, two)
            await until(lambda: not occurs(WORDS, two.outbox.path))
            await reply.add("and the other half")
    await drain(one, two)
    assert await two.unconfirmed() == ()
    await assert_nowhere(WORDS, store, one, two)


@on_sqlite
@pytest.mark.parametrize("held", ["owner", "conversation"])
async def test_later_hold_spares_what_an_outbox_holds(store: ConversationStore, bots: Bots, held: Any) -> None:
    one, two = bots
    await greet(two)
    await drain(two)
    await speak(two, "new", owner="42")
    await erase(one, "42", "reset")
    await store.erasures.hold(held, "42" if held == "owner" else "new", reason="a court asked")
    await drain(one, two)
    assert await texts(store, "new") == [f"{WORDS} said", f"{WORDS} answered"]
    assert await store.erasures.unacknowledged() == []


async def pending_in_two(one: History, two: History) -> None:
    """Have one conversation in both outboxes, and sixty words pending in the second, which is offline from then on."""
    await speak(one, "shared", owner="42")
    await speak(two, "shared")
    await drain(one, two)
    await two.append("shared", *(Message.user(f"{WORDS} {number}") for number in range(60)))


@on_sqlite
@pytest.mark.parametrize("how", ["reset everywhere", "reset here", "delete"])
async def test_reset_everywhere_reaches_what_is_pending(store: ConversationStore, bots: Bots, how: str) -> None:
    one, two = bots
    await pending_in_two(one, two)
    await speak(two, "other", owner="42", words="stays")
    if how == "delete":
        await register(one.outbox, one.store, "conversation", "shared", how="delete", reason="asked")
        await one.chat("shared").delete()
    else:
        await one.chat("shared").reset(reason="asked", everywhere=how == "reset everywhere")
    await drain(one)
    assert WORDS not in await dump(store)
    await drain(two)
    assert "stays said" in await texts(store, "other")
    registered = [(erasure.kind, erasure.how) for erasure in await store.erasures.after(0)]
    if how == "reset here":
        assert len([text for text in await texts(store, "shared") if WORDS in text]) == 60
        assert registered == []
    else:
        assert registered == [("conversation", how.partition(" ")[0])]
        assert await store.erasures.unacknowledged() == []
        await assert_nowhere(WORDS, store, one, two)


@on_sqlite
@pytest.mark.parametrize("asked", ["conversation", "owner elsewhere", "owner here"])
async def test_records_go_of_a_conversation_that_their_outbox_knows_nothing_else_of(
    store: ConversationStore, bots: Bots, asked: str
) -> None:
    one, two = bots
    await speak(one, "shared", owner="42")
    await two.records(conversation="shared").put(("notes",), "key", WORDS)
    await two.records(conversation="other").put(("notes",), "key", "of another owner")
    await drain(one, two)
    if asked == "conversation":
        await one.chat("shared").reset(everywhere=True)
    else:
        await (one if asked == "owner elsewhere" else two).erase(owner="42", how="reset")
    await drain(one, two)
    await assert_nowhere(WORDS, store, one, two)
    assert occurs("of another owner", two.outbox.path)


@on_sqlite
async def test_what_one_outbox_delivered_without_an_owner_goes_when_another_names_one(
    store: ConversationStore, bots: Bots
) -> None:
    one, two = bots
    await speak(one, "shared")
    await two.append("hello", Message.user("hello"))
    await drain(one, two)
    await two.append("shared", Message.user(f"{WORDS} pending"), owner="42")
    await erase(one, "42", "reset")
    await one.append("shared", Message.user("said since"))
    await drain(one, two)
    assert [text for text in await texts(store, "shared") if text] == ["said since"]


@on_sqlite
async def test_a_reset_everywhere_spares_what_its_outbox_appends_after_it(store: ConversationStore, bots: Bots) -> None:
    one, two = bots
    await pending_in_two(one, two)
    await one.append("shared", Message.user(f"{WORDS} pending here"))
    await one.chat("shared").reset(everywhere=True)
    await one.append("shared", Message.user("new words"))
    await one.records(conversation="shared").put(("notes",), "key", "a new note")
    async with one.reply("shared", every=0) as reply:
        await reply.add("a new reply")
        await until(lambda: reply.kept > 0)
        await drain(one)
        assert occurs("a new reply", one.outbox.path)
    await drain(one, two)
    assert [text for text in await texts(store, "shared") if text] == ["new words", "a new reply"]
    assert present(await one.records(conversation="shared").get(("notes",), "key")).value == "a new note"
    await assert_nowhere(WORDS, store, one, two)


@on_sqlite
async def test_deletion_lets_nothing_of_another_outbox_arrive_readable(store: ConversationStore, bots: Bots) -> None:
    one, two = bots
    await pending_in_two(one, two)
    await speak(two, "shared")
    await two.append("shared", Message.user(WORDS * 40_000, id="large"))
    await two.chat("shared").edit("large", f"{WORDS} edited")
    await two.chat("shared").rename(WORDS)
    await two.chat("shared").fork("fork", owner="42")
    await one.chat("shared").delete(reason="asked")
    await drain(one)
    await drain(two)
    assert WORDS not in await dump(store)
    assert await two.records(conversation="shared").get(("notes",), "key") is None


# --- A person in shared chats: all that it said goes, and the words of the others stay ---


ANN, BEN = "tg:7:1", "tg:7:2"
ANNS, BENS = "gheldrimmer", "quenwhistle"
SPOKEN = {ANN: ANNS, BEN: BENS}


async def talk(history: History, group: str, turn: str) -> None:
    for author, words in SPOKEN.items():
        message = Message.user(f"{words} {turn}", id=f"{author}-{turn}", author=author, metadata={"about": words})
        await history.append(group, message, owner="tg:7:-100")


async def erase_ann(history: History) -> None:
    await history.erase(person=ANN, how="delete", reason="asked", requested_by="dpo")


async def test_person_is_erased_through_an_outbox_that_was_offline(store: ConversationStore, bots: Bots) -> None:
    one, two = bots
    await talk(one, "group", "zero")
    await talk(one, "group", "first")
    await one.append(ANN, Message.user(f"{ANNS} alone"), owner=ANN)
    await one.records(owner=ANN).put(("profile",), "name", ANNS)
    await greet(two)
    await drain(one, two)
    # An edit alone, of a message that this outbox does not hold: the tail retains it.
    await two.chat("group").edit(f"{ANN}-zero", f"{ANNS} edited")
    await drain(two)
    # Offline from here on: pending words.
    await two.chat("group").edit(f"{ANN}-first", f"{ANNS} edited")
    await talk(two, "group", "second")
    await talk(two, "another", "third")
    await two.append("later", Message.user(f"{ANNS} in the private chat"), owner=ANN)
    await two.records(owner=ANN).put(("profile",), "pet", ANNS)
    assert occurs(ANNS, two.outbox.path)
    await erase_ann(one)
    await drain(one)
    assert [behind.name for behind in await store.erasures.unacknowledged()] == ["two.outbox.db"]
    await drain(two)
    assert await store.erasures.unacknowledged() == []
    await assert_nowhere(ANNS, store, one, two)
    assert occurs(BENS, one.outbox.path) and occurs(BENS, two.outbox.path)
    shown = [message.text for name in ("group", "another") for message in await store.messages(name) if message.text]
    assert shown == [f"{BENS} {turn}" for turn in ("zero", "first", "second", "third")]
    gone = [message for message in await store.messages("group") if message.redacted]
    assert [message.message.author for message in gone] == [ANN] * 3
    assert [one.differences async for one in rebuild(store, check=True, every=True)] == [()] * 5


@on_sqlite
async def test_the_original_of_a_repaired_message_goes_too(store: ConversationStore, bots: Bots) -> None:
    one, two = bots
    await talk(one, "group", "first")
    await two.append("group", Message.user("hello"), owner="tg:7:-100")
    await drain(one, two)
    receipt = await two.append("group", Message.user(f"{ANNS} blocked", id="b", author=ANN))
    await two.outbox.write(lambda connection: pause(connection, Selection(conversation_ids=("group",))))
    data = {"message_id": "b", "role": "user", "content": "mended"}
    await two.outbox.write(lambda connection: fix(connection, receipt.event_ids[-1], data, reason="too long", now_us=0))
    await two.outbox.write(lambda connection: resume(connection, Selection(conversation_ids=("group",))))
    assert occurs(ANNS, two.outbox.path)
    await erase_ann(one)
    await drain(one, two)
    await assert_nowhere(ANNS, store, one, two)


@on_sqlite
@pytest.mark.parametrize("held", ["owner", "conversation"])
async def test_a_held_group_keeps_the_words_and_tells_so(
    store: ConversationStore, bots: Bots, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("event_log", "relay"):
        monkeypatch.setattr(f"letopis.outbox.{room}.erasures.LANES_PER_QUESTION", 1)
    one, two = bots
    await talk(one, "group", "first")
    await one.append("free", Message.user(f"{ANNS} free", author=ANN), owner="tg:7:-200")
    await drain(one)
    await greet(two)
    await drain(two)
    for chat in ("free", "group"):  # whose they are, the store alone knows
        await two.append(chat, Message.user(f"{ANNS} pending", author=ANN))
    await store.erasures.hold(held, "tg:7:-100" if held == "owner" else "group", reason="a court asked")
    told: list[Held] = []
    await one.erase(person=ANN, how="delete", held=told.append)
    await drain(one, two)
    assert [error.reason for error in told] == ["a court asked"]
    assert occurs(f"{ANNS} first", one.outbox.path)
    texts = [message.text for message in await store.messages("group")]
    assert texts == [f"{ANNS} first", f"{BENS} first", f"{ANNS} pending"]
    assert [message.text for message in await store.messages("free")] == [""] * 2


@on_sqlite
async def test_more_than_one_step_takes(store: ConversationStore, bots: Bots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letopis.outbox.event_log.erasures.MAX_ERASED_PER_TRANSACTION", 2)
    monkeypatch.setattr("letopis.outbox.relay.erasures._MESSAGES_PER_STEP", 2)
    monkeypatch.setattr("letopis.outbox.history.authored.PAGE", 2)
    one, two = bots
    for number in range(5):
        await talk(one, "group", f"one-{number}")
    await greet(two)
    await drain(one, two)
    for number in range(5):
        await talk(two, "group", f"two-{number}")
    await erase_ann(one)
    await drain(one, two)
    await assert_nowhere(ANNS, store, one, two)
    assert len([message for message in await store.messages("group") if message.text]) == 10


@on_sqlite
async def test_an_outbox_that_asks_before_its_first_delivery_erases_here(
    store: ConversationStore, one: History, two: History
) -> None:
    await greet(one)
    await drain(one)
    await two.append("group", Message.user(f"{WORDS} pending", author="42"), owner="43")
    await two.erase(person="42", how="delete")
    await drain(two)
    await assert_nowhere(WORDS, store, one, two)


@on_sqlite
async def test_every_message_that_the_store_knows_as_the_persons_is_erased_here(
    store: ConversationStore, one: History, two: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a file holds an edit alone, the author is known to the store only; there may be many."""
    monkeypatch.setattr("letopis.outbox.relay.erasures._MESSAGES_PER_STEP", 2)
    ids = [f"m{number}" for number in range(5)]
    await one.append("group", *(Message.user("said", id=message_id, author="42") for message_id in ids), owner="43")
    await greet(two)
    await drain(one, two)
    for message_id in ids:
        await two.chat("group").edit(message_id, f"{WORDS} edited")
    await drain(two)  # and retained here
    await one.erase(person="42", how="delete")
    await drain(one, two)
    await assert_nowhere(WORDS, store, one, two)


@pytest.mark.parametrize("answers", [False, True])
async def test_answers_to_a_person_stay_or_go_wherever_they_are(
    store: ConversationStore, bots: Bots, answers: bool
) -> None:
    one, two = bots
    await one.append("group", Message.user("asked", id="q", author="42"), owner="43")
    await one.append("group", Message.assistant(f"{WORDS} said", metadata={"telegram": {"answers": "q"}}))
    await one.append("group", Message.assistant("to another", metadata={"answers": "other"}))
    await greet(two)
    await drain(one, two)
    await two.append("group", Message.assistant(f"{WORDS} again", metadata={"answers": "q"}))
    await one.erase(person="42", how="delete", answers=answers)
    await one.append("group", Message.assistant("new", metadata={"answers": "q"}))
    await drain(one, two)
    quoted = [f"{WORDS} said", "to another", "new", f"{WORDS} again"]
    shown = await texts(store, "group")
    if answers:
        assert shown == ["", "", "to another", "new", ""]
        await assert_nowhere(WORDS, store, one, two)
    else:
        assert shown == ["", *quoted]


@on_sqlite
async def test_answers_are_those_to_a_person(store: ConversationStore) -> None:
    with pytest.raises(InvalidInput, match="answers"):
        await store.erasures.register("owner", "42", how="reset", answers=True)


@pytest.mark.parametrize("what", ["owner", "person", "everywhere"])
async def test_words_said_after_another_outbox_carried_it_out_stay(
    store: ConversationStore, bots: Bots, what: str
) -> None:
    """They are delivered before the reset, which comes from an outbox whose relay was off."""
    one, two = bots
    await speak(one, "shared", owner="42")
    await two.append("group", Message.user(f"{WORDS} in a group", author="42"), owner="43")
    await drain(one, two)
    await one.append("shared", Message.user(f"{WORDS} pending"))
    if what == "everywhere":
        await one.chat("shared").reset(everywhere=True)
    else:
        await one.erase(**{what: "42"}, how="reset")
    await drain(two)
    await two.append("shared", Message.user("said since"))
    await two.append("group", Message.user("in a group since", author="42"))
    await two.append("begun since", Message.user("begun since"), owner="42")
    await drain(two)
    await one.append("shared", Message.user("and here"))
    shown = [message.text for message in await one.messages("shared") if message.text]
    assert shown == ["said since", "and here"]
    await drain(one)
    assert [message.text for message in await store.messages("shared")] == shown
    assert await texts(store, "begun since") == ["begun since"]
    assert (await texts(store, "group"))[-1] == "in a group since"
    if what == "person":
        await assert_nowhere(WORDS, store, one, two)


@pytest.mark.parametrize("way", ["reset", "owner"])
async def test_an_erasure_that_was_killed_takes_nothing_said_after_it_was_asked_for_again(
    store: ConversationStore, one: History, way: str
) -> None:
    """Killed between its record in the store and its beginning in the file."""

    async def ask() -> None:
        if way == "reset":
            await one.chat("chat").reset(everywhere=True)
        else:
            await one.erase(owner="42", how="reset")

    await one.append("chat", Message.user(f"{WORDS} said"), owner="42")
    await drain(one)
    with patch.object(ErasureCarrier, "begin", side_effect=Killed), pytest.raises(Killed):
        await ask()
    await one.append("chat", Message.user(f"{WORDS} pending"), owner="42")
    await ask()
    await one.append("chat", Message.user("said later"), owner="42")
    await drain(one)

    assert [message.text for message in await store.messages("chat")] == ["said later"]
    await assert_nowhere(WORDS, store, one)
