"""A session of OpenAI's Agents SDK in a history."""

import inspect
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

pytest.importorskip("agents", reason="needs openai-agents: pip install 'letopis[openai-agents]', or the group adapters")

from agents import Agent, OpenAIResponsesCompactionSession, Runner, Session, SQLiteSession
from agents.memory import SessionSettings
from openai.types.responses import ResponseCompactionItem

from letopis import History, InvalidInput, Message, StoreUnavailable, Text, ToolCall
from letopis.adapters.openai_agents import LetopisSession
from tests.support.bots.openai_agents import FakeModel
from tests.support.sayings import present
from tests.support.story import nothing
from tests.unit.adapters.formats.items import Chance, responses_conversation

USER: Any = {"role": "user", "content": "Same again"}


@pytest.fixture
async def session(history: History) -> AsyncIterator[LetopisSession]:
    return LetopisSession("chat-1", history)


async def test_items_come_back_byte_for_byte(session: LetopisSession) -> None:
    chance = Chance(1)
    items: Any = [item for _ in range(50) for item in responses_conversation(chance)]
    items += [USER, USER]  # users repeat themselves, and their items have no id
    await session.add_items(items[:-1])
    await session.add_items(items[-1:])
    assert isinstance(session, Session)
    assert [json.dumps(item) for item in await session.get_items()] == [json.dumps(item) for item in items]


@pytest.mark.parametrize("limit", [None, 0, 1, 3, 5, 6, 2**31 - 1])
async def test_a_limit_is_that_of_the_sdks_session(session: LetopisSession, tmp_path: Path, limit: int | None) -> None:
    theirs = SQLiteSession("chat-1", tmp_path / "theirs.db")
    items: Any = [{"role": "user", "content": f"{number}"} for number in range(5)]
    for one in (session, theirs):
        await one.add_items(items)
    assert await session.get_items(limit) == await theirs.get_items(limit)
    session.session_settings = theirs.session_settings = SessionSettings(limit=limit)
    assert await session.get_items() == await theirs.get_items()
    theirs.close()


async def test_pop_and_clear(session: LetopisSession, history: History) -> None:
    await session.add_items([USER, {"role": "user", "content": "More"}])
    assert await session.pop_item() == {"role": "user", "content": "More"}
    assert await session.get_items() == [USER]
    await session.add_items([{"role": "user", "content": "More"}])
    assert await session.get_items() == [USER, {"role": "user", "content": "More"}]
    await session.clear_session()
    assert await session.get_items() == []
    assert await session.pop_item() is None
    assert len(await history.messages("chat-1", every=True)) == 3


async def test_a_message_of_several_items_loses_one_in_one_append(
    session: LetopisSession, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in between would have lost the items before it."""
    await session.add_items([USER])
    await history.append("chat-1", Message.assistant([Text("Let me look"), ToolCall("c1", "look", "{}")]))
    append = AsyncMock(wraps=history.append)
    monkeypatch.setattr(history, "append", append)
    popped: Any = await session.pop_item()
    append.assert_awaited_once()
    assert (popped["call_id"], len(append.await_args.args)) == ("c1", 1 + 2)  # type: ignore[union-attr]
    assert await session.get_items() == [USER, {"role": "assistant", "content": "Let me look"}]


async def test_settings_may_be_a_dictionary(history: History) -> None:
    """As the SDK's own sessions take them; a wrong one is refused at once, not in a run."""
    session = LetopisSession("chat-1", history, session_settings={"limit": 2})
    await session.add_items([{"role": "user", "content": f"{number}"} for number in range(5)])
    assert session.session_settings == SessionSettings(limit=2)
    assert [one.get("content") for one in await session.get_items()] == ["3", "4"]
    for wrong in ({"limits": 2}, {"limit": "many"}):
        with pytest.raises(InvalidInput, match="session_settings"):
            LetopisSession("chat-1", history, session_settings=wrong)


async def test_what_is_no_json_is_refused_as_the_sdk_refuses_it(history: History) -> None:
    session, own = LetopisSession("chat-1", history), SQLiteSession("chat-1")
    broken: Any = {"role": "user", "content": object()}
    for one in (session, own):
        with pytest.raises(TypeError, match="object is not JSON serializable"):
            await one.add_items([USER, broken])
    own.close()
    assert await session.get_items() == []
    with pytest.raises(InvalidInput):
        await session.add_items([broken])


async def test_the_owner_is_told_by_the_run(history: History) -> None:
    """The SDK gives its wrapper to sessions of which all four methods take one."""
    session = LetopisSession("chat-1", history, owner=lambda wrapper: str(wrapper.context))
    await Runner.run(Agent(name="bot", model=FakeModel(nothing)), "Hello", session=session, context="42")
    assert present(await history.chat("chat-1").conversation()).owner_id == "42"


async def test_without_the_store_a_run_gets_what_is_retained(alone: History) -> None:
    await alone.append("chat-1", Message.user("Before"))
    assert await LetopisSession("chat-1", alone).get_items() == [{"role": "user", "content": "Before"}]
    strict = LetopisSession("chat-1", alone, require_complete=True)
    assert await strict.get_items(1) == [{"role": "user", "content": "Before"}]
    with pytest.raises(StoreUnavailable):
        await strict.get_items()


async def test_it_is_compacted(session: LetopisSession, history: History) -> None:
    """By the SDK's own wrapper: what was said leaves the path in the append that puts the summary there."""
    summary = ResponseCompactionItem(id="cmp_1", encrypted_content="...", type="compaction")
    asked = list[Any]()

    async def compact(**given: Any) -> Any:
        asked.append(given["input"])
        return SimpleNamespace(output=[summary], usage=None)

    client: Any = SimpleNamespace(responses=SimpleNamespace(compact=compact))
    wrapped = OpenAIResponsesCompactionSession("chat-1", session, client=client, compaction_mode="input")
    agent = Agent(name="bot", model=FakeModel(nothing))
    for number in range(12):
        await Runner.run(agent, f"Question {number}", session=wrapped)
    await wrapped.run_compaction({"force": True})
    assert len(asked) == 1
    assert await session.get_items() == [summary.model_dump(exclude_unset=True)]
    assert len(await history.messages("chat-1", every=True)) == 25
    reasons = {
        event.data.get("reason") for event in await history.chat("chat-1").events() if event.type.endswith("rewound")
    }
    at_once = "_atomic_replace_items" in inspect.getsource(OpenAIResponsesCompactionSession)  # since 0.24
    assert reasons == {"compaction" if at_once else "clear"}
