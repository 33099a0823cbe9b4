"""A session service of ADK in a history, beyond ADK's own contract."""

import asyncio
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("google.adk", reason="needs google-adk: pip install 'letopis[google-adk]'")

from google.adk.errors._stale_session_error import StaleSessionError
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.session import Session
from google.genai import types

from letopis import History, InvalidInput, Message, StoreUnavailable, ToolCall, ToolResult
from letopis.adapters.google_adk import LetopisSessionService
from letopis.adapters.google_adk.session_record import conversation_of, user_space
from tests.support.outboxes import locked_out, open_apart, prune
from tests.support.peers import refused_port
from tests.support.relays import deliver_all
from tests.support.sayings import all_pages, present

APP, USER = "bot", "42"
WHERE = conversation_of(APP, USER, "s1")


@pytest.fixture
def service(history: History) -> LetopisSessionService:
    return LetopisSessionService(history)


async def begun(service: LetopisSessionService, *, as_new: bool = False, **state: Any) -> Session:
    return await service.create_session(app_name=APP, user_id=USER, session_id="s1", state=state, new=as_new)


async def loaded(service: LetopisSessionService, name: str = "s1", **config: Any) -> Session:
    given = GetSessionConfig(**config) if config else None
    return present(await service.get_session(app_name=APP, user_id=USER, session_id=name, config=given))


async def delete(service: LetopisSessionService, name: str = "s1") -> None:
    await service.delete_session(app_name=APP, user_id=USER, session_id=name)


def said(text: str, author: str = "user", **fields: Any) -> Event:
    role = "user" if author == "user" else "model"
    return Event(author=author, content=types.Content(role=role, parts=[types.Part(text=text)]), **fields)


def changing(**state: Any) -> Event:
    return Event(author="agent", actions=EventActions(state_delta=state))


def texts(session: Session) -> list[str | None]:
    return [one.content.parts[0].text for one in session.events if one.content and one.content.parts]


async def test_events_are_messages_that_others_understand(service: LetopisSessionService, history: History) -> None:
    session = await begun(service)
    call = types.FunctionCall(id="c1", name="look", args={"at": "tea"})
    result = types.FunctionResponse(id="c1", name="look", response={"found": "a cup"})
    counts = {"prompt_token_count": 5, "candidates_token_count": 2, "total_token_count": 7}
    used = types.GenerateContentResponseUsageMetadata(**counts)
    events = [
        said("What is this?", timestamp=1_700_000_000.25),
        Event(author="agent", content=types.Content(role="model", parts=[types.Part(function_call=call)])),
        Event(author="agent", content=types.Content(role="user", parts=[types.Part(function_response=result)])),
        said("A cup", "agent", usage_metadata=used),
        Event(author="agent"),
        Event(author="user"),
    ]
    for event in events:
        await service.append_event(session, event)
    found = await history.messages(WHERE)
    assert [(one.role, one.content) for one in found] == [
        ("user", "What is this?"),
        ("assistant", (ToolCall("c1", "look", {"at": "tea"}),)),
        ("tool", (ToolResult("c1", {"found": "a cup"}),)),
        ("assistant", "A cup"),
        ("assistant", None),
        ("user", ""),
    ]
    asked, _, _, told, *_ = found
    assert (asked.message.name, asked.occurred_at) == (None, datetime.fromtimestamp(1_700_000_000.25, UTC))
    assert (told.message.name, told.message.tokens) == ("agent", 7)
    assert dict(told.message.usage) == {"input": 5, "output": 2}
    assert (await loaded(service)).events == events
    assert [one.conversation_id for one in await history.conversations(owner=USER)] == [WHERE]


