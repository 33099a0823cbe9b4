"""An agent of Google's ADK in its runner, with a model that answers without a network."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from google.adk.agents import LlmAgent
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.sessions.base_session_service import BaseSessionService
from google.adk.sessions.database_session_service import DatabaseSessionService
from google.genai import types

from letopis.adapters.google_adk import LetopisSessionService
from letopis.outbox import History
from tests.support.story import Bot, Thinks, answer_to, on_asyncpg


class FakeModel(BaseLlm):
    thinks: Any

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        asked = str(llm_request.contents[-1].parts[-1].text)  # type: ignore[index]
        await self.thinks(asked)
        yield LlmResponse(content=types.Content(role="model", parts=[types.Part(text=answer_to(asked))]))


def _bot(service: BaseSessionService, thinks: Thinks) -> Bot:
    agent = LlmAgent(name="bot", model=FakeModel(model="fake", thinks=thinks))
    runner = Runner(app_name="bot", agent=agent, session_service=service, auto_create_session=True)

    async def ask(question: str) -> str:
        said = ""
        content = types.Content(role="user", parts=[types.Part(text=question)])
        async for event in runner.run_async(user_id="42", session_id="chat-1", new_message=content):
            if event.is_final_response() and event.content is not None and event.content.parts:
                said = str(event.content.parts[0].text)
        return said

    async def read() -> list[str]:
        session = await service.get_session(app_name="bot", user_id="42", session_id="chat-1")
        contents = [] if session is None else [one.content for one in session.events if one.content is not None]
        return [str(part.text) for one in contents for part in one.parts or ()]

    return Bot(ask, read)


def letopis(history: History, thinks: Thinks) -> Bot:
    service = LetopisSessionService(history, conversation=lambda app, user, session: session)
    return _bot(service, thinks)


@asynccontextmanager
async def default(url: str, thinks: Thinks) -> AsyncIterator[Bot]:
    service = DatabaseSessionService(on_asyncpg(url))
    yield _bot(service, thinks)
    await service.close()
