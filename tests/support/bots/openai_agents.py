"""A bot of OpenAI's Agents SDK, with a model that answers without a network."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agents import Agent, Model, ModelResponse, Runner, Session, Usage, set_tracing_disabled
from agents.extensions.memory import SQLAlchemySession
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

from letopis.adapters.openai_agents import LetopisSession
from letopis.outbox import History
from tests.support.story import Bot, Thinks, answer_to, on_asyncpg

set_tracing_disabled(True)


class FakeModel(Model):
    def __init__(self, thinks: Thinks) -> None:
        self._thinks = thinks

    async def get_response(self, system_instructions: Any, input: Any, *given: Any, **options: Any) -> ModelResponse:  # noqa: A002
        question = input if isinstance(input, str) else input[-1]["content"]
        await self._thinks(question)
        return self._said(answer_to(question), f"msg_{len(input)}")

    def _said(self, text: str, name: str = "msg") -> ModelResponse:
        words = [ResponseOutputText(text=text, type="output_text", annotations=[], logprobs=[])]
        message = ResponseOutputMessage(id=name, content=words, role="assistant", status="completed", type="message")
        return ModelResponse(output=[message], usage=Usage(), response_id=None)

    def stream_response(self, *given: Any, **options: Any) -> Any:
        raise NotImplementedError


def _bot(session: Session, thinks: Thinks) -> Bot:
    agent = Agent(name="bot", model=FakeModel(thinks))

    async def ask(question: str) -> str:
        result = await Runner.run(agent, question, session=session)
        return str(result.final_output)

    async def read() -> list[str]:
        items: list[Any] = await session.get_items()
        return [one["content"] if isinstance(one["content"], str) else one["content"][0]["text"] for one in items]

    return Bot(ask, read)


def letopis(history: History, thinks: Thinks) -> Bot:
    return _bot(LetopisSession("chat-1", history), thinks)


@asynccontextmanager
async def default(url: str, thinks: Thinks) -> AsyncIterator[Bot]:
    session = SQLAlchemySession.from_url("chat-1", url=on_asyncpg(url), create_tables=True)
    yield _bot(session, thinks)
    await session.engine.dispose()
