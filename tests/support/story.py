"""Fifty turns with a bot whose store is down for the middle third and whose process is killed twice.

The bot runs in a process of its own and does each turn when it is told to, so the kills come at two chosen moments:
while the model thinks, and just after an answer was shown.
"""

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Final

from sqlalchemy.engine import make_url

from letopis.outbox import History
from tests.support.child import command
from tests.support.paths import ROOT
from tests.support.peers import Gate

Asks = Callable[[str], Awaitable[str]]
Thinks = Callable[[str], Awaitable[None]]

TURNS: Final = 50
DOWN: Final = range(17, 34)  # the turns during which the store is away
KILLED_THINKING: Final = 22
KILLED_AFTER: Final = 41
_PATIENCE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Bot:
    ask: Asks
    read: Callable[[], Awaitable[list[str]]]
    resume: Callable[[], Awaitable[list[str]]] | None = None


def on_asyncpg(url: str) -> str:
    return make_url(url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


@dataclass(slots=True)
class Told:
    said: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    raised: Counter[str] = field(default_factory=Counter)

    @property
    def lost(self) -> int:
        return sum((Counter(self.said) - Counter(self.kept)).values())

    def __str__(self) -> str:
        errors = ", ".join(f"{name} {count}" for name, count in self.raised.items()) or "nothing"
        return f"said {len(self.said)}, kept {len(self.kept)}, lost {self.lost}, raised {errors}"


def question(turn: int) -> str:
    """Return what the user asks; the same question comes again and again, as questions do."""
    return f"question {turn % 7}"


async def nothing(_: str) -> None:
    """Think of nothing."""


def answer_to(asked: str) -> str:
    return f"answer to {asked}"


async def play(framework: str, on_letopis: bool, folder: str, url: str) -> None:
    """Be the bot: do what each line of the input says, and say what came of it."""
    waiting = asyncio.Event()

    async def thinks(_: str) -> None:
        if waiting.is_set():
            print(json.dumps("thinking"), flush=True)
            await asyncio.Event().wait()  # until it is killed

    async with _bot(framework, on_letopis, folder, url, thinks) as bot:
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            if isinstance(order, str):
                print(json.dumps(await getattr(bot, order)()), flush=True)
                continue
            if order["hang"]:
                waiting.set()
            try:
                said = await bot.ask(order["ask"])
            except Exception as error:  # whatever a framework raises is a finding
                print(json.dumps({"raised": type(error).__name__}), flush=True)
            else:
                print(json.dumps({"answer": said}), flush=True)


@asynccontextmanager
async def _bot(framework: str, on_letopis: bool, folder: str, url: str, thinks: Thinks) -> AsyncIterator[Bot]:
    module: Any = import_module(f"tests.support.bots.{framework}")
    if not on_letopis:
        files = {"folder": Path(folder)} if "folder" in signature(module.default).parameters else {}
        async with _open(module.default(url, thinks, **files)) as bot:
            yield bot
        return
    path = Path(folder) / "bot.outbox.db"
    async with History(path, store=url) as history, _open(module.letopis(history, thinks)) as bot:
        yield bot
        await history.drained(timeout=_PATIENCE_SECONDS)


def _open(made: Any) -> AbstractAsyncContextManager[Bot]:
    return contextlib.nullcontext(made) if isinstance(made, Bot) else made


async def tell(
    framework: str, folder: Path, url: str, *, on_letopis: bool, asks_first: bool = True, resumes: bool = False
) -> Told:
    """Tell the story to a bot.

    :param url: of a PostgreSQL database for it alone.
    :param asks_first: the framework records a question before it asks the model; else with the answer.
    :param resumes: the bot answers the question that it was killed over by itself, so that the user need not ask again.
    """
    told, gate = Told(), Gate(url)
    await gate.open()

    turn, hangs, resuming = 0, True, False
    try:
        while turn < TURNS:
            async with _process(command(play, framework, on_letopis, folder, gate.url)) as order:
                if resumes and told.said:
                    told.said += await order("resume")
                    turn, resuming = turn + resuming, False
                while turn < TURNS:
                    await (gate.shut() if turn in DOWN else gate.open())
                    asked, hang = question(turn), hangs and turn == KILLED_THINKING
                    reply = await order({"ask": asked, "hang": hang})
                    if reply == "thinking":
                        hangs, resuming = False, resumes
                        told.said += [asked] * asks_first  # the user asks again, once the bot is back
                        break
                    turn += 1
                    told.said.append(asked)
                    if "answer" in reply:
                        told.said.append(reply["answer"])
                    else:
                        told.raised[reply["raised"]] += 1
                    if hang or turn == KILLED_AFTER:
                        hangs = False
                        break
                else:
                    told.kept = await order("read")
                    await order()
    finally:
        await gate.shut()
    return told


@asynccontextmanager
async def _process(words: list[str]) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Start a bot; give a function that returns what it answers to an order, and that without one lets it end."""
    process = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert process.stdin is not None and process.stdout is not None
    orders, answers = process.stdin, process.stdout

    async def order(what: Any = None) -> Any:
        async with asyncio.timeout(2 * _PATIENCE_SECONDS):
            if what is None:
                orders.close()
                assert await process.wait() == 0
                return None
            orders.write(json.dumps(what).encode() + b"\n")
            line = await answers.readline()
        assert line, "the bot ended by itself"
        return json.loads(line)

    try:
        yield order
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
