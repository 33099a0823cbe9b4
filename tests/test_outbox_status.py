"""The status: figures that agree with what is in the file, and a contract for scripts."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from letopis.outbox import History
from letopis.outbox.file import look
from letopis.outbox.relay import Relay
from letopis.outbox.status import read_status
from letopis.store.messages import Message


async def test_it_counts_what_is_pending_and_for_how_long(tmp_path: Path) -> None:
    moment = datetime(2026, 11, 25, tzinfo=UTC)
    async with History.open(tmp_path / "bot.outbox.db", relay=False, now=lambda: moment) as history:
        await history.append("c1", Message.user("é"), metadata={"k": 1})
        await history.append("c2", Message.user("two"))
        moment += timedelta(seconds=90)
        await history.outbox.write(
            lambda connection: connection.exec_driver_sql(
                "UPDATE letopis_outbox_lanes SET state = 'blocked' WHERE conversation_id = 'c2'"
            )
        )

        found = await history.status()
        size = "SELECT sum(length(CAST(data AS BLOB)) + coalesce(length(metadata), 0)) FROM letopis_outbox_events"

        assert (found.pending, found.oldest_owed_seconds) == (4, 90.0)
        assert found.pending_bytes == await history.outbox.read(lambda c: c.exec_driver_sql(size).scalar_one())
        assert dict(found.lanes) == {"ready": 1, "retrying": 0, "blocked": 1, "paused": 0}
        assert not found.healthy
        assert (found.relay.running, found.relay.holder) == (False, None)


async def test_it_shows_the_relay_and_what_it_delivered(tmp_path: Path) -> None:
    async with History.open(tmp_path / "bot.outbox.db") as history:
        receipt = await history.append("c1", Message.user("hi"))
        assert await receipt.saved(timeout=20)
        found = await history.status()

        assert found.relay.running
        assert found.relay.holder is not None
        assert found.relay.holder.startswith("bot (pid ")
        assert found.healthy
        assert (found.pending, found.oldest_owed_seconds) == (0, None)

    after = await look(tmp_path / "bot.outbox.db", lambda connection: read_status(connection, now_us=0))
    assert not after.relay.running
    assert after.delivered == 2


async def test_the_json_is_the_documented_contract(tmp_path: Path) -> None:
    async with History.open(tmp_path / "bot.outbox.db", relay=False) as history:
        await history.append("c1", Message.user("hi"))
        await Relay(history.outbox, history.store).drain_once()
        found = (await history.status()).to_json()

    assert set(json.loads(json.dumps(found))) == {
        "pending",
        "pending_bytes",
        "oldest_owed_seconds",
        "delivered",
        "lanes",
        "breaker",
        "relay",
        "incidents",
    }
    assert set(found["lanes"]) == {"ready", "retrying", "blocked", "paused"}
    assert set(found["breaker"]) == {"state", "since", "reason"}
    assert set(found["relay"]) == {"running", "holder", "last_progress_seconds", "held_since", "held_reason"}


async def test_an_age_is_never_negative_whatever_the_clock(tmp_path: Path) -> None:
    moment = datetime(2026, 11, 25, tzinfo=UTC)
    async with History.open(tmp_path / "bot.outbox.db", relay=False, now=lambda: moment) as history:
        await history.append("c1", Message.user("hi"))
        moment -= timedelta(hours=1)

        assert (await history.status()).oldest_owed_seconds == 0
