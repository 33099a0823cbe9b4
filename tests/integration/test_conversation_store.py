"""A history store that is cancelled, unreachable or closed leaves nothing behind and says what is wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from letopis.store import ConfigurationError, ConversationStore, FaultClass, StoreFault, _components


async def test_a_file_that_is_no_database_is_never_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("These are my notes, and they are not a database at all.\n" * 100)
    before = path.read_bytes()
    store = ConversationStore(path)

    with pytest.raises(StoreFault) as caught:
        await store.prepare()

    assert caught.value.fault_class is FaultClass.MISCONFIGURED
    assert "my notes" not in str(caught.value)
    assert path.read_bytes() == before
    await store.close()


@pytest.mark.parametrize("partitions", [0, -1, 1025])
def test_a_number_of_partitions_that_is_none_is_refused(partitions: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="partitions"):
        ConversationStore(tmp_path / "history.db", partitions=partitions)


async def test_preparing_at_once_prepares_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, prepared = _components.prepare_schema, list[object]()

    async def counted(*given: Any, **named: Any) -> int:
        prepared.append(given)
        return await real(*given, **named)

    monkeypatch.setattr(_components, "prepare_schema", counted)
    store = ConversationStore(tmp_path / "history.db")
    await asyncio.gather(*(store.prepare() for _ in range(8)), *(store.head() for _ in range(8)))
    await store.close()
    assert len(prepared) == 1
