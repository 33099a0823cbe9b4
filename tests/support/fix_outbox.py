"""Give tests an outbox file, a history on it and the three kinds of store."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from letopis import ConversationStore, History, OutboxFile
from letopis.ops.cli.interface.locations import open_source
from letopis.outbox.history.options import Options
from letopis.outbox.sync.blocking import BlockingOptions
from tests.support.peers import refused_port
from tests.support.relays import Hands

READ_TIMEOUT_SECONDS: Final = 60.0


@pytest.fixture(scope="session", autouse=True)
def patient_reads() -> Iterator[None]:
    """Have a history wait for a slow store unless its test says how long: a busy machine is no outage."""
    openers = (Options.__init__, BlockingOptions.__init__, open_source.__wrapped__)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for opener in openers:
            patch.setitem(opener.__kwdefaults__, "read_timeout", READ_TIMEOUT_SECONDS)
        yield


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[OutboxFile]:
    file = await OutboxFile.open(tmp_path / "bot.outbox.db")
    yield file
    await file.close()


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[ConversationStore]:
    async with ConversationStore.open(store_url) as opened:
        yield opened


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    """A history that delivers nothing by itself."""
    async with History(tmp_path / "bot.outbox.db", relay=False) as opened:
        yield opened


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[History]:
    url = f"postgresql://nobody@127.0.0.1:{await refused_port()}/nowhere"
    async with History(tmp_path / "bot.outbox.db", store=url, relay=False) as opened:
        yield opened


@pytest.fixture
async def bot(tmp_path: Path, store: ConversationStore) -> AsyncIterator[History]:
    """A history on each kind of store that delivers nothing by itself."""
    async with History(tmp_path / "bot.outbox.db", store=store, relay=False) as opened:
        yield opened
