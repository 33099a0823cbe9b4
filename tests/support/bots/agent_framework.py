"""An agent of Microsoft Agent Framework, with a model that answers without a network."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from agent_framework import (
    Agent,
    AgentSession,
    BaseChatClient,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    HistoryProvider,
    InMemoryHistoryProvider,
    Message,
    ResponseStream,
)

from letopis.adapters.agent_framework import LetopisHistoryProvider
from letopis.outbox import History
from tests.support.story import Bot, Thinks, answer_to


class FakeModel(BaseChatClient[Any]):
    def __init__(self, thinks: Thinks) -> None:
        super().__init__()
        self._thinks = thinks
        self.asked: list[list[Message]] = []

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **given: Any
    ) -> Any:
        self.asked.append(list(messages))
        question = messages[-1].text

        async def answer() -> ChatResponse[Any]:
            await self._thinks(question)
            return ChatResponse(messages=[Message("assistant", [answer_to(question)])])

        async def pieces() -> AsyncIterator[ChatResponseUpdate]:
            await self._thinks(question)
            for word in answer_to(question).split(" "):
                yield ChatResponseUpdate(contents=[Content.from_text(f"{word} ")], role="assistant")

        return ResponseStream(pieces(), finalizer=ChatResponse.from_updates) if stream else answer()


def _bot(provider: HistoryProvider, thinks: Thinks) -> Bot:
    agent: Any = Agent(FakeModel(thinks), name="bot", context_providers=[provider])
    session = AgentSession(session_id="chat-1")

    async def ask(question: str) -> str:
        return str((await agent.run(question, session=session)).text)

    async def read() -> list[str]:
        state = session.state.get(provider.source_id, {})
        return [message.text for message in await provider.get_messages("chat-1", state=state)]

    return Bot(ask, read)


def letopis(history: History, thinks: Thinks) -> Bot:
    return _bot(LetopisHistoryProvider(history), thinks)


def default(url: str, thinks: Thinks) -> Bot:
    """The framework's own: in memory, whatever database there is."""
    return _bot(InMemoryHistoryProvider(), thinks)
