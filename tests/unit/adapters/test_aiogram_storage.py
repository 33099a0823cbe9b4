"""The FSM storage does what aiogram's own storages do, keeps what it was told, and lives through an outage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiogram", reason="needs aiogram: pip install 'letopis[aiogram]'")

from aiogram.exceptions import DataNotDictLikeError
from aiogram.fsm.context import FSMContext
from aiogram.fsm.state import State, StatesGroup
from aiogram.fsm.storage.base import BaseStorage, StorageKey
from aiogram.fsm.storage.memory import MemoryStorage

from letopis.adapters.aiogram import LetopisFsmStorage
from letopis.outbox import History
from letopis.store import InvalidInput, StoreUnavailable

KEY = StorageKey(bot_id=42, chat_id=-42, user_id=1)


class Form(StatesGroup):
    """The states of a form."""

    name = State()


@pytest.fixture(params=["memory", "cached", "uncached"])
async def storage(request: pytest.FixtureRequest, history: History) -> AsyncIterator[BaseStorage]:
    """Ours, and aiogram's own beside it: the contract is what both do."""
    if request.param == "memory":
        yield MemoryStorage()
    else:
        yield LetopisFsmStorage(history, cache=request.param == "cached")


# The contract, as aiogram's own tests of its storages have it.


async def test_set_state(storage: BaseStorage) -> None:
    assert await storage.get_state(key=KEY) is None

    await storage.set_state(key=KEY, state="state")
    assert await storage.get_state(key=KEY) == "state"
    await storage.set_state(key=KEY, state=Form.name)
    assert await storage.get_state(key=KEY) == "Form:name"
    await storage.set_state(key=KEY, state=None)
    assert await storage.get_state(key=KEY) is None


async def test_set_data(storage: BaseStorage) -> None:
    assert await storage.get_data(key=KEY) == {}
    assert await storage.get_value(storage_key=KEY, dict_key="foo") is None
    assert await storage.get_value(storage_key=KEY, dict_key="foo", default="baz") == "baz"

    await storage.set_data(key=KEY, data={"foo": "bar"})
    assert await storage.get_data(key=KEY) == {"foo": "bar"}
    assert await storage.get_value(storage_key=KEY, dict_key="foo") == "bar"
    assert await storage.get_value(storage_key=KEY, dict_key="foo", default="baz") == "bar"

    await storage.set_data(key=KEY, data={})
    assert await storage.get_data(key=KEY) == {}
    assert await storage.get_value(storage_key=KEY, dict_key="foo", default="baz") == "baz"


async def test_update_data(storage: BaseStorage) -> None:
    assert await storage.get_data(key=KEY) == {}
    assert await storage.update_data(key=KEY, data={"foo": "bar"}) == {"foo": "bar"}
    assert await storage.update_data(key=KEY, data={}) == {"foo": "bar"}
    assert await storage.get_data(key=KEY) == {"foo": "bar"}
    assert await storage.update_data(key=KEY, data={"baz": "spam"}) == {"foo": "bar", "baz": "spam"}
    assert await storage.get_data(key=KEY) == {"foo": "bar", "baz": "spam"}
    assert await storage.update_data(key=KEY, data={"baz": "test"}) == {"foo": "bar", "baz": "test"}


async def test_what_is_returned_is_a_copy(storage: BaseStorage) -> None:
    given = {"foo": "bar"}
    await storage.set_data(key=KEY, data=given)
    given["foo"] = "changed"
    (await storage.get_data(key=KEY))["foo"] = "changed"
    (await storage.update_data(key=KEY, data={"baz": 1}))["foo"] = "changed"

    assert await storage.get_data(key=KEY) == {"foo": "bar", "baz": 1}


