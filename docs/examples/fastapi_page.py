"""A chat page that may be reloaded in the middle of an answer.

pip install 'path/to/letopis' fastapi uvicorn openai

export OPENAI_API_KEY=...
uvicorn fastapi_page:app
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, StreamingResponse
from openai import AsyncOpenAI

from letopis import History
from letopis.adapters.formats import (
    openai_chat,
    thread_page,
    ui_message,
)

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4.1-mini")
USER = "ada"  # in your service: whom the session names

history = History("chat.outbox.db")


@dataclass
class Answer:
    """An answer while it is written, for any number of readers."""

    message_id: str
    pieces: list[str] = field(default_factory=list)
    written: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def change(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def follow(self) -> AsyncIterator[str]:
        sent = 0
        while True:
            changed, new = self.changed, self.pieces[sent:]
            sent += len(new)
            if new:
                yield "".join(new)
            elif self.written:
                return
            else:
                await changed.wait()


answers: dict[str, Answer] = {}
writers: set[asyncio.Task[None]] = set()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with history:
        yield
        for writer in writers:  # keeps what they have, interrupted
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("fastapi_page.html"))


@app.get("/chats/{chat}")
async def read(chat: str, before: str | None = None) -> dict[str, Any]:
    # First, so that an answer that ends meanwhile is seen in one place.
    answer = answers.get(chat)
    page = await thread_page(
        history,
        f"{USER}/{chat}",
        ui_message.from_messages,
        before=before,
    )
    return {
        "messages": list(page),
        "before": page.next,
        "answering": answer and answer.message_id,
    }


@app.get("/chats/{chat}/answer")
async def follow(chat: str) -> StreamingResponse:
    answer = answers.get(chat) or Answer("", written=True)
    return StreamingResponse(
        answer.follow(), media_type="text/plain; charset=utf-8"
    )


@app.post("/chats/{chat}", status_code=202)
async def ask(chat: str, item: dict[str, Any]) -> None:
    """Take one UIMessage of the user, whose id the page made."""
    [question] = ui_message.to_messages([item])
    if question.role != "user":
        raise HTTPException(422, "a page speaks for its user only")
    if chat in answers:
        raise HTTPException(409, "the answer before is not written yet")
    answers[chat] = answer = Answer(f"{question.id}/answer")
    try:
        await history.append(f"{USER}/{chat}", question, owner=USER)
    except BaseException:
        del answers[chat]
        raise
    # Not in this request, which ends when the page is reloaded.
    writer = asyncio.create_task(write(chat, question.id, answer))
    writers.add(writer)
    writer.add_done_callback(writers.discard)


async def write(chat: str, question: str, answer: Answer) -> None:
    conversation = f"{USER}/{chat}"
    try:
        context = await history.context(
            conversation, turns=20, until=question
        )
        async with history.reply(
            conversation,
            owner=USER,
            message_id=answer.message_id,
            confirm=False,
        ) as reply:
            async for piece in think(
                openai_chat.from_messages(context.messages)
            ):
                await reply.add(piece)
                answer.pieces.append(piece)
                answer.change()
    except Exception:
        logging.exception("an answer was not finished")
    finally:
        del answers[chat]
        answer.written = True
        answer.change()


async def think(messages: list[dict[str, Any]]) -> AsyncIterator[str]:
    async with AsyncOpenAI() as client:
        chunks: Any = await client.chat.completions.create(
            model=MODEL, messages=messages, stream=True
        )  # type: ignore[arg-type]
        async for chunk in chunks:
            if chunk.choices and (
                piece := chunk.choices[0].delta.content
            ):
                yield piece
