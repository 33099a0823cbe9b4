"""An agent of Pydantic AI, with a model that answers without a network."""

from datetime import UTC, datetime
from typing import Any, Final

from pydantic_ai import Agent, models
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import ConversationEntry, ConversationStore, InMemoryConversationStore
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from letopis.adapters.pydantic_ai import LetopisConversationStore
from letopis.outbox import History
from tests.support.sayings import present
from tests.support.story import Bot, Thinks, answer_to

models.ALLOW_MODEL_REQUESTS = False

THEN: Final = datetime(2026, 1, 1, tzinfo=UTC)


def turns(*names: int | str) -> list[ModelMessage]:
    return [
        message
        for name in names
        for message in (
            ModelRequest(parts=[UserPromptPart(f"question {name}", timestamp=THEN)]),
            ModelResponse(parts=[TextPart(f"answer {name}")], timestamp=THEN),
        )
    ]


async def saved(store: ConversationStore, chat: str, *names: int | str, scope: str | None = None) -> Conversation:
    conversation = Conversation(conversation_id=chat, messages=turns(*names))
    await store.save(conversation, scope=scope)
    return conversation


async def grown(
    store: ConversationStore, conversation: Conversation, *names: int | str, scope: str | None = None
) -> list[ConversationEntry]:
    """Say more in a conversation, and save it; return the entries that are new."""
    conversation.messages += turns(*names)
    return list(await store.save(conversation, scope=scope))


async def loaded(store: ConversationStore, chat: str, **options: Any) -> Conversation:
    return present(await store.load(chat, **options))


def fake_model(thinks: Thinks) -> FunctionModel:
    async def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        asked = str(messages[-1].parts[-1].content)  # type: ignore[union-attr]
        await thinks(asked)
        return ModelResponse(parts=[TextPart(answer_to(asked))])

    return FunctionModel(answer)


def _bot(store: ConversationStore, thinks: Thinks) -> Bot:
    agent = Agent(fake_model(thinks))

    async def ask(question: str) -> str:
        conversation = await store.load("chat-1") or Conversation(conversation_id="chat-1")
        result = await agent.run(question, conversation=conversation)
        await store.save(result)
        return result.output

    async def read() -> list[str]:
        conversation = await store.load("chat-1")
        parts = [] if conversation is None else [part for one in conversation.messages for part in one.parts]
        return [str(part.content) for part in parts if isinstance(part, UserPromptPart | TextPart)]

    return Bot(ask, read)


def letopis(history: History, thinks: Thinks) -> Bot:
    return _bot(LetopisConversationStore(history), thinks)


def default(url: str, thinks: Thinks) -> Bot:
    del url  # its own store keeps conversations in memory
    return _bot(InMemoryConversationStore(), thinks)
