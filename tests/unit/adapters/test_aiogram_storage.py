"""The FSM storage does what aiogram's own storages do, keeps what it was told, and lives through an outage."""

import asyncio
import random
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("aiogram", reason="needs aiogram: pip install 'letopis[aiogram]'")

from aiogram.exceptions import DataNotDictLikeError
from aiogram.fsm.state import State, StatesGroup
from aiogram.fsm.storage.base import StorageKey
from aiogram.fsm.storage.memory import MemoryStorage

from letopis import History, InvalidInput, StoreUnavailable
from letopis.adapters.aiogram import LetopisFsmStorage

KEY = StorageKey(bot_id=42, chat_id=-42, user_id=1)


class Form(StatesGroup):
    name = State()


OTHERS: dict[str, Any] = {
    "bot_id": 43,
    "chat_id": -43,
    "user_id": 2,
    "thread_id": 7,
    "business_connection_id": "conn",
    "destiny": "scenes",
}
KEYS = [KEY, *(replace(KEY, **{name: other}) for name, other in OTHERS.items())]
DEEDS: list[tuple[str, dict[str, Any]]] = [
    ("get_state", {}),
    *(("set_state", {"state": state}) for state in ("state", Form.name, None)),
    ("get_data", {}),
    *(("set_data", {"data": data}) for data in ({"foo": "bar"}, {})),
    *(("update_data", {"data": data}) for data in ({"foo": "bar"}, {"baz": "spam"}, {"baz": "test"}, {})),
    *(("get_value", {"dict_key": "foo", **given}) for given in ({}, {"default": "baz"})),
]


@pytest.mark.parametrize("cache", [True, False])
async def test_the_same_deeds_as_in_memory(history: History, cache: bool) -> None:
    """Random ones, on keys that differ in one part, with aiogram's own storage beside; what is returned is a copy."""
    storages, chance = (LetopisFsmStorage(history, cache=cache), MemoryStorage()), random.Random(3)
    for step in range(150):
        key, (deed, options) = chance.choice(KEYS), chance.choice(DEEDS)
        results = []
        for storage in storages:
            given = deepcopy(options)
            found = await getattr(storage, deed)(**{"storage_key" if deed == "get_value" else "key": key}, **given)
            results.append(deepcopy(found))
            for mine in (found, given.get("data")):
                if isinstance(mine, dict):
                    mine["foo"] = "changed"
        assert results[0] == results[1], (step, deed, key)


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
    uncached = LetopisFsmStorage(alone, cache=False, when_unknown="raise")
    for call in (storage.get_state(KEY), storage.update_data(KEY, {"a": 1}), uncached.update_data(KEY, {"a": 1})):
        with pytest.raises(StoreUnavailable):
            await call


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
