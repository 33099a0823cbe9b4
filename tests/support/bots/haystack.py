"""A pipeline of Haystack, with a model that answers without a network."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from haystack import Pipeline, component
from haystack.components.converters import OutputAdapter
from haystack.dataclasses import ChatMessage
from haystack_experimental.chat_message_stores.in_memory import InMemoryChatMessageStore
from haystack_experimental.components.retrievers import ChatMessageRetriever
from haystack_experimental.components.writers import ChatMessageWriter

from letopis.adapters.haystack import LetopisChatMessageStore
from letopis.outbox import History
from tests.support.story import Bot, Thinks, answer_to


@component
class FakeModel:
    def __init__(self, think: Callable[[str], None]) -> None:
        self._think = think

    @component.output_types(replies=list[ChatMessage])
    def run(self, messages: list[ChatMessage]) -> dict[str, Any]:
        asked = str(messages[-1].text)
        self._think(asked)
        return {"replies": [ChatMessage.from_assistant(answer_to(asked))]}


def _pipeline(store: Any, llm: Any) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("retriever", ChatMessageRetriever(store))
    pipeline.add_component("llm", llm)
    pipeline.add_component("turn", OutputAdapter("{{ question + answer }}", list[ChatMessage], unsafe=True))
    pipeline.add_component("writer", ChatMessageWriter(store))
    pipeline.connect("retriever.messages", "llm.messages")
    pipeline.connect("llm.replies", "turn.answer")
    pipeline.connect("turn", "writer.messages")
    return pipeline


def _bot(store: Any, thinks: Thinks) -> Bot:
    loop = asyncio.get_running_loop()

    def think(question: str) -> None:
        asyncio.run_coroutine_threadsafe(thinks(question), loop).result()  # type: ignore[arg-type]

    pipeline = _pipeline(store, FakeModel(think))

    async def ask(question: str) -> str:
        asked, chat = [ChatMessage.from_user(question)], {"chat_history_id": "chat-1"}
        given = {"retriever": {**chat, "current_messages": asked}, "turn": {"question": asked}, "writer": chat}
        done = await asyncio.to_thread(pipeline.run, given, {"llm"})
        return str(done["llm"]["replies"][0].text)

    async def read() -> list[str]:
        found = await asyncio.to_thread(store.retrieve_messages, "chat-1", 1_000)
        return [str(message.text) for message in found]

    return Bot(ask, read)


@asynccontextmanager
async def letopis(history: History, thinks: Thinks) -> AsyncIterator[Bot]:
    """The store opens the file again, in the same process: both share one outbox."""
    store = LetopisChatMessageStore(path=history.outbox.path)
    yield _bot(store, thinks)
    await asyncio.to_thread(store.close)


def default(url: str, thinks: Thinks) -> Bot:
    return _bot(InMemoryChatMessageStore(), thinks)
