"""The chat service of the guide to FastAPI, as it is run: workers of uvicorn, a relay of its own, and a kill."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("fastapi", reason="needs fastapi, of the group adapters")
pytest.importorskip("openai", reason="needs openai: pip install 'letopis[openai-agents]'")

import httpx

from letopis.store import ConversationStore
from tests.support.daemons import DaemonProcess
from tests.support.fake_openai import PIECE_SECONDS, FakeOpenAI, fake_openai, pieces_of
from tests.support.paths import ROOT
from tests.support.peers import Gate
from tests.support.relays import until
from tests.support.servers.processes import free_port
from tests.support.servers.store_pool import migrate

EXAMPLES = ROOT / "docs" / "examples"
PATIENCE_SECONDS = 120.0
COUNT = 400
"""Pieces of an answer, which takes eight seconds."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class Service:
    def __init__(self, client: httpx.AsyncClient, process: psutil.Process, port: int) -> None:
        self.client = client
        self.process = process
        self.port = port
        self.begun: set[str] = set()

    def workers(self) -> list[psutil.Process]:
        return [one for one in self.process.children() if "spawn_main" in " ".join(one.cmdline())]

    def connections(self, worker: psutil.Process) -> int:
        return sum(
            one.status == psutil.CONN_ESTABLISHED and bool(one.laddr) and one.laddr.port == self.port
            for one in worker.net_connections("tcp4")
        )

    async def ask(self, chat: str, text: str, *, upto: int | None = None) -> tuple[str, bool]:
        """Ask, and return what was shown of the answer, and whether it came whole."""
        shown, body = "", {"id": f"id-{text}", "text": text}
        try:
            async with self.client.stream(
                "POST", f"/chats/{chat}/messages", json=body, headers={"x-user": "ada"}
            ) as response:
                assert response.status_code == 200, await response.aread()
                async for piece in response.aiter_text():
                    shown += piece
                    self.begun.add(chat)
                    if upto is not None and len(shown) >= upto:
                        return shown, False
        except httpx.TransportError:
            return shown, False
        return shown, True


@asynccontextmanager
async def serve(folder: Path, store: str, fake: FakeOpenAI) -> AsyncIterator[Service]:
    port = free_port()
    environment = os.environ | {
        "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": fake.url,
        "LETOPIS_OUTBOX": str(folder / "chat.outbox.db"),
        "LETOPIS_STORE": store,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "fastapi_chat:app", "--workers", "2", "--port", str(port)),
        *("--log-level", "warning", "--app-dir", str(EXAMPLES)),
        env=environment,
        cwd=folder,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS) as client:

            async def answers() -> bool:
                with suppress(httpx.TransportError):
                    return (await client.get("/chats/none/messages", headers={"x-user": "ada"})).is_success
                return False

            await until(answers, patience=PATIENCE_SECONDS)
            yield Service(client, psutil.Process(process.pid), port)
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.returncode is None else []
        for one in (process, *children):
            if psutil.pid_exists(one.pid):
                one.kill()
        await process.wait()


async def stored(url: str, conversations: list[str], *, count: int) -> dict[str, list[Any]]:
    """Return what the history store holds, once it holds so many messages."""
    async with ConversationStore.open(url) as store, asyncio.timeout(PATIENCE_SECONDS):
        while True:
            found = {name: list(await store.messages(name, last=None)) for name in conversations}
            if sum(map(len, found.values())) >= count:
                return found
            await asyncio.sleep(0.2)


async def test_a_worker_is_killed_while_it_streams_and_a_client_goes_while_the_store_is_away(
    tmp_path: Path, new_store_url: Callable[[str], str]
) -> None:
    """What was said stays, and is delivered later."""
    url = new_store_url("postgresql")
    await migrate(url)
    gate = Gate(url)
    await gate.open()  # which gives it a port
    await gate.shut()
    with fake_openai(COUNT) as fake:
        async with serve(tmp_path, gate.url, fake) as service:
            left, _ = await service.ask("left", "q-left", upto=60)
            for wrong in ({"id": "x", "text": "\x00"}, {"id": "\n", "text": "hi"}):
                refused = await service.client.post("/chats/tea/messages", json=wrong, headers={"x-user": "ada"})
                assert refused.status_code == 422 and "remove it" in refused.text

            asking: dict[str, asyncio.Task[tuple[str, bool]]] = {}
            victim, other = service.workers()
            while min(service.connections(victim), service.connections(other)) < 2:
                assert len(asking) < 40, "one worker takes all connections"
                chat = f"chat-{len(asking)}"
                asking[chat] = asyncio.create_task(service.ask(chat, f"q-{chat}"))
                await until(lambda: len(fake.asked) > len(asking), patience=PATIENCE_SECONDS)
            await until(lambda: service.begun >= asking.keys(), patience=PATIENCE_SECONDS)
            await asyncio.sleep(0.5)
            victim.kill()
            chats = list(asking)
            shown = dict(zip(chats, await asyncio.gather(*asking.values()), strict=True))
            cut = [chat for chat, (_, whole) in shown.items() if not whole]
            assert 2 <= len(cut) <= len(chats) - 2

            # Another text under the id of a question.
            reused = await service.client.post(
                f"/chats/{chats[0]}/messages",
                json={"id": f"id-q-{chats[0]}", "text": "other"},
                headers={"x-user": "ada"},
            )
            assert (reused.status_code, "already holds other content" in reused.json()["detail"]) == (409, True)

            # What came whole is asked for once more, as a client does that was not told.
            whole = next(chat for chat in chats if chat not in cut)
            asked = len(fake.asked)
            assert await service.ask(whole, f"q-{whole}") == shown[whole] and len(fake.asked) == asked

            await gate.open()
            with DaemonProcess("--outbox", "chat.outbox.db", "--store", gate.url, folder=tmp_path):
                found = await stored(url, [f"ada/{chat}" for chat in (*chats, "left")], count=2 * len(chats) + 2)
            again = await asyncio.gather(*[service.ask(chat, f"q-{chat}") for chat in cut])
            assert again == [("".join(pieces_of(f"q-{chat}", COUNT)), True) for chat in cut]
            listed = await service.client.get(f"/chats/{cut[0]}/messages", headers={"x-user": "ada"})
            assert [one["interrupted"] for one in listed.json()["messages"]] == [False, True, False]
            strangers = await service.client.get(f"/chats/{cut[0]}/messages", headers={"x-user": "eve"})
            assert strangers.json()["messages"] == []
    await gate.shut()

    for chat in (*chats, "left"):
        question, answer = found[f"ada/{chat}"]
        said = "".join(pieces_of(f"q-{chat}", COUNT))
        assert (question.text, question.interrupted) == (f"q-{chat}", False)
        assert said.startswith(answer.text)
        assert answer.interrupted is (chat in (*cut, "left"))
        if chat in cut:
            lost = max(0, len(shown[chat][0]) - len(answer.text)) // len(f"q-{chat}.100 ") * PIECE_SECONDS
            assert lost < 2, "more than the last checkpoints may lose on a machine that is busy"
        elif chat != "left":
            assert answer.text == shown[chat][0] == said
    assert found["ada/left"][1].text.startswith(left[:60])
