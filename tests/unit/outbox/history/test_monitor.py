"""How a history alerts operators and users of stuck events, and when it does not."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from letopis.outbox import History, Incident, Rules
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.store import ConfigurationError, Message
from tests.support.relays import until

AT_ONCE = Rules(hold=0.2, stuck_after=0.2, resolve_after=0.2)
DOWN = "postgresql://bot@127.0.0.1:1/h"


def channel() -> Any:
    return SimpleNamespace(name="operators", recipient="channel:operators", send=AsyncMock())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look every tenth of a second."""
    monkeypatch.setitem(AlertMonitor.__init__.__kwdefaults__, "interval", 0.1)


async def test_operators_are_told_by_a_channel_of_the_bots_own(tmp_path: Path) -> None:
    operators = channel()
    async with History(tmp_path / "bot.outbox.db", store=DOWN, channels=[operators], rules=AT_ONCE) as history:
        await history.append("c1", Message.user("hi"), owner="42")
        await until(lambda: operators.send.await_count)
    assert operators.send.await_args.args[0].facts["kind"] == "store_down"


async def test_users_are_told_in_the_style_that_is_chosen(tmp_path: Path) -> None:
    told: list[Incident] = []
    async with History(
        tmp_path / "bot.outbox.db", store=DOWN, on_stuck=told.append, rules=AT_ONCE, style="seed", locale="ru"
    ) as history:
        await history.append("c1", Message.user("hi"), owner="42")
        await until(lambda: told)
    assert "Не удалось сохранить ответ в историю мультичата" in told[0].text()


async def test_a_reader_watches_nothing(tmp_path: Path) -> None:
    operators = channel()
    async with History(
        tmp_path / "bot.outbox.db", store=DOWN, watch=False, channels=[operators], rules=AT_ONCE
    ) as history:
        await history.append("c1", Message.user("hi"))
        await asyncio.sleep(1)
        found = await history.status()

    assert (operators.send.await_count, found.incidents) == (0, ())


async def test_an_address_that_is_no_channel_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="alert address") as caught:
        async with History(tmp_path / "bot.outbox.db", channels=["hunter2"]):
            pytest.fail("it opened")
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