@pytest.mark.parametrize(
    "other",
    [
        {"bot_id": 43},
        {"chat_id": -43},
        {"user_id": 2},
        {"thread_id": 7},
        {"business_connection_id": "conn"},
        {"destiny": "scenes"},
    ],
)
async def test_every_part_of_the_key_counts(storage: BaseStorage, other: dict[str, Any]) -> None:
    await storage.set_state(key=KEY, state="mine")
    theirs = replace(KEY, **other)

    assert await storage.get_state(key=theirs) is None
    await storage.set_state(key=theirs, state="theirs")
    assert await storage.get_state(key=KEY) == "mine"


async def test_a_context_clears_both(storage: BaseStorage) -> None:
    context = FSMContext(storage=storage, key=KEY)
    await context.set_state(Form.name)
    await context.update_data(name="Ada")

    await context.clear()

    assert (await context.get_state(), await context.get_data()) == (None, {})


# What the others do not promise.


async def test_updates_at_the_same_time_are_all_kept(history: History) -> None:
    for cache in (True, False):
        storage = LetopisFsmStorage(history, cache=cache)
        await storage.set_data(KEY, {})
        await asyncio.gather(*(storage.update_data(KEY, {str(number): number}) for number in range(12)))
        assert len(await storage.get_data(KEY)) == 12


async def test_two_processes_see_each_other_without_a_cache(history: History) -> None:
    one, other = LetopisFsmStorage(history, cache=False), LetopisFsmStorage(history, cache=False)

    await one.update_data(KEY, {"a": 1})
    await other.update_data(KEY, {"b": 2})

    assert await one.get_data(KEY) == {"a": 1, "b": 2}


async def test_states_are_there_after_a_restart(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        await LetopisFsmStorage(history).set_state(KEY, Form.name)
        await LetopisFsmStorage(history).set_data(KEY, {"name": "Ada", "tags": ["a"]})

    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        storage = LetopisFsmStorage(history)
        assert await storage.get_state(KEY) == "Form:name"
        data = await storage.get_data(KEY)
        data["tags"].append("b")
        assert await storage.get_data(KEY) == {"name": "Ada", "tags": ["a"]}


async def test_a_state_that_nobody_knows_costs_no_answer(alone: History, caplog: pytest.LogCaptureFixture) -> None:
    storage = LetopisFsmStorage(alone)

    assert (await storage.get_state(KEY), await storage.get_data(KEY)) == (None, {})
    assert "taken as none" in caplog.text
    assert await storage.update_data(KEY, {"name": "Ada"}) == {"name": "Ada"}
    assert await LetopisFsmStorage(alone, cache=False).update_data(KEY, {"age": 36}) == {"name": "Ada", "age": 36}
    await storage.set_state(KEY, "state")
    assert await LetopisFsmStorage(alone).get_state(KEY) == "state"


async def test_or_is_raised_if_the_bot_prefers(alone: History) -> None:
    storage = LetopisFsmStorage(alone, when_unknown="raise")

    with pytest.raises(StoreUnavailable):
        await storage.get_state(KEY)
    with pytest.raises(StoreUnavailable):
        await storage.update_data(KEY, {"name": "Ada"})
    with pytest.raises(StoreUnavailable):
        await LetopisFsmStorage(alone, cache=False, when_unknown="raise").update_data(KEY, {"name": "Ada"})


async def test_what_is_no_json_is_refused_and_changes_nothing(history: History) -> None:
    storage = LetopisFsmStorage(history)
    await storage.set_data(KEY, {"name": "Ada"})

    with pytest.raises(InvalidInput):
        await storage.set_data(KEY, {"when": object()})
    for wrong in (["a"], (), None):  # as aiogram's own storages do
        with pytest.raises(DataNotDictLikeError):
            await storage.set_data(KEY, wrong)  # type: ignore[arg-type]
        with pytest.raises(DataNotDictLikeError):
            await storage.update_data(KEY, wrong)  # type: ignore[arg-type]

    assert await storage.get_data(KEY) == {"name": "Ada"}
    with pytest.raises(InvalidInput, match="must be a History"):
        LetopisFsmStorage("bot.outbox.db")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="when_unknown"):
        LetopisFsmStorage(history, when_unknown="guess")  # type: ignore[arg-type]
