"""A bot on Telegram for the tests of what its adapters share."""

from pathlib import Path

import pytest

from letopis.adapters.telegram_core.bot import BotParts
from letopis.outbox import History


@pytest.fixture
def parts(history: History, tmp_path: Path) -> BotParts:
    return BotParts.of(history, 7000, files=tmp_path / "files")
