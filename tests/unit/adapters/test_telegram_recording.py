"""What passes between a bot and Telegram is recorded once, in the right conversation, whatever is repeated."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
import sqlalchemy as sa

from letopis.adapters.telegram_core import local_state
from letopis.adapters.telegram_core.bot import BotParts, ResumedTurns
from letopis.adapters.telegram_core.calls import failure_of
from letopis.adapters.telegram_core.incoming import Recorded
from letopis.adapters.telegram_core.local_state import MAX_ATTEMPTS
from letopis.outbox import Bounds, History, Relay
from letopis.store import ConversationTrimmed, Delivery, InvalidInput, Message, OutboxFull
from letopis.store.model import large_content
from letopis.store.model.events import utc_now
from letopis.testing import deliver_all
from tests.support.sayings import present
from tests.support.telegram_calls import PLACE, handling

BOT = 7000
CHAT = "tg:7000:1001"
TOKEN = "s3cret-t0ken-of-a-user"


def parts_on(history: History, folder: Path) -> BotParts:
    return BotParts.of(history, BOT, files=folder / "files")


@asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[BotParts]:
    async with History(folder / "bot.outbox.db", **{"relay": False, **options}) as history:
        yield parts_on(history, folder)


def raw(number: int, text: str | None = "Hello", chat: int = 1001, **more: Any) -> dict[str, Any]:
    sender = {"id": 1001, "is_bot": False, "first_name": "Ada", "language_code": "ru"}
    message = {"message_id": number, "date": 1_790_000_000, "chat": {"id": chat}, "from": sender, **more}
    return message if text is None else {**message, "text": text}


def update(number: int, message: dict[str, Any], kind: str = "message") -> dict[str, Any]:
    return {"update_id": number, kind: message}


async def texts(history: History, conversation_id: str = CHAT) -> list[str]:
    return [one.text for one in await history.messages(conversation_id)]


# Incoming.


async def test_an_update_is_recorded_once(parts: BotParts) -> None:
    first = await parts.incoming.record(update(1, raw(5)))
    again = await parts.incoming.record(update(1, raw(5)))
    await parts.incoming.handled(1)
    late = await parts.incoming.record(update(1, raw(5)))
    assert (first.conversation_id, first.repeated, first.handled) == (CHAT, False, False)
    assert (again.conversation_id, again.repeated, again.handled) == (CHAT, True, False)
    assert (late.repeated, late.handled) == (True, True)
    [message] = await parts.history.messages(CHAT)
    assert (message.id, message.message.external_ids) == ("tg:1001:5", {"telegram": 5})
    chat = present(await parts.history.chat(CHAT).conversation())
    assert (chat.owner_id, chat.title) == (CHAT, "Hello")
    await parts.history.chat(CHAT).undo()
    await parts.incoming.record(update(1, raw(5)))  # which does not bring it back
    assert await texts(parts.history) == []


def held(path: Path) -> bool:
    """Return True if a token is in the bytes of an outbox that is closed."""
    return any(TOKEN.encode() in file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


async def test_the_raw_update_is_dropped_when_attempts_run_out(tmp_path: Path) -> None:
    """It is handed out after three restarts; those that waited behind it have lost no attempt."""
    async with opened(tmp_path) as parts:
        for number in (1, 2, 3):
            await parts.incoming.record(update(number, raw(number, TOKEN)))
        await parts.incoming.handled(2)
    for _ in range(MAX_ATTEMPTS):
        async with opened(tmp_path) as parts:
            first, *others = await parts.incoming.unhandled()
            assert [first, *others] == [update(1, raw(1, TOKEN)), update(3, raw(3, TOKEN))]
            await parts.incoming.begin(await parts.incoming.record(first))  # it ends the process
    async with opened(tmp_path) as parts:
        assert await raw_updates(parts.history) == [True, False, True]
        assert await waiting(parts) == [3]
    async with opened(tmp_path) as parts:
        assert await raw_updates(parts.history) == [False, False, True]
        assert (await parts.incoming.record(update(1, raw(1, TOKEN)))).handled


async def raw_updates(history: History) -> list[bool]:
    """Return which of the raw updates in an outbox hold the token."""
    async with history.transaction() as tx:
        rows = await tx.execute(sa.text("SELECT data FROM letopis_telegram_updates ORDER BY update_id"))
        return [TOKEN in row[0] for row in rows]


@pytest.mark.parametrize("how", ["delete", "reset"])
async def test_the_raw_update_is_erased_with_its_conversation(tmp_path: Path, how: str) -> None:
    """Whoever erases it: here a program that knows nothing of Telegram."""
    path = tmp_path / "bot.outbox.db"
    async with opened(tmp_path) as parts:
        await parts.incoming.record(update(1, raw(5, TOKEN)))
        await parts.incoming.record(update(2, raw(6, TOKEN, chat=1002)))
        assert await raw_updates(parts.history) == [True, True]
    assert held(path)  # the control: the search finds what is there
    async with History(path) as history:
        await getattr(history.chat(CHAT), how)()
        assert await history.drained(timeout=30)
        assert await raw_updates(history) == [False, True]
        assert await waiting(parts_on(history, tmp_path)) == [2]
        await getattr(history.chat("tg:7000:1002"), how)()
        assert await history.drained(timeout=30)
    assert not held(path)


async def waiting(parts: BotParts) -> list[int]:
    return [one["update_id"] for one in await parts.incoming.unhandled()]


@pytest.mark.parametrize(
    ("kind", "left"), [("conversation", [2, 3, 4, 5, 7]), ("owner", [2, 3, 7]), ("person", [3]), ("held", [2, 3])]
)
async def test_an_erasure_elsewhere_drops_updates_that_wait(tmp_path: Path, kind: Any, left: list[int]) -> None:
    """Whether or not this outbox has to append anything: of the private chat, everything is delivered."""
    group = -100
    async with opened(tmp_path) as parts:
        history, record = parts.history, parts.incoming.record
        pressed = {"id": "9", "from": raw(1)["from"], "message": raw(7), "data": "pressed"}
        await record(update(4, pressed, "callback_query"))  # before the conversation begins
        await record(update(1, raw(5, TOKEN)))
        await record(update(2, raw(5, TOKEN, chat=group)))
        await record(update(3, raw(6, "of another", chat=group) | {"from": {"id": 1002}}))
        await record(update(5, raw(6, TOKEN + "\0")))  # no history can hold it
        await record(update(6, {"chat": {"id": 1001}, "user": {"id": 1001}, "new_reaction": []}, "message_reaction"))
        await record(update(7, {"id": "8", "from": raw(1)["from"], "query": "sought"}, "inline_query"))
        await deliver_all(history)
        assert await waiting(parts) == [1, 2, 3, 4, 5, 6, 7]
        if kind == "held":
            await history.store.erasures.hold("owner", f"tg:{BOT}:{group}", reason="a court asked")
            kind = "person"

        await history.store.erasures.register(kind, CHAT, how="reset")
        await Relay(history.outbox, history.store).drain()
        assert await waiting(parts) == left
        assert await history.store.erasures.unacknowledged() == []
    assert held(tmp_path / "bot.outbox.db") is (left != [3])


async def test_words_that_wait_survive_what_takes_older_words_away(parts: BotParts) -> None:
    await parts.incoming.record(update(1, raw(5)))
    await deliver_all(parts.history)
    await parts.incoming.handled(1)
    await parts.incoming.record(update(2, raw(6, "still to be answered")))
    await parts.history.append(CHAT, ConversationTrimmed(upto=2, rule="default", sequence=2))
    await deliver_all(parts.history)
    assert await waiting(parts) == [2]


async def test_handled_updates_are_forgotten_while_the_bot_runs(
    parts: BotParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def known() -> list[int]:
        async with parts.history.transaction() as tx:
            rows = await tx.execute(sa.text("SELECT update_id FROM letopis_telegram_updates ORDER BY update_id"))
            return [row[0] for row in rows]

    for number in (1, 2):
        await parts.incoming.record(update(number, raw(number)))
    await parts.incoming.handled(1)
    later = utc_now() + local_state.KEEP_HANDLED + local_state.TRIM_INTERVAL
    monkeypatch.setattr(local_state, "utc_now", lambda: later)
    await parts.incoming.record(update(3, raw(3)))
    assert await known() == [2, 3]


async def test_a_language_that_was_not_recorded_is_not_known(parts: BotParts, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(parts.incoming, "_append", AsyncMock(side_effect=OutboxFull("no space")))
        with pytest.raises(OutboxFull):
            await parts.incoming.record(update(1, raw(5)))
    assert await parts.local.language(CHAT) is None
    await parts.incoming.record(update(1, raw(5)))
    async with parts.history.transaction() as tx:
        assert await tx.scalar(sa.text("SELECT language FROM letopis_telegram_languages")) == "ru"


async def test_an_edit_follows_its_message_into_the_conversation_that_it_is_in(parts: BotParts) -> None:
    await parts.incoming.record(update(1, raw(5)))
    other = await parts.chats.start(PLACE, first=False)
    await parts.incoming.record(update(2, raw(6, "In the second chat")))
    await parts.incoming.record(update(3, raw(5, "Hello!", edit_date=1_790_000_100), "edited_message"))
    [message] = await parts.history.messages(CHAT)
    assert (message.text, message.edited) == ("Hello!", True)
    assert await texts(parts.history, other) == ["In the second chat"]


async def test_an_edit_of_an_unknown_message_is_its_first_record(parts: BotParts) -> None:
    await parts.incoming.record(update(1, raw(5, "Fixed"), "edited_message"))
    await parts.incoming.record(update(2, raw(5, "Fixed"), "edited_message"))
    [message] = await parts.history.messages(CHAT)
    assert (message.id, message.text, message.edited) == ("tg:1001:5", "Fixed", False)


async def test_deleted_business_messages_are_erased(parts: BotParts) -> None:
    business, place = {"business_connection_id": "conn"}, "tg:7000:1001:bconn"
    await parts.incoming.record(update(1, raw(5, "Secret", **business), "business_message"))
    await parts.incoming.record(update(2, raw(6, "Public", **business), "business_message"))
    gone = {**business, "chat": {"id": 1001}, "message_ids": [5, 99]}
    await parts.incoming.record(update(3, gone, "deleted_business_messages"))
    assert [one.redacted for one in await parts.history.messages(place, every=True)] == [True, False]
    assert await parts.history.chat(CHAT).conversation() is None


async def test_who_speaks_for_a_business_account_is_no_user(parts: BotParts) -> None:
    business = {"business_connection_id": "conn"}
    owner = {"from": {"id": 55, "is_bot": False, "first_name": "Shop"}}
    await parts.incoming.record(update(1, raw(5, "Is it open?", **business), "business_message"))
    await parts.incoming.record(update(2, {**raw(6, "Yes.", **business), **owner}, "business_message"))
    found = await parts.history.messages("tg:7000:1001:bconn")
    assert [one.role for one in found] == ["user", "assistant"]


async def test_a_group_that_becomes_a_supergroup_goes_on(parts: BotParts, history: History, tmp_path: Path) -> None:
    await parts.incoming.record(update(1, raw(5, "Before", chat=-5)))
    await parts.incoming.record(update(2, raw(6, None, chat=-5, migrate_to_chat_id=-1005)))
    await parts.incoming.record(update(3, raw(1, None, chat=-1005, migrate_from_chat_id=-5)))
    again = parts_on(history, tmp_path)  # what was learned is not in memory alone
    await again.incoming.record(update(4, raw(2, "After", chat=-1005)))
    await again.incoming.record(update(5, raw(5, "Before!", chat=-5), "edited_message"))
    assert await texts(history, "tg:7000:-5") == ["Before!", "After"]
    assert present(await again.chats.address("tg:7000:-5")).chat_id == -1005


async def test_commands_buttons_and_unknown_types_are_events_and_no_messages(parts: BotParts) -> None:
    entity = [{"type": "bot_command", "offset": 0, "length": 4}]
    await parts.incoming.record(update(1, raw(5)))
    await parts.incoming.record(update(2, raw(6, "/new", entities=entity)))
    await parts.incoming.record({"update_id": 3, "callback_query": {"id": "1", "message": raw(5), "data": "x"}})
    await parts.incoming.record({"update_id": 4, "telepathy": {"chat": {"id": 1001}, "thought": "tea"}})
    nowhere = await parts.incoming.record({"update_id": 5, "inline_query": {"id": "1", "query": "q"}})
    assert await texts(parts.history) == ["Hello"]
    kinds = [f"custom.telegram.{kind}" for kind in ("command", "callback_query", "telepathy")]
    assert [one.type for one in await parts.history.chat(CHAT).events()][-3:] == kinds
    assert (nowhere.key, nowhere.conversation_id) == (None, None)
    *_, kept = await parts.history.chat("tg:7000:updates").events()
    assert kept.data["inline_query"]["query"] == "q"


async def test_reactions_are_added_and_taken_back(parts: BotParts) -> None:
    await parts.incoming.record(update(1, raw(5)))
    reaction = {"chat": {"id": 1001}, "message_id": 5, "user": {"id": 1001}, "date": 1_790_000_000}
    up, none = [{"type": "emoji", "emoji": "👍"}], list[Any]()
    await parts.incoming.record(update(2, {**reaction, "old_reaction": none, "new_reaction": up}, "message_reaction"))
    [message] = await parts.history.messages(CHAT)
    assert [(one.key, one.actor) for one in message.reactions] == [("👍", "1001")]
    await parts.incoming.record(update(3, {**reaction, "old_reaction": up, "new_reaction": none}, "message_reaction"))
    [message] = await parts.history.messages(CHAT)
    assert message.reactions == ()


async def test_what_cannot_be_kept_is_logged_and_handled_all_the_same(
    parts: BotParts, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_content, "MAX_STRING_BYTES", 1_000_000)
    with caplog.at_level(logging.ERROR, "letopis.adapters.telegram"):
        found = await parts.incoming.record(update(1, raw(5, "x" * 2_000_000)))
    assert (found.conversation_id, found.repeated) == (None, False)
    assert "cannot be recorded" in caplog.text
    assert "xxxx" not in caplog.text
    assert (await parts.incoming.record(update(1, raw(5)))).repeated


ODD_ENTITIES = [{"type": "bot_command", "offset": 0, "length": "x"}]


@pytest.mark.parametrize(
    "odd",
    [
        {"message": {"chat": {"id": 1001}, "text": "no id"}},
        {"message": {"message_id": 5, "chat": {"id": 1001}, "date": 1, "photo": [7], "caption": 5}},
        {"message_reaction": {"chat": {"id": 1001}, "message_id": 5, "user": {"id": 1}, "new_reaction": [[]]}},
        {"message": {"chat": {"id": 1001}, "text": "x", "entities": ODD_ENTITIES}},
        {"message": 7},
    ],
)
async def test_one_odd_update_does_not_hold_up_those_after_it(parts: BotParts, odd: dict[str, Any]) -> None:
    assert (await parts.incoming.record({"update_id": 1, **odd})).update_id == 1
    await parts.incoming.record(update(2, raw(6)))
    assert (await parts.incoming.record({"update_id": 1, **odd})).repeated
    assert await texts(parts.history) == ["Hello"]


async def test_a_full_outbox_refuses_the_update_so_that_it_comes_again(tmp_path: Path) -> None:
    async with opened(tmp_path, bounds=Bounds(max_events=6)) as parts:
        recorded = list[int]()

        async def record_all() -> None:
            for number in range(1, 9):
                await parts.incoming.record(update(number, raw(5 + number)))
                recorded.append(number)

        with pytest.raises(OutboxFull):
            await record_all()
        assert await waiting(parts) == recorded != []


# Outgoing.


def call(text: str = "A leaf.") -> dict[str, Any]:
    return {"chat_id": 1001, "text": text}


def shown(number: int) -> dict[str, Any]:
    return {"message_id": number, "chat": {"id": 1001}}


async def test_a_refusal_is_a_failure_and_a_timeout_is_not(parts: BotParts) -> None:
    refused = await parts.outgoing.before("sendMessage", call("One"))
    await parts.outgoing.failed(refused, failure_of(403, "Forbidden: bot was blocked by the user"))
    unknown = await parts.outgoing.before("sendMessage", call("Two"))
    await parts.outgoing.failed(unknown, failure_of(502, "Bad Gateway"))
    one, two = await parts.history.messages(CHAT)
    assert one.delivery is Delivery.FAILED
    assert one.delivery_data["reason"] == "Telegram: 403 Forbidden: bot was blocked by the user"
    assert two.delivery is Delivery.APPENDED
    assert [one.message_id for one in await parts.history.unconfirmed()] == [two.id]


async def test_the_same_text_twice_at_a_time_is_two_messages(parts: BotParts) -> None:
    both = [await parts.outgoing.before("sendMessage", call()) for _ in range(2)]
    for number, intent in enumerate(both, 6):
        await parts.outgoing.after("sendMessage", intent, shown(number))
    found = await parts.history.messages(CHAT)
    assert [one.delivery_data["platform_ids"]["telegram"] for one in found] == [6, 7]


async def test_an_answer_goes_where_its_question_is_though_the_user_has_switched(parts: BotParts) -> None:
    with handling(await parts.incoming.record(update(1, raw(5)))):
        await parts.chats.start(PLACE, first=False)
        await parts.outgoing.before("sendMessage", call())
    assert await texts(parts.history) == ["Hello", "A leaf."]


async def test_a_channel_named_by_its_username_is_recorded_by_the_result(parts: BotParts) -> None:
    given = {"chat_id": "@tea", "text": "News"}
    result = {"message_id": 6, "chat": {"id": -100777}, "text": "News"}
    await parts.outgoing.after("sendMessage", await parts.outgoing.before("sendMessage", given), result)
    [message] = await parts.history.messages("tg:7000:-100777")
    assert (message.text, message.delivery) == ("News", Delivery.SENT)


async def test_a_refusing_outbox_keeps_no_bot_from_answering(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path, bounds=Bounds(max_events=3)) as parts:
        await parts.incoming.record(update(1, raw(5, "?")))
        with caplog.at_level(logging.ERROR, "letopis.adapters.telegram"):
            intents = [await parts.outgoing.before("sendMessage", call(f"Answer {number}")) for number in range(4)]
    assert intents[-1] is None
    assert "sent all the same" in caplog.text
    assert "Answer" not in caplog.text


# An answer to its question.


async def answer(parts: BotParts, asked: Recorded, *answers: str, confirm: bool = True) -> list[str]:
    """Answer an update as its handler does; return what a model would be given."""
    with handling(asked):
        context = await present(await parts.chat_of(asked)).context(turns=20)
        for number, text in enumerate(answers):
            intent = await parts.outgoing.before("sendMessage", call(text))
            if confirm:
                await parts.outgoing.after("sendMessage", intent, shown(1000 * asked.update_id + number))
    return [one.text for one in context.messages]


async def test_each_of_nine_questions_that_waited_is_the_last_of_its_context(parts: BotParts) -> None:
    asked = [await parts.incoming.record(update(number, raw(number, f"q{number}"))) for number in range(1, 10)]
    given = [await answer(parts, one, f"a{one.update_id}") for one in asked]
    for number, messages in enumerate(given, 1):
        earlier = [text for one in range(1, number) for text in (f"q{one}", f"a{one}")]
        assert messages == [*earlier, f"q{number}"]
    assert await texts(parts.history) == [*(f"q{one}" for one in range(1, 10)), *(f"a{one}" for one in range(1, 10))]


async def test_an_edited_question_is_the_last_of_its_context_too(parts: BotParts) -> None:
    first = await parts.incoming.record(update(1, raw(5, "What is coffee?")))
    await answer(parts, first, "A bean.")
    edited = await parts.incoming.record(update(2, raw(5, "What is tea?", edit_date=1_790_000_100), "edited_message"))
    await parts.incoming.record(update(3, raw(6, "Thanks")))
    assert await answer(parts, edited) == ["What is tea?"]


async def test_what_a_handler_appends_itself_is_in_its_context_and_in_no_other(parts: BotParts) -> None:
    first, second = [await parts.incoming.record(update(number, raw(number, f"q{number}"))) for number in (1, 2)]
    chat = present(await parts.chat_of(first))
    await chat.append(Message.assistant("looking it up"))
    assert [one.text for one in (await chat.context(turns=5)).messages] == ["q1", "looking it up"]
    assert await answer(parts, second) == ["q1", "q2"]
    assert [one.text for one in (await chat.context(last=50, until=None)).messages] == ["q1", "q2", "looking it up"]


async def test_no_context_for_a_question_that_is_gone(parts: BotParts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than one that ends with another question."""
    monkeypatch.setattr(large_content, "MAX_STRING_BYTES", 1_000_000)
    await parts.incoming.record(update(1, raw(5, "earlier")))
    undone = await parts.incoming.record(update(2, raw(6, "undone")))
    refused = await parts.incoming.record(update(3, raw(7, "x" * 2_000_000)))
    await parts.history.chat(CHAT).rewind(to="tg:1001:5")
    for gone in (undone, refused):
        with pytest.raises(InvalidInput, match="until"):
            await answer(parts, gone)


