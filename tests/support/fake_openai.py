"""A server that streams answers as OpenAI Chat Completions does, on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.accepted import Accepted

PIECE_SECONDS = 0.02


def pieces_of(question: str, count: int) -> list[str]:
    """Return what the model says: numbered words, none like another."""
    return [f"{question}.{number} " for number in range(count)]


class FakeOpenAI:
    """What was asked, and where."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[str] = []
        self.url = ""
        self._more = asyncio.Condition()

    async def asked_for(self, count: int) -> None:
        async with self._more:
            await self._more.wait_for(lambda: len(self.asked) >= count)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(
                int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line[:14] == b"content-length"
            )
            question = json.loads(await reader.readexactly(size))["messages"][-1]["content"]
            async with self._more:
                self.asked.append(question)
                self._more.notify_all()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            for piece in pieces_of(question, self.count):
                chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "fake"}
                choices = [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]
                writer.write(f"data: {json.dumps({**chunk, 'choices': choices})}\n\n".encode())
                await writer.drain()
                await asyncio.sleep(PIECE_SECONDS)
            writer.write(b"data: [DONE]\n\n")
            writer.close()
            await writer.wait_closed()  # or the end of this task cuts off what is not sent yet
        except ConnectionError:
            return  # the caller has gone


@asynccontextmanager
async def fake_openai(count: int) -> AsyncIterator[FakeOpenAI]:
    """Serve for the time of the block."""
    fake = FakeOpenAI(count)
    accepted = Accepted(fake.answer)
    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield fake
    finally:
        await accepted.close(server)
        await accepted.cut()
