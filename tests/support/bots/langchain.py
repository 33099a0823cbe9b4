"""A chain of LangChain with a history, and a model that answers without a network."""

import warnings
from collections.abc import Callable
from typing import Any

from langchain_core.chat_history import BaseChatMessageHistory, InMemoryChatMessageHistory
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables.history import RunnableWithMessageHistory

from letopis.adapters.langchain import LetopisChatMessageHistory
from letopis.outbox import History
from tests.support.story import Bot, Thinks, answer_to

PROMPT = ChatPromptTemplate.from_messages([("placeholder", "{history}"), ("human", "{question}")])


class FakeModel(BaseChatModel):
    thinks: Any

    @property
    def _llm_type(self) -> str:
        return "fake"

    def _generate(self, messages: list[BaseMessage], *given: Any, **options: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(answer_to(str(messages[-1].content))))])

    async def _agenerate(self, messages: list[BaseMessage], *given: Any, **options: Any) -> ChatResult:
        await self.thinks(str(messages[-1].content))
        return self._generate(messages)


def _bot(make: Callable[[str], BaseChatMessageHistory], thinks: Thinks) -> Bot:
    with warnings.catch_warnings(action="ignore"):  # deprecated
        chain = RunnableWithMessageHistory(
            PROMPT | FakeModel(thinks=thinks), make, input_messages_key="question", history_messages_key="history"
        )

    async def ask(question: str) -> str:
        answer = await chain.ainvoke({"question": question}, {"configurable": {"session_id": "chat-1"}})
        return str(answer.content)

    async def read() -> list[str]:
        return [str(message.content) for message in await make("chat-1").aget_messages()]

    return Bot(ask, read)


def letopis(history: History, thinks: Thinks) -> Bot:
    return _bot(lambda session_id: LetopisChatMessageHistory(session_id, history), thinks)


def default(url: str, thinks: Thinks) -> Bot:
    with warnings.catch_warnings(action="ignore"):  # deprecated
        kept = InMemoryChatMessageHistory()
    return _bot(lambda _: kept, thinks)
