"""What ADK's contract asks of a session service, on three stores; its own in-memory service is the control."""

import time
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("google.adk", reason="needs google-adk: pip install 'letopis[google-adk]'")

from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.sessions.base_session_service import BaseSessionService, GetSessionConfig
from google.adk.sessions.in_memory_session_service import InMemorySessionService
from google.adk.sessions.session import Session
from google.genai import types

from letopis.adapters.google_adk import LetopisSessionService
from letopis.outbox import History

APP = "set for each test"
Contract = BaseSessionService


@pytest.fixture
def service(delivering: History | None, monkeypatch: pytest.MonkeyPatch) -> Contract:
    """A session service on which this test has an application of its own."""
    monkeypatch.setitem(globals(), "APP", f"app {uuid4()}")
    return InMemorySessionService() if delivering is None else LetopisSessionService(delivering)


def changing(state: dict[str, Any]) -> Event:
    return Event(invocation_id="inv", author="user", actions=EventActions(state_delta=state))


async def create(service: Contract, session_id: str | None = "s1", user: str = "u1", **state: Any) -> Session:
    return await service.create_session(app_name=APP, user_id=user, session_id=session_id, state=state)


async def get(service: Contract, session_id: str = "s1", user: str = "u1", **config: Any) -> Any:
    given = GetSessionConfig(**config) if config else None
    return await service.get_session(app_name=APP, user_id=user, session_id=session_id, config=given)


async def delete(service: Contract, session_id: str = "s1") -> None:
    await service.delete_session(app_name=APP, user_id="u1", session_id=session_id)


async def test_create_get_and_delete(service: Contract) -> None:
    session = await create(service, None, key="value")
    assert (session.app_name, session.user_id, session.state) == (APP, "u1", {"key": "value"})
    assert session.id and session.last_update_time <= time.time()
    assert await get(service, session.id) == session
    await delete(service, session.id)
    assert await get(service, session.id) is None
    await delete(service, session.id)
    again = await create(service, session.id)
    assert again.state == {}
    assert (await get(service, session.id)).events == []


async def test_lists_merge_state_and_are_apart_by_user(service: Contract) -> None:
    for user, name in (("u1", "1a"), ("u1", "1b"), ("u2", "2a")):
        await create(service, name, user=user, **{"key": name, "user:of": user})
    await service.create_session(app_name=f"other than {APP}", user_id="u1", session_id="x")

    async def listed(user: str | None) -> dict[str, Any]:
        found = (await service.list_sessions(app_name=APP, user_id=user)).sessions
        assert all(one.events == [] for one in found)
        return {one.id: one.state for one in found}

    both = {name: {"key": name, "user:of": "u1"} for name in ("1a", "1b")}
    assert await listed("u1") == both
    assert await listed("u2") == {"2a": {"key": "2a", "user:of": "u2"}}
    assert await listed(None) == {**both, "2a": {"key": "2a", "user:of": "u2"}}
    assert await listed("u3") == {}


async def test_lists_are_in_the_order_of_the_last_event(service: Contract) -> None:
    now = time.time()
    sessions = [await create(service, name) for name in "abc"]
    for session, moment in zip(sessions, (30, 10, 20), strict=True):
        await service.append_event(session, Event(author="user", timestamp=now + moment))
    found = (await service.list_sessions(app_name=APP, user_id="u1")).sessions
    assert [one.id for one in found] == ["b", "c", "a"]
    assert [one.last_update_time for one in found] == [now + 10, now + 20, now + 30]
    assert sessions[0].last_update_time == (await get(service, "a")).last_update_time == now + 30


@pytest.mark.parametrize(
    ("prefix", "sees"), [("app:", [True, True, False]), ("user:", [True, False, False]), ("", [False, False, False])]
)
async def test_state_is_shared_as_its_prefix_says(service: Contract, prefix: str, sees: list[bool]) -> None:
    """By another session of the user, another user, another application."""
    state = {f"{prefix}k1": "v1", f"{prefix}k2": "v2"}
    first = await create(service, **{f"{prefix}k1": "v1"})
    await service.append_event(first, changing({f"{prefix}k2": "v2"}))
    elsewhere = await service.create_session(app_name=f"other than {APP}", user_id="u1")
    others = [await create(service, "s2"), await create(service, "s2", user="u2"), elsewhere]
    assert [one.state for one in others] == [state if seen else {} for seen in sees]
    assert (await get(service)).state == state


