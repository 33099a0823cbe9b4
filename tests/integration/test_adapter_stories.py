"""Each adapter through an outage and two kills, and beside it what the framework itself has, through the same."""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from letopis.store import ConversationStore
from tests.support.sayings import NewStore
from tests.support.servers.store_pool import migrate
from tests.support.story import TURNS, tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # each bot imports its framework three times

# By framework: the package that it needs.
FRAMEWORKS = {
    "openai_agents": "agents",
    "langchain": "langchain_core",
    "haystack": "haystack_experimental",
    "llama_index": "llama_index",
    "langgraph": "langgraph.checkpoint.postgres",
    "agent_framework": "agent_framework",
    "strands": "strands",
    "aiogram": "aiogram",
    "pydantic_ai": "pydantic_ai",
    "google_adk": "google.adk",
    "telegram": "telegram",
}
# Those that record a question with its answer; the others do it before they ask the model.
RECORDING_LATE = {"langchain", "haystack", "agent_framework", "pydantic_ai"}
# Whose own backend writes files beside the bot: neither an outage nor a kill takes them, and no other machine has them.
FILES = {"strands"}
# What it keeps is records, and no message.
RECORDS = {"langgraph"}
# Those that name the conversation themselves, and answer the question that they were killed over after the restart, so
# that it is asked once.
BOTS = {"aiogram", "telegram"}
# CI tells one story of each way to record: late, first, as records, as a bot of a chat, and of the frameworks' own the
# control, which shows that the story is hard enough. The nightly `nox -s adapters` tells them all.
TOLD = {"langchain", "llama_index", "langgraph", "agent_framework", "telegram"}
CONTROL = "langchain"
EACH = [pytest.param(name, marks=[pytest.mark.comparison] * (name not in TOLD)) for name in FRAMEWORKS]
OWN = [pytest.param(name, marks=[pytest.mark.comparison] * (name != CONTROL)) for name in FRAMEWORKS]


@pytest.fixture
def framework(request: pytest.FixtureRequest) -> str:
    """Skip a framework that is not installed, or whose parent package is not."""
    name: str = request.param
    with suppress(ModuleNotFoundError):
        if find_spec(FRAMEWORKS[name]) is not None:
            return name
    pytest.skip(f"needs {FRAMEWORKS[name]}: pip install 'letopis[{name.replace('_', '-')}]', or the group adapters")


@pytest.mark.parametrize("framework", EACH, indirect=True)
async def test_everything_said_is_kept(framework: str, tmp_path: Path, new_store_url: NewStore) -> None:
    asks_first, resumes = framework not in RECORDING_LATE, framework in BOTS
    url = new_store_url("postgresql")
    await migrate(url)

    told = await tell(framework, tmp_path, url, on_letopis=True, asks_first=asks_first, resumes=resumes)

    print(f"\n{framework} on Letopis: {told}")
    # One that resumes may show an answer twice, as the one before the kill may have been shown; it is kept once.
    once = [words for words, before in zip(told.said, ["", *told.said], strict=False) if not resumes or words != before]
    assert told.kept == once
    assert told.raised == {}
    assert len(told.said) in ({2 * TURNS, 2 * TURNS + 1} if resumes else {2 * TURNS + asks_first})
    async with ConversationStore.open(url) as store:
        kept = await store.messages("tg:7000:1001" if resumes else "chat-1", last=None)
        assert len(kept) == (0 if framework in RECORDS else len(once))


@pytest.mark.parametrize("framework", OWN, indirect=True)
async def test_what_the_framework_itself_keeps(framework: str, tmp_path: Path, new_store_url: NewStore) -> None:
    """The same story is hard enough: a database or a process without an outbox costs answers."""
    asks_first = framework not in RECORDING_LATE
    told = await tell(framework, tmp_path, new_store_url("postgresql"), on_letopis=False, asks_first=asks_first)

    print(f"\n{framework} by itself: {told}")
    assert bool(told.raised or told.lost) is (framework not in FILES)
