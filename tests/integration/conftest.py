"""A Telegram for bots of every framework."""

import asyncio
from collections.abc import Iterator

import pytest

from letopis.outbox import History
from tests.conftest import STORES
from tests.support.bot_api import BotApi, bot_api


@pytest.fixture
def api() -> Iterator[BotApi]:
    """A Bot API server, which outlives the bot."""
    with bot_api() as running:
        yield running


@pytest.fixture(scope="module", params=["control", *STORES])
def delivering(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History | None]:
    """A history that delivers in the background, shared by the tests of a contract; none for the control."""
    if request.param == "control":
        yield None
        return
    folder = tmp_path_factory.mktemp(request.param)
    pool = None if request.param == "sqlite" else request.getfixturevalue(f"{request.param}_stores")
    url = f"sqlite:///{(folder / 'store.db').as_posix()}" if pool is None else pool.take()
    history = History(folder / "bot.outbox.db", store=url, own_thread=True)
    yield history
    asyncio.run(history.close())
    if pool is not None:
        pool.give_back(url)