async def test_order_is_that_of_the_appends(service: LetopisSessionService) -> None:
    """ADK's database service orders by the clocks of those that appended."""
    session = await begun(service)
    for place, moment in enumerate((30.0, 10.0, 10.0, 20.0)):
        await service.append_event(session, said(str(place), timestamp=moment))
    assert texts(await loaded(service)) == ["0", "1", "2", "3"]
    assert texts(await loaded(service, num_recent_events=2)) == ["2", "3"]
    assert texts(await loaded(service, after_timestamp=20.0)) == ["0", "3"]


async def test_a_stale_session_is_refused(service: LetopisSessionService) -> None:
    """Also if both events have the same timestamp, which a marker made of it does not tell apart."""
    await begun(service)
    one, other = await loaded(service), await loaded(service)
    await service.append_event(one, said("first", timestamp=10.0))
    with pytest.raises(StaleSessionError):
        await service.append_event(other, said("second", timestamp=10.0))
    assert texts(await loaded(service)) == ["first"]
    assert other.events == []
    await service.append_event(one, said("third", timestamp=10.0))
    recent = await loaded(service, num_recent_events=0)
    await service.append_event(recent, said("fourth"))
    assert texts(await loaded(service)) == ["first", "third", "fourth"]


async def test_a_session_object_that_the_caller_made(service: LetopisSessionService) -> None:
    session = await begun(service)
    own = Session(id="s1", app_name=APP, user_id=USER)
    await service.append_event(own, said("first"))
    copy = Session(id="s1", app_name=APP, user_id=USER, events=list(own.events))
    await service.append_event(copy, said("second"))
    with pytest.raises(StaleSessionError):
        await service.append_event(session, said("third"))


async def test_without_the_check_state_is_merged_by_key(history: History) -> None:
    service = LetopisSessionService(history, check_stale=False)
    await begun(service)
    one, other = await loaded(service), await loaded(service)
    await asyncio.gather(service.append_event(one, changing(a=1)), service.append_event(other, changing(b=2)))
    found = await loaded(service)
    assert found.state == {"a": 1, "b": 2}
    assert len(found.events) == 2


async def test_one_session_object_may_be_used_at_the_same_time(service: LetopisSessionService) -> None:
    session = await begun(service)
    await asyncio.gather(*(service.append_event(session, said(str(number))) for number in range(10)))
    assert sorted(str(text) for text in texts(await loaded(service))) == [str(number) for number in range(10)]
    assert (await loaded(service)).events == session.events


async def test_an_event_again(service: LetopisSessionService, history: History) -> None:
    """After an error that told nothing, a caller appends again: through the same object, or a fresh one."""
    session = await begun(service)
    event = changing(count=1)
    await service.append_event(session, event)
    fresh = await loaded(service)
    await service.append_event(fresh, changing(count=2))

    for again in (fresh, session, await loaded(service), await loaded(service, num_recent_events=0)):
        await service.append_event(again, event.model_copy(deep=True))

    assert (await loaded(service)).state == {"count": 2}
    assert len(await history.messages(WHERE)) == 2
    # What another program took off the path stays off it, with its state as it is.
    await history.chat(WHERE).rewind(to=None)
    await service.append_event(fresh, event.model_copy(deep=True))
    assert (await history.messages(WHERE)).items == ()
    assert (await loaded(service)).state == {"count": 2}
    other = said("another", id=event.id)
    for session in (await loaded(service), await loaded(service, num_recent_events=0)):
        with pytest.raises(AlreadyExistsError, match=event.id):
            await service.append_event(session, other)


async def test_what_failed_leaves_nothing(service: LetopisSessionService, history: History) -> None:
    session = await begun(service, kept=1)
    with pytest.raises(InvalidInput):
        await service.append_event(session, changing(**{"kept": 2, "user:name": "Ada", "k" * 600: 3}))
    found = await loaded(service)
    assert (found.state, found.events) == ({"kept": 1}, [])
    assert len(await history.messages(WHERE, every=True)) == 0
    assert await service.get_user_state(app_name=APP, user_id=USER) == {}


