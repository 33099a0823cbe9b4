"""Each adapter through an outage and two kills, and beside it what the framework itself has, through the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from letopis.store import ConversationStore
from tests.support.sayings import NewStore
from tests.support.servers.store_pool import migrate
from tests.support.story import TURNS, tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # each bot imports its framework three times

# framework: the package it needs, the extra of Letopis, whether it records a question before it asks the model.
FRAMEWORKS = {
    "openai_agents": ("agents", "openai-agents", True),
    "langchain": ("langchain_core", "langchain", False),
    "haystack": ("haystack_experimental", "haystack", False),
    "llama_index": ("llama_index", "llama-index", True),
    "langgraph": ("langgraph.checkpoint.postgres", "langgraph", True),
    "agent_framework": ("agent_framework", "agent-framework", False),
    "strands": ("strands", "strands", True),
    "aiogram": ("aiogram", "aiogram", True),
    "pydantic_ai": ("pydantic_ai", "pydantic-ai", False),
    "google_adk": ("google.adk", "google-adk", True),
    "telegram": ("telegram", "telegram", True),
}
# Whose own backend writes files beside the bot: neither an outage nor a kill takes them, and no other machine has them.
FILES = {"strands"}
# What it keeps is records, and no message.
RECORDS = {"langgraph"}
# Those that name the conversation themselves.
CONVERSATIONS = dict.fromkeys(("aiogram", "telegram"), "tg:7000:1001")
# Those that answer the question that they were killed over, after the restart, so that it is asked once.
RESUMING = frozenset({"aiogram", "telegram"})


def is_installed(package: str) -> bool:
    """Whether a package is there, and the one that it is in."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    return _installed(request.param)


# CI tells one of them: the control, which shows that the story is hard enough.
CONTROL = "openai_agents"
OWN = [pytest.param(name, marks=[pytest.mark.comparison] * (name != CONTROL)) for name in FRAMEWORKS]


@pytest.fixture(params=OWN)
def own_backend(request: pytest.FixtureRequest) -> str:
    return _installed(request.param)


def _installed(name: str) -> str:
    package, extra, _ = FRAMEWORKS[name]
    if not is_installed(package):
        pytest.skip(f"needs {package}: pip install 'letopis[{extra}]', or the group adapters")
    return name


async def test_everything_said_is_kept(framework: str, tmp_path: Path, new_store_url: NewStore) -> None:
    asks_first = FRAMEWORKS[framework][2]
    url = new_store_url("postgresql")
    await migrate(url)

    resumes = framework in RESUMING
    told = await tell(framework, tmp_path, url, on_letopis=True, asks_first=asks_first, resumes=resumes)

    print(f"\n{framework} on Letopis: {told}")
    # One that resumes may show an answer twice, as the one before the kill may have been shown; it is kept once.
    once = [words for words, before in zip(told.said, ["", *told.said], strict=False) if not resumes or words != before]
    assert told.kept == once
    assert told.raised == {}
    assert len(told.said) in ({2 * TURNS, 2 * TURNS + 1} if resumes else {2 * TURNS + asks_first})
    async with ConversationStore.open(url) as store:
        kept = await store.messages(CONVERSATIONS.get(framework, "chat-1"), last=None)
        assert len(kept) == (0 if framework in RECORDS else len(once))


async def test_what_the_framework_itself_keeps(own_backend: str, tmp_path: Path, new_store_url: NewStore) -> None:
    """The same story is hard enough: a database or a process without an outbox costs answers."""
    told = await tell(
        own_backend, tmp_path, new_store_url("postgresql"), on_letopis=False, asks_first=FRAMEWORKS[own_backend][2]
    )

    print(f"\n{own_backend} by itself: {told}")
    assert bool(told.raised or told.lost) is (own_backend not in FILES)
