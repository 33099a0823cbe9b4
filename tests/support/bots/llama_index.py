"""A chat engine of LlamaIndex, with a model that answers without a network."""

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms.mock import MockLLM
from llama_index.core.memory import Memory
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore

from letopis.adapters.llama_index import LetopisChatStore
from letopis.outbox import History
from tests.support.story import Bot, Thinks, answer_to, on_asyncpg


class FakeModel(MockLLM):
    _thinks: Any

    def __init__(self, thinks: Thinks) -> None:
        super().__init__(is_chat_model=True)
        self._thinks = thinks

    async def achat(self, messages: Sequence[ChatMessage], **options: Any) -> ChatResponse:
        asked = str(messages[-1].content)
        await self._thinks(asked)
        return ChatResponse(message=ChatMessage(answer_to(asked), role=MessageRole.ASSISTANT))


def _bot(store: AsyncDBChatStore, thinks: Thinks) -> Bot:
    memory = Memory(sql_store=store, session_id="chat-1", token_limit=300, tokenizer_fn=str.split)
    engine = SimpleChatEngine.from_defaults(llm=FakeModel(thinks), memory=memory)

    async def ask(question: str) -> str:
        return str((await engine.achat(question)).response)

    async def read() -> list[str]:
        return [str(message.content) for message in await store.get_messages("chat-1", status=None)]

    return Bot(ask, read)


def letopis(history: History, thinks: Thinks) -> Bot:
    return _bot(LetopisChatStore(history), thinks)


def default(url: str, thinks: Thinks) -> Bot:
    return _bot(SQLAlchemyChatStore(table_name="memory", async_database_uri=on_asyncpg(url)), thinks)
