"""An agent of Strands, with a model that answers without a network."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from strands import Agent
from strands.models import Model
from strands.session import FileSessionManager, RepositorySessionManager, SessionManager, SessionRepository

from letopis.adapters.strands import LetopisSessionRepository
from letopis.outbox import History
from tests.support.story import Bot, Thinks, answer_to


class FakeModel(Model):
    def __init__(self, thinks: Thinks) -> None:
        self._thinks = thinks
        self.asked: list[list[Any]] = []

    def update_config(self, **given: Any) -> None:
        """Ignore it."""

    def get_config(self) -> dict[str, Any]:
        return {}

    def structured_output(self, *given: Any, **options: Any) -> Any:
        raise NotImplementedError

    async def stream(self, messages: Any, *given: Any, **options: Any) -> AsyncIterator[Any]:
        self.asked.append(list(messages))
        question = messages[-1]["content"][0]["text"]
        await self._thinks(question)
        async for event in self._words(answer_to(question)):
            yield event

    async def _words(self, text: str) -> AsyncIterator[Any]:
        yield {"messageStart": {"role": "assistant"}}
        yield {"contentBlockStart": {"start": {}}}
        yield {"contentBlockDelta": {"delta": {"text": text}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}


def _bot(session: SessionManager, repository: SessionRepository, thinks: Thinks) -> Bot:
    agent = Agent(model=FakeModel(thinks), session_manager=session, callback_handler=None, agent_id="bot")

    async def ask(question: str) -> str:
        return str(await asyncio.to_thread(agent, question)).strip()

    async def read() -> list[str]:
        there = await asyncio.to_thread(repository.list_messages, "chat-1", "bot")
        return [message.to_message()["content"][0]["text"] for message in there]

    return Bot(ask, read)


@asynccontextmanager
async def letopis(history: History, thinks: Thinks) -> AsyncIterator[Bot]:
    repository = LetopisSessionRepository(history)
    session = await asyncio.to_thread(RepositorySessionManager, "chat-1", repository)
    yield await asyncio.to_thread(_bot, session, repository, thinks)


def default(url: str, thinks: Thinks, *, folder: Path) -> Bot:
    """The framework's own: files on this machine, whatever database there is."""
    session = FileSessionManager("chat-1", storage_dir=str(folder / "sessions"))
    return _bot(session, session, thinks)