# After a crash.


async def test_a_reply_of_a_handler_that_was_cut_off_is_not_recorded_twice(history: History, tmp_path: Path) -> None:
    asked = await parts_on(history, tmp_path).incoming.record(update(1, raw(5, "What is tea?")))
    first = parts_on(history, tmp_path)
    await answer(first, asked, "Thinking ...")
    await answer(first, asked, "A leaf.", confirm=False)  # cut off before it was confirmed
    parts = parts_on(history, tmp_path)
    again = await parts.incoming.record(update(1, raw(5, "What is tea?")))
    given = await answer(parts, again, "Thinking ...", "A leaf.", "Hot.")
    assert given == ["What is tea?"]  # not its own half answer
    _, thinking, leaf, hot = await history.messages(CHAT)
    assert (thinking.text, leaf.text, leaf.edited, hot.text) == ("Thinking ...", "A leaf.", False, "Hot.")
    assert thinking.delivery_data["platform_ids"] == {"telegram": [1000, 1000]}  # it was shown twice
    assert leaf.delivery_data["platform_ids"] == {"telegram": 1001}
    assert await history.unconfirmed() == ()


async def test_another_answer_after_a_crash_replaces_the_one_not_confirmed(history: History, tmp_path: Path) -> None:
    """As with a model that words each answer anew."""
    asked = await parts_on(history, tmp_path).incoming.record(update(1, raw(5, "What is tea?")))
    await answer(parts_on(history, tmp_path), asked, "A leaf.", confirm=False)
    parts = parts_on(history, tmp_path)
    again = await parts.incoming.record(update(1, raw(5, "What is tea?")))
    await answer(parts, again, "A plant.")
    assert await texts(history) == ["What is tea?", "A plant."]
    assert await history.unconfirmed() == ()


