# pyright: reportMissingImports=false
"""Store the states and data of aiogram's FSM as records of a history."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, Literal
from uuid import UUID
from weakref import WeakValueDictionary

from aiogram.exceptions import DataNotDictLikeError
from aiogram.fsm.state import State
from aiogram.fsm.storage.base import BaseStorage, StateType, StorageKey

from letopis.outbox import History
from letopis.store import ABSENT, InvalidInput, RecordConflict, StoreUnavailable

logger: Final = logging.getLogger("letopis.adapters.telegram")

SPACE: Final = "aiogram.fsm"
_CACHED: Final = 10_000
_TRIES: Final = 10
_Part = Literal["state", "data"]


class LetopisFsmStorage(BaseStorage):
    """A ``BaseStorage`` on records of a history: durable when a call returns, whether or not the store can be reached.

    ::

        dp = Dispatcher(storage=LetopisFsmStorage(history))

    The whole ``StorageKey`` is the key, destiny and business connection included. What is returned is a copy. Data must
    be JSON. While the history store is unreachable, a state that this outbox does not know (none was set through it in
    the last day) counts as no state, which is logged, so that the bot keeps answering.

    :param history: not closed by the storage.
    :param cache: keep what was read and set in memory. Turn it off if several processes serve one bot.
    :param when_unknown: ``raise`` to raise ``StoreUnavailable`` instead of treating an unknown state as no state.
    """

    def __init__(
        self, history: History, *, cache: bool = True, when_unknown: Literal["none", "raise"] = "none"
    ) -> None:
        if not isinstance(history, History):
            raise InvalidInput("history", f"must be a History, not {type(history).__name__}")
        if when_unknown not in ("none", "raise"):
            raise InvalidInput("when_unknown", "must be 'none' or 'raise'")
        self._records = history.records(space=SPACE)
        self._cache: OrderedDict[tuple[StorageKey, _Part], Any] | None = OrderedDict() if cache else None
        self._when_unknown = when_unknown
        self._locks: WeakValueDictionary[StorageKey, asyncio.Lock] = WeakValueDictionary()

    async def set_state(self, key: StorageKey, state: StateType = None) -> None:
        """Set the state; ``None`` ends it.

        :raises OutboxFull: the outbox has reached its limits; nothing was written.
        :raises LetopisError: as for ``Records.put``.
        """
        await self._put(key, "state", state.state if isinstance(state, State) else state)

    async def get_state(self, key: StorageKey) -> str | None:
        """Return the state; ``None`` if there is none.

        :raises StoreUnavailable: only with ``when_unknown="raise"``.
        """
        found = await self._get(key, "state")
        return None if found is None else str(found)

    async def set_data(self, key: StorageKey, data: Mapping[str, Any]) -> None:
        """Replace the data; an empty mapping clears it.

        :raises DataNotDictLikeError: the data is not a mapping; nothing was written.
        :raises InvalidInput: the data holds values that are not JSON; nothing was written.
        :raises LetopisError: as for ``Records.put``.
        """
        async with self._lock(key):
            await self._put(key, "data", _checked(data) or None)

    async def get_data(self, key: StorageKey) -> dict[str, Any]:
        """Return a copy of the data.

        :raises StoreUnavailable: only with ``when_unknown="raise"``.
        """
        return dict(await self._get(key, "data") or {})

    async def update_data(self, key: StorageKey, data: Mapping[str, Any]) -> dict[str, Any]:
        """Update the data and return all of it; concurrent updates are both kept.

        :raises DataNotDictLikeError: the data is not a mapping; nothing was written.
        :raises InvalidInput: the data holds values that are not JSON; nothing was written.
        :raises LetopisError: as for ``Records.put``.
        """
        added = _checked(data)
        async with self._lock(key):
            if self._cache is not None:
                merged = {**await self.get_data(key), **added}
                await self._put(key, "data", merged or None)
                return copy.deepcopy(merged)
            return await self._update_over(key, added)

    async def close(self) -> None:
        """Do nothing: the opener of the history closes it."""

    async def _update_over(self, key: StorageKey, added: dict[str, Any]) -> dict[str, Any]:
        """Update the data when other processes may do so too."""
        for tries in range(1, _TRIES + 1):
            revision: UUID | None = None
            current: dict[str, Any] = {}
            try:
                found = await self._records.get(_namespace(key), "data")
            except StoreUnavailable as error:
                self._take_as_none(error)
            else:
                if found is not None:
                    revision, current = found.revision, dict(found.value or {})
            merged = {**current, **added}
            try:
                expected = ABSENT if revision is None else revision
                await self._records.put(_namespace(key), "data", merged, expected=expected)
            except RecordConflict:
                if tries == _TRIES:
                    raise
                continue
            except StoreUnavailable:  # the condition cannot be checked at present
                await self._records.put(_namespace(key), "data", merged)
            return copy.deepcopy(merged)
        raise AssertionError  # the last try returns or raises

    async def _put(self, key: StorageKey, part: _Part, value: Any) -> None:
        # A record of None rather than a deletion: with it, the outbox alone knows that there is no value.
        await self._records.put(_namespace(key), part, value)
        self._keep(key, part, value)

    async def _get(self, key: StorageKey, part: _Part) -> Any:
        if self._cache is not None and (key, part) in self._cache:
            self._cache.move_to_end((key, part))
            return copy.deepcopy(self._cache[key, part])
        try:
            found = await self._records.get(_namespace(key), part)
        except StoreUnavailable as error:
            self._take_as_none(error)
            return None
        value = None if found is None else found.value
        if found is None or found.current:
            self._keep(key, part, value)
        return copy.deepcopy(value)

    def _take_as_none(self, error: StoreUnavailable) -> None:
        if self._when_unknown == "raise":
            raise error
        logger.warning("a state is not known while the history store is unavailable, and is taken as none")

    def _keep(self, key: StorageKey, part: _Part, value: Any) -> None:
        if self._cache is None:
            return
        self._cache[key, part] = copy.deepcopy(value)
        self._cache.move_to_end((key, part))
        if len(self._cache) > _CACHED:
            self._cache.popitem(last=False)

    def _lock(self, key: StorageKey) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())


def _namespace(key: StorageKey) -> tuple[str, ...]:
    """Return the whole key as labels; absent parts are ``-``, which is not a valid id."""
    return (
        str(key.bot_id),
        str(key.chat_id),
        str(key.user_id),
        "-" if key.thread_id is None else str(key.thread_id),
        "-" if key.business_connection_id is None else f"b{key.business_connection_id}",
        key.destiny,
    )


def _checked(data: object) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise DataNotDictLikeError(f"Data must be a dict or dict-like object, got {type(data).__name__}")
    return dict(data)