def test_two_sessions_never_share_a_conversation() -> None:
    slashes = [("a", "b", "c"), ("a/b", "c", ""), ("a", "b/c", ""), ("", "a/b", "c"), ("a%2Fb", "c", "")]
    signs = [("a\n", "b", "c"), ("a%0A", "b", "c"), ("#", "b", "c")]
    names = [*slashes, *signs, ("a" * 300, "b", "c"), ("a" * 300, "b", "d"), ("я" * 300, "b", "d")]
    made = [conversation_of(*one) for one in names]
    assert len(set(made)) == len(names)
    assert made[0] == "adk/a/b/c"
    assert all(len(one) <= 255 and one.isprintable() for one in made)
    assert user_space("a", "b") != user_space("a/b", "")
    with pytest.raises(InvalidInput):
        conversation_of("a", "\ud800", "c")


async def test_deleted_is_erased_and_the_id_can_be_used_again(service: LetopisSessionService, history: History) -> None:
    session = await begun(service, secret=1)
    await service.append_event(session, said("my secret"))
    await delete(service)
    assert [one.text for one in await history.messages(WHERE, every=True)] in ([], [""])
    assert not (await service.list_sessions(app_name=APP)).sessions
    await delete(service)
    again = await begun(service)
    with pytest.raises(StaleSessionError):
        await service.append_event(session, said("from before"))
    await service.append_event(again, said("hello"))
    assert texts(await loaded(service)) == ["hello"]
    await history.chat(WHERE).delete()
    with pytest.raises(SessionNotFoundError):
        await service.append_event(again, said("too late"))
    with pytest.raises(AlreadyExistsError, match="for good"):
        await begun(service)


async def test_messages_from_elsewhere_and_changed_ones(service: LetopisSessionService, history: History) -> None:
    session = await begun(service)
    await service.append_event(session, said("Whaat?"))
    await service.append_event(session, said("my password"))
    first, second = await history.messages(WHERE)
    await history.chat(WHERE).edit(first.id, "What?")
    await history.chat(WHERE).redact(second.id)
    await history.append(WHERE, Message.assistant("An operator is here", name="operator"))
    found = await loaded(service)
    assert [one.author for one in found.events] == ["user", "operator"]
    assert texts(found) == ["What?", "An operator is here"]
    await service.append_event(found, said("Thanks"))
    assert len((await loaded(service)).events) == 3


async def test_sessions_by_page(service: LetopisSessionService, history: History) -> None:
    for number in range(5):
        await service.create_session(app_name=APP, user_id=USER, session_id=f"s{number}", state={"n": number})
    await service.create_session(app_name="other", user_id=USER, session_id="x")
    await history.append("no session", Message.user("hello"), owner=USER)
    found = await all_pages(partial(service.list_sessions_page, app_name=APP, user_id=USER, limit=2), most=2)
    assert [f"{one.id}={one.state['n']}" for one in found] == ["s4=4", "s3=3", "s2=2", "s1=1", "s0=0"]


async def test_other_names_for_conversations_and_owners(history: History) -> None:
    service = LetopisSessionService(
        history, conversation=lambda app, user, session: session, owner=lambda app, user: f"{app}:{user}"
    )
    await service.append_event(await begun(service), said("hello"))
    assert [one.conversation_id for one in await history.conversations(owner="bot:42")] == ["s1"]
    assert texts(await loaded(service)) == ["hello"]
    assert [one.id for one in (await service.list_sessions(app_name=APP, user_id=USER)).sessions] == ["s1"]


async def test_a_session_that_is_said_to_be_new_begins_without_the_store(alone: History) -> None:
    service = LetopisSessionService(alone)
    await service.append_event(await begun(service, as_new=True, a=1), said("hello"))
    found = await loaded(service)
    assert (found.state, texts(found)) == ({"a": 1}, ["hello"])
    with pytest.raises(AlreadyExistsError):
        await begun(service, as_new=True)


