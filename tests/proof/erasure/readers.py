"""Read everything that can be read, in every way: what a reader shows, as text."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from letopis import ConversationStore, History
from letopis.console.access import Gate
from letopis.console.application import console_of
from letopis.outbox.history.exporter import Exporter, RecordSource
from letopis.store.transfer.transcript_page import TranscriptPage
from tests.proof.erasure.acts import COMMON

ALL: Final = ("active", "archived", "deleted")
MOST: Final = 500
Shown = tuple[str, str]
"""The name of a reader and what it shows."""


async def of_chat(
    source: History | ConversationStore, name: str, *, versions: Iterable[int], messages: Iterable[str]
) -> AsyncIterator[Shown]:
    """Yield what the readers of one conversation show."""
    page = await source.messages(name, last=None)
    yield "messages", repr(page.items)
    yield "every message", repr((await source.messages(name, last=None, every=True)).items)
    for version in versions:
        past = await source.messages(name, last=None, every=True, as_of=version)
        yield f"messages as of {version}", repr(past.items)
    if isinstance(source, ConversationStore):
        yield "conversation", repr(await source.conversation(name))
        for version in versions:
            yield f"conversation as of {version}", repr(await source.conversation(name, as_of=version))
        yield "events", repr((await source.events(name)).items)
        return
    chat = source.chat(name)
    yield "conversation", repr(await chat.conversation())
    yield "events", repr((await chat.events()).items)
    yield "transcript", await chat.transcript()
    yield "context", repr((await source.context(name, last=MOST)).messages)
    for message in messages:
        yield f"message {message}", repr(await chat.message(message))


async def of_all(source: History | ConversationStore) -> AsyncIterator[Shown]:
    """Yield what readers of all conversations show."""
    yield "list", repr((await source.conversations(states=ALL, limit=MOST)).items)
    after: dict[str, Any] = {}
    hits: list[Any] = []
    while True:
        page = await source.search(COMMON, limit=100, **after)
        hits += page.items
        if page.next is None:
            break
        after = {"after": page.next}
    yield "search", repr(hits)
    stream = io.BytesIO()
    exporter = Exporter(
        source,
        beside=RecordSource(source),
        page=TranscriptPage(stream, title="all", now=datetime.now(UTC)),
        deliveries=True,
        every=True,
    )
    lines = b"".join([line async for line in exporter.of_all()])
    yield "export", lines.decode()
    yield "export page", stream.getvalue().decode()
    if isinstance(source, History):
        yield "unconfirmed", repr(await source.unconfirmed())


class Console:
    """The console of a history, asked without a server."""

    def __init__(self, history: History) -> None:
        self._application = console_of(history, Gate(open_reading=True))

    async def page(self, path: str, **query: str) -> str:
        parts: list[bytes] = []

        async def receive() -> Mapping[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            parts.append(message.get("body", b""))

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": urlencode(query).encode(),
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        await self._application(scope, receive, send)  # type: ignore[arg-type]
        return b"".join(parts).decode()

    async def pages(self, names: Iterable[str]) -> AsyncIterator[Shown]:
        yield "console", await self.page("/conversations", q=COMMON)
        for name in names:
            yield f"console {name}", await self.page("/conversation", id=name)
