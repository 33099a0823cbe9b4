"""What a history store refuses before it is used, and how it reports rows of its own that are gone."""

from pathlib import Path
from typing import Any

import pytest

from letopis.store import (
    ConfigurationError,
    ConversationStore,
    Message,
    StoreFault,
)
from letopis.store.database.store_identity import LogState
from tests.support.sayings import change, new_outbox


@pytest.mark.parametrize(
    "options",
    [
        *({"timeouts": 5}, {"pool_size": 0}, {"pool_size": True}, {"partitions": True}),
        *({"upcasters": {}}, {"now": 5}, {"projections": [object()]}),
    ],
)
async def test_option_of_another_type_is_refused_by_name(tmp_path: Path, options: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(options)).removesuffix('s')}.* must be"):
        async with ConversationStore.open(tmp_path / "history.db", **options):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("statement", "delivering", "opening"),
    [
        ("DELETE FROM letopis_log_heads", "misconfigured partitions", "misconfigured partitions"),
        ("DELETE FROM letopis_store", "misconfigured identity", None),
        (f"UPDATE letopis_log_heads SET closed = {LogState.ARRIVING}", "wrong_store arriving", "wrong_store arriving"),
    ],
)
async def test_store_without_rows_of_its_own_is_neither_written_to_nor_opened(
    tmp_path: Path, statement: str, delivering: str, opening: str | None
) -> None:
    async with ConversationStore.open(tmp_path / "history.db") as store:
        outbox = await new_outbox(store, "c", Message.user("one"))
        outbox.append("c", Message.user("two"))
        await change(store, statement)
        with pytest.raises(StoreFault, match=delivering):
            await outbox.deliver(store)
    if opening is not None:
        with pytest.raises(StoreFault, match=opening):
            await ConversationStore(tmp_path / "history.db").prepare()