async def test_a_session_that_was_not_new_keeps_the_events_of_both(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    async with History(tmp_path / "other.outbox.db", store=store, relay=False, watch=False) as other:
        service = LetopisSessionService(other)
        await service.append_event(await begun(service), said("stored"))
        await deliver_all(other)
    async with locked_out(tmp_path / "bot.outbox.db", store) as history:
        service = LetopisSessionService(history)
        await service.append_event(await begun(service, as_new=True), said("begun"))
    async with History(tmp_path / "bot.outbox.db", store=store, relay=False, watch=False) as history:
        await deliver_all(history)
        assert texts(await loaded(LetopisSessionService(history))) == ["stored", "begun"]


async def test_without_the_store(alone: History) -> None:
    service = LetopisSessionService(alone)
    for call in (service.get_session(app_name=APP, user_id=USER, session_id="s1"), begun(service)):
        with pytest.raises(StoreUnavailable):
            await call

    session = await service.create_session(app_name=APP, user_id=USER, state={"a": 1, "user:b": 2})
    await service.append_event(session, said("hello", actions=EventActions(state_delta={"a": 3, "app:c": 4})))
    found = await loaded(service, session.id)
    assert (found.state, texts(found)) == ({"a": 3, "user:b": 2, "app:c": 4}, ["hello"])
    await service.append_event(found, said("more"))
    assert [one.id for one in (await service.list_sessions(app_name=APP, user_id=USER)).sessions] == [session.id]
    strict = LetopisSessionService(alone, require_complete=True)
    user_state = service.get_user_state(app_name=APP, user_id=USER)
    for read in (loaded(strict, session.id), strict.list_sessions(app_name=APP), user_state):
        with pytest.raises(StoreUnavailable):
            await read
    await delete(service, session.id)


async def test_the_whole_state_is_known_without_the_store_while_the_session_is_active(tmp_path: Path) -> None:
    """Old values leave the outbox once they are delivered; the session's newest record has all of them."""
    path, store = tmp_path / "bot.outbox.db", tmp_path / "history.db"
    async with History(path, store=store) as history:
        service = LetopisSessionService(history)
        session = await begun(service, **{"old": 1, "user:old": 2})
        for number in range(8):
            await service.append_event(session, said(str(number), actions=EventActions(state_delta={"n": number})))
        assert await history.drained(timeout=20)
        await prune(history, keep_last=3)
        await service.append_event(session, said("8"))
        assert await history.drained(timeout=20)

    away = f"postgresql://nobody@127.0.0.1:{await refused_port()}/nowhere"
    async with History(path, store=away, relay=False) as history:
        with pytest.raises(StoreUnavailable):
            await history.records(conversation=WHERE).get(("google_adk", "state"), "=old")
        found = await loaded(LetopisSessionService(history))
        assert found.state == {"old": 1, "n": 7, "user:old": 2}
        assert texts(found)[-2:] == ["7", "8"]
        assert len(found.events) < 9


async def test_another_outbox_was_first(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    async with (
        open_apart(tmp_path / "a.outbox.db", store=store) as one,
        open_apart(tmp_path / "b.outbox.db", store=store) as two,
    ):
        here, there = LetopisSessionService(one), LetopisSessionService(two)
        session = await begun(here, a=1)
        assert await one.drained(timeout=20)
        with pytest.raises(AlreadyExistsError):
            await begun(there)
        other = await loaded(there)
        await there.append_event(other, changing(**{"b": 2, "user:name": "Ada"}))
        assert await two.drained(timeout=20)

        with pytest.raises(StaleSessionError):
            await here.append_event(session, changing(a=2))

        assert (await loaded(here)).state == {"a": 1, "b": 2, "user:name": "Ada"}
        await delete(there)
        assert await two.drained(timeout=20)
        with pytest.raises(SessionNotFoundError):
            await here.append_event(session, said("too late"))