async def test_the_last_value_of_a_key_counts(service: Contract) -> None:
    first = await create(service, sk1="v1")
    await service.append_event(first, changing({"sk2": {"a": 1, "b": [1, 2]}}))
    await service.append_event(first, changing({"sk2": {"a": 2}, "sk3": None}))
    assert (await get(service)).state == first.state == {"sk1": "v1", "sk2": {"a": 2}, "sk3": None}


async def test_temporary_state_is_seen_in_the_run_and_not_stored(service: Contract) -> None:
    session = await create(service, **{"temp:a": 1, "b": 2})
    assert (await get(service)).state == {"b": 2}
    await service.append_event(session, changing({"temp:k1": "v1", "sk": "v2"}))
    assert session.state["temp:k1"] == "v1"
    found = await get(service)
    assert found.state == {"b": 2, "sk": "v2"}
    assert found.events[0].actions.state_delta == {"sk": "v2"}


async def test_an_id_that_exists_is_refused(service: Contract) -> None:
    await create(service, key=1)
    with pytest.raises(AlreadyExistsError):
        await create(service, key=2)
    assert (await get(service)).state == {"key": 1}


async def test_padded_ids_are_stripped(service: Contract) -> None:
    if isinstance(service, InMemorySessionService):
        pytest.skip("ADK's own service does it in newer releases only")
    session = await create(service, "  s1 ")
    assert session.id == "s1"
    assert (await get(service, " s1")).id == "s1"
    await delete(service, "s1 ")
    assert await get(service) is None


async def test_every_field_of_an_event_comes_back(service: Contract) -> None:
    session = await create(service, None)
    image: Any = {"data": b"\xff\xfeimage", "mime_type": "image/png"}
    point = types.SearchEntryPoint(sdk_blob=b"\xff\xfeblob")
    counts = {"prompt_token_count": 1, "candidates_token_count": 1, "total_token_count": 2}
    event = Event(
        invocation_id="invocation",
        author="user",
        content=types.Content(role="user", parts=[types.Part(text="test_text"), types.Part.from_bytes(**image)]),
        turn_complete=True,
        partial=False,
        actions=EventActions(artifact_delta={"file": 0}, transfer_to_agent="agent", escalate=True),
        long_running_tool_ids={"tool1"},
        error_code="error_code",
        error_message="error_message",
        interrupted=True,
        grounding_metadata=types.GroundingMetadata(web_search_queries=["query1"], search_entry_point=point),
        usage_metadata=types.GenerateContentResponseUsageMetadata(**counts),
        citation_metadata=types.CitationMetadata(),
        custom_metadata={"custom_key": "custom_value"},
        input_transcription=types.Transcription(text="input transcription", finished=True),
        output_transcription=types.Transcription(text="output transcription", finished=True),
    )

    await service.append_event(session, event)
    assert await get(service, session.id) == session


async def test_filters(service: Contract) -> None:
    session = await create(service)
    for moment in range(1, 6):
        await service.append_event(session, Event(author="user", timestamp=moment))

    async def stamps(**config: Any) -> list[float]:
        return [one.timestamp for one in (await get(service, **config)).events]

    assert await stamps() == [1, 2, 3, 4, 5]
    assert await stamps(num_recent_events=0) == []
    assert await stamps(num_recent_events=3) == [3, 4, 5]
    assert await stamps(after_timestamp=4.0) == [4, 5]
    assert await stamps(after_timestamp=50.0) == []
    assert await stamps(after_timestamp=4.0, num_recent_events=3) == [4, 5]


async def test_partial_events_are_not_stored(service: Contract) -> None:
    session = await create(service)
    await service.append_event(session, Event(author="user", partial=True))
    assert session.events == (await get(service)).events == []


async def test_the_state_of_a_user_without_a_session(service: Contract) -> None:
    assert await service.get_user_state(app_name=APP, user_id="u1") == {}
    session = await create(service, None)
    await service.append_event(session, changing({"user:profile": {"name": "Alice"}, "user:count": 1, "own": 1}))
    await service.append_event(session, changing({"user:count": 2}))
    assert await service.get_user_state(app_name=APP, user_id="u1") == {"profile": {"name": "Alice"}, "count": 2}
    assert await service.get_user_state(app_name=APP, user_id="u2") == {}
    assert await service.get_user_state(app_name=f"other than {APP}", user_id="u1") == {}
    await delete(service, session.id)
    assert (await service.get_user_state(app_name=APP, user_id="u1"))["count"] == 2
