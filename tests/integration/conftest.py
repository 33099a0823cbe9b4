"""A Telegram for bots of every framework."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bot_api import BotApi, bot_api


@pytest.fixture
def api() -> Iterator[BotApi]:
    """A Bot API server, which outlives the bot."""
    with bot_api() as running:
        yield running
