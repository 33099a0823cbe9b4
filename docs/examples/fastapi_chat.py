"""A chat service: replies are streamed, by any number of workers, and none is lost.

pip install 'path/to/letopis[daemon,postgresql]' fastapi uvicorn openai

export OPENAI_API_KEY=... LETOPIS_OUTBOX=chat.outbox.db LETOPIS_STORE=postgresql://bot@db/history
letopis init && letopis db upgrade
letopis relay &
uvicorn fastapi_chat:app --workers 2
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header
from fastapi.responses import JSONResponse, StreamingResponse
from openai import AsyncOpenAI
from pydantic import BaseModel

from letopis import (
    CallerError,
    History,
    IdReused,
    InvalidInput,
    LetopisError,
    Message,
)
from letopis.adapters.formats import openai_chat

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4.1-mini")

# Nothing is opened yet, so each worker has its own. The relay is a process of its own: `letopis relay`.
history = History(
    os.environ["LETOPIS_OUTBOX"],
    store=os.environ["LETOPIS_STORE"],
    relay=False,
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with (
        history
    ):  # appends what a killed worker left of its replies
        yield


app = FastAPI(lifespan=lifespan)


def user_of(x_user: Annotated[str, Header()]) -> str:
    return (
        x_user  # in your service: whom the session or the token names
    )


User = Annotated[str, Depends(user_of)]


class Question(BaseModel):
    id: str  # made by the client, and the same when it asks again: the question is recorded once
    text: str


@app.post("/chats/{chat}/messages")
async def ask(
    chat: str, question: Question, user: User
) -> StreamingResponse:
    conversation = f"{user}/{chat}"  # who names another user's chat gets one of their own
    await history.append(
        conversation,
        Message.user(question.text, id=question.id),
        owner=user,
    )
    pieces = answer(conversation, question.id, user)
    first = await anext(
        pieces, ""
    )  # what goes wrong before it is an HTTP error

    async def all_pieces() -> AsyncIterator[str]:
        yield first
        async for piece in pieces:
            yield piece

    return StreamingResponse(
        all_pieces(), media_type="text/plain; charset=utf-8"
    )


async def answer(
    conversation: str, question_id: str, user: str
) -> AsyncIterator[str]:
    # What came meanwhile, such as an answer that was cut off, is left out.
    context = await history.context(
        conversation, turns=20, until=question_id
    )
    for attempt in count(1):
        answer_id = f"{question_id}/answer-{attempt}"
        try:
            async with history.reply(
                conversation,
                owner=user,
                message_id=answer_id,
                confirm=False,
            ) as reply:
                async for piece in think(
                    openai_chat.from_messages(context.messages)
                ):
                    await reply.add(piece)
                    yield piece
        except IdReused:  # asked again, and answered already
            found = await history.chat(conversation).message(answer_id)
            # One that was cut off stays as it is, and is written anew.
            if found is None or found.interrupted:
                continue
            yield found.text
        return


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


@app.get("/chats/{chat}/messages")
async def read(
    chat: str, user: User, before: str | None = None
) -> dict[str, Any]:
    page = await history.messages(
        f"{user}/{chat}", last=50, before=before
    )
    messages = [
        {
            "id": message.id,
            "role": message.role,
            "text": message.text,
            "interrupted": message.interrupted,
        }
        for message in page
    ]
    return {
        "messages": messages,
        "before": page.next,
        "complete": page.complete,
    }


@app.exception_handler(InvalidInput)
async def invalid(_: Any, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=422)


@app.exception_handler(IdReused)  # a kind of InvalidInput
@app.exception_handler(CallerError)  # such as a deleted conversation
async def conflict(_: Any, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=409)


@app.exception_handler(LetopisError)
async def unavailable(_: Any, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=503)
