"""Give tests of the command an empty folder, an empty environment and the command in this process."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from letopis.ops.cli import cli
from letopis.ops.cli.interface.exit_codes import run
from letopis.outbox import History
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import Event, Message


class Done(NamedTuple):
    code: int
    out: str
    err: str


def every_command(
    command: click.Command = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield each command, groups too, with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, name
            yield from every_command(below, (*path, name))


def talk(
    *texts: str,
    conversation: str = "c1",
    owner: str | None = "42",
    path: Path | str = "bot.outbox.db",
    deliver: bool = True,
    **options: Any,
) -> None:
    """Append what a user says as a bot does, and have its relay deliver all of it, or leave it pending."""

    async def run_bot() -> None:
        async with History(path, relay=deliver, **options) as history:
            for text in texts:
                await history.append(conversation, Message.user(text), owner=owner)
            if deliver:
                assert await history.drained(60)

    asyncio.run(run_bot())


async def append_to(path: Path | str, conversation: str, *what: Message | Event, owner: str | None = None) -> None:
    """Append to an outbox file that no bot has open, and leave it pending."""
    outbox = await OutboxFile.open(path)
    await outbox.append(prepare(conversation, what, owner=owner))
    await outbox.close()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in an empty folder, with nothing of Letopis in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("LETOPIS_") and not name.startswith("LETOPIS_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture
def letopis(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Done]:
    def call(*arguments: str) -> Done:
        code = run(cli, arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfdbinary.readouterr()
        return Done(code, out.decode(), err.decode())

    return call
