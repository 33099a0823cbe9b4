"""A bot of OpenAI's Agents SDK, with a model that answers without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agents import Agent, Model, ModelResponse, Runner, Session, Usage, set_tracing_disabled
from agents.extensions.memory import SQLAlchemySession
from openai.types.responses import ResponseOutputMessage, ResponseOutputText
from sqlalchemy.engine import make_url

from letopis.adapters.openai_agents import LetopisSession
from letopis.outbox import History
from tests.support.story import Asks, Bot, Thinks, answer_to

set_tracing_disabled(True)

DEFAULT = "SQLAlchemySession"


class FakeModel(Model):
    def __init__(self, thinks: Thinks) -> None:
        self._thinks = thinks

    async def get_response(self, system_instructions: Any, input: Any, *given: Any, **options: Any) -> ModelResponse:  # noqa: A002
        question = input if isinstance(input, str) else input[-1]["content"]
        await self._thinks(question)
        words = ResponseOutputText(text=answer_to(question), type="output_text", annotations=[], logprobs=[])
        message = ResponseOutputMessage(
            id=f"msg_{len(input)}", content=[words], role="assistant", status="completed", type="message"
        )
        return ModelResponse(output=[message], usage=Usage(), response_id=None)

    def stream_response(self, *given: Any, **options: Any) -> Any:
        raise NotImplementedError


def _asks(session: Session, thinks: Thinks) -> Asks:
    agent = Agent(name="bot", model=FakeModel(thinks))

    async def ask(question: str) -> str:
        result = await Runner.run(agent, question, session=session)
        return str(result.final_output)

    return ask


def _texts(items: list[Any]) -> list[str]:
    return [item["content"] if isinstance(item["content"], str) else item["content"][0]["text"] for item in items]


@asynccontextmanager
async def letopis(history: History, thinks: Thinks) -> AsyncIterator[Bot]:
    session = LetopisSession("chat-1", history)

    async def read() -> list[str]:
        return _texts(await session.get_items())

    yield Bot(_asks(session, thinks), read)


@asynccontextmanager
async def default(url: str, thinks: Thinks) -> AsyncIterator[Bot]:
    driven = make_url(url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
    session = SQLAlchemySession.from_url("chat-1", url=driven, create_tables=True)

    async def read() -> list[str]:
        return _texts(await session.get_items())

    yield Bot(_asks(session, thinks), read)
    await session.engine.dispose()