async def test_the_same_answer_to_another_question_is_another_message(parts: BotParts) -> None:
    first, second = [await parts.incoming.record(update(number, raw(number, f"q{number}"))) for number in (1, 2)]
    with handling(first):
        unknown = await parts.outgoing.before("sendMessage", call("Yes."))
        await parts.outgoing.failed(unknown, failure_of(502, "Bad Gateway"))
    await answer(parts, second, "Yes.")
    found = await parts.history.messages(CHAT)
    assert [one.text for one in found] == ["q1", "q2", "Yes.", "Yes."]
    assert [one.delivery for one in found][2:] == [Delivery.APPENDED, Delivery.SENT]


async def test_resumed_updates_of_a_chat_go_one_at_a_time_and_before_its_new_ones(parts: BotParts) -> None:
    recorded = [await parts.incoming.record(update(number, raw(number))) for number in (1, 2, 3)]
    elsewhere = await parts.incoming.record(update(4, raw(4, chat=1002)))
    nowhere = await parts.incoming.record({"update_id": 5, "inline_query": {"id": "1", "query": "q"}})
    turns, order = ResumedTurns(), list[int]()
    for one in (*recorded[:2], nowhere):
        turns.expect(one)

    async def handle(one: Recorded) -> None:
        await turns.wait(one)
        order.append(one.update_id)
        await asyncio.sleep(0.01)
        order.append(-one.update_id)
        turns.end(one)

    await asyncio.gather(*(handle(one) for one in (recorded[2], recorded[1], elsewhere, nowhere, recorded[0])))
    assert [abs(one) for one in order if abs(one) < 4] == [1, 1, 2, 2, 3, 3]
    assert order[:2] == [4, 5]
