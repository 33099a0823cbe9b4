"""A full outbox refuses new events and keeps those it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.limits import Bounds
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store.errors import InvalidInput, OutboxFull
from letopis.store.model.messages import Message
from tests.support.relays import sql


def said(text: str) -> Any:
    return prepare("c1", [Message.user(text)])


@pytest.mark.parametrize("bounds", [Bounds(max_events=3), Bounds(max_events=None, max_bytes=250_000)])
async def test_a_full_outbox_refuses_new_events_drops_none_and_takes_acks(tmp_path: Path, bounds: Bounds) -> None:
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db", bounds=bounds)
    kept = 0

    async def fill() -> None:
        nonlocal kept
        for _ in range(200):
            await outbox.append(said("x" * 20_000))
            kept += 1

    with pytest.raises(OutboxFull, match="nothing was dropped"):
        await fill()
    count = "SELECT count(*) FROM letopis_outbox_events WHERE type = 'message.appended'"

    assert 0 < kept < 200
    assert await outbox.read(lambda connection: connection.exec_driver_sql(count).scalar_one()) == kept

    await sql(outbox, "UPDATE letopis_outbox_lanes SET delivered = head, pruned = head")
    await sql(outbox, "DELETE FROM letopis_outbox_events")
    assert (await outbox.append(said("room again"))).written == 1
    await outbox.close()


@pytest.mark.parametrize("field", ["max_events", "max_bytes"])
def test_a_bound_below_one_is_refused(field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        Bounds(**{field: 0})
