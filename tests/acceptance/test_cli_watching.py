"""status --watch, history show --follow, progress on a terminal, and a relay that was killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from letopis.ops.cli import cli
from letopis.ops.cli.interface.exit_codes import run
from letopis.store.model.event_types import ConversationDeleted, MessageEdited
from letopis.store.model.events import Event
from letopis.store.model.messages import Message
from tests.support import daemons
from tests.support.daemons import DaemonProcess, until
from tests.support.fix_command import append_to
from tests.support.platforms import linux_only, posix_only

TIMEOUT_SECONDS = 60.0
INTERVAL_SECONDS = 0.5
Command = Callable[..., tuple[int, str, str]]
Deed = Callable[[], Coroutine[Any, Any, object]]

pytestmark = pytest.mark.usefixtures("elsewhere")


append = partial(append_to, "bot.outbox.db", "c1", owner="42")


@pytest.fixture
def watch(letopis: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command that repeats its output, with a deed after each look but the last, which an interrupt ends."""
    sleep = anyio.sleep

    def call(*words: str, deeds: Sequence[Deed]) -> tuple[int, str, str]:
        left = list(deeds)

        def next_deed() -> Coroutine[Any, Any, object]:
            if not left:
                raise KeyboardInterrupt
            return left.pop(0)()

        async def slept(seconds: float) -> None:
            await (next_deed() if seconds == INTERVAL_SECONDS else sleep(seconds))

        monkeypatch.setattr("letopis.ops.cli.status.time.sleep", lambda _: asyncio.run(next_deed()))
        monkeypatch.setattr(anyio, "sleep", slept)
        return letopis(*words, "--interval", str(INTERVAL_SECONDS))

    return call


def test_watch_prints_a_change_and_an_interrupt_ends_it(watch: Command) -> None:
    asyncio.run(append(Message.user("one")))

    deeds = [lambda: asyncio.sleep(0), lambda: append(Message.user("two"))]
    code, out, err = watch("status", "--watch", deeds=deeds)
    assert out.count("pending    2 events") == 1, "the same status twice"
    assert out.count("pending    3 events") == 1
    assert (code, err.strip()) == (130, "letopis: interrupted")

    _, out, _ = watch("status", "--watch", "--json", deeds=[lambda: append(Message.user("three"))])
    assert [json.loads(line)["pending"] for line in out.splitlines()] == [3, 4]


class TestFollow:
    def test_what_is_new_and_what_changes_is_printed(self, watch: Command) -> None:
        asyncio.run(append(Message.user("first", id="m1"), Message.assistant("second", id="m2")))
        edit = Event.of(MessageEdited(message_id="m3", content="third, corrected"), conversation_id="c1")

        deeds = [lambda: append(Message.user("third", id="m3")), lambda: append(edit)]
        code, out, err = watch("history", "show", "c1", "--last", "1", "--follow", deeds=deeds)

        assert "first" not in out
        assert [out.count(word) for word in ("second", "third", "[edited]", "corrected")] == [1, 2, 1, 1]
        assert (code, err.strip().splitlines()[-1]) == (130, "letopis: interrupted")

    def test_as_json_a_message_is_a_line(self, watch: Command) -> None:
        asyncio.run(append(Message.user("first", id="m1")))
        deliver = partial(asyncio.to_thread, run, cli, ["relay", "--once"])
        _, out, _ = watch("history", "show", "c1", "--follow", "--json", deeds=[deliver])

        told = [json.loads(line) for line in out.splitlines()]
        assert [(one["saved"], one["version"]) for one in told] == [("pending", None), ("saved", 2)]

    def test_a_deletion_ends_it(self, watch: Command) -> None:
        asyncio.run(append(Message.user("first")))
        deletion = Event.of(ConversationDeleted(), conversation_id="c1")

        code, out, err = watch("history", "show", "c1", "--follow", deeds=[lambda: append(deletion)])

        assert (code, "first" in out) == (0, True)
        assert "this conversation was deleted on 20" in err


@posix_only("a pipe that nobody reads means something else on Windows")
@pytest.mark.parametrize("words", [("status", "--watch"), ("history", "show", "c1", "--follow")])
def test_a_reader_that_leaves_ends_it_quietly(words: tuple[str, ...]) -> None:
    """Although nothing changes that would be written into the pipe."""
    asyncio.run(append(Message.user("first")))
    command = [sys.executable, "-m", "letopis.ops.cli", *words, "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()

        assert (process.wait(TIMEOUT_SECONDS), process.stderr.read()) == (1, b"")


@linux_only("a lock is free when the process that held it has ended: asked for by flock")
def test_a_relay_that_was_killed_is_not_called_running(tmp_path: Path, letopis: Command) -> None:
    def status() -> Any:
        return json.loads(letopis("status", "--json")[1])

    asyncio.run(append(Message.user("one")))
    with DaemonProcess(folder=tmp_path) as daemon:
        daemon.works()
        until(lambda: status()["pending"] == 0, "delivered")
        alive = status()["relay"]
        daemon.signal(signal.SIGKILL)
        daemon.wait()
    asyncio.run(append(Message.user("two")))
    found, text = status(), letopis("status")[1]

    assert (alive["running"], alive["died"]) == (True, False)
    assert (found["relay"]["running"], found["relay"]["died"], found["healthy"]) == (False, True, False)
    assert "not running: it ended without stopping, and its lock is free" in text
    assert text.startswith(
        "The relay has died; 1 event is pending, nothing is lost: start the bot, or `letopis relay`."
    )
    assert letopis("healthcheck")[0] == 1
    assert letopis("relay", "--once")[0] == 0
    assert status()["relay"]["died"] is False


@pytest.fixture
def on_terminal(letopis: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command with a terminal as stderr; return its exit code, stdout and what the terminal got."""
    import pty

    def call(*arguments: str) -> tuple[int, str, str]:
        ours, theirs = pty.openpty()
        with os.fdopen(theirs, "w") as stderr, monkeypatch.context() as patch:
            patch.setenv("TERM", "xterm")
            patch.setattr(sys, "stderr", stderr)
            code, out, _ = letopis(*arguments)
        said = b""
        with suppress(OSError):  # Linux's end of a terminal that nobody holds
            while data := os.read(ours, 65536):
                said += data
        os.close(ours)
        return code, out, said.decode()

    return call


LINES = "".join(
    json.dumps({"conversation_id": f"c{number % 3}", "role": "user", "content": f"m{number}"}) + "\n"
    for number in range(12)
)


@posix_only("terminals are ptys")
def test_every_long_verb_shows_how_far_it_is_on_a_terminal(tmp_path: Path, on_terminal: Command) -> None:
    (tmp_path / "in.jsonl").write_text(LINES)

    def shown(*arguments: str) -> str:
        code, _, terminal = on_terminal(*arguments)
        assert code == 0, terminal
        assert "\x1b" not in terminal
        return terminal

    imported = shown("history", "import", "jsonl", "in.jsonl", "--wait")
    assert "\rimporting: 0.0 of 0.0 MB (100 %)" in imported
    code, out, terminal = on_terminal("history", "import", "jsonl", "in.jsonl", "--json")  # for a program
    assert (code, json.loads(out)["already_there"], "importing" in terminal) == (0, 12, False)
    # A relay that is quick beside a slow terminal leaves nothing to wait for.
    assert "delivering: " in imported or "the history store has everything" in imported
    assert "of 12 messages" in shown("history", "export", "jsonl", "out.jsonl")
    verified = shown("db", "verify")
    assert "\rchecking: 15 of 15 events (100 %)" in verified
    assert "comparing: 1 of 3 conversations (33 %)" in verified
    assert "\rrebuilding: 1 of 3 conversations (33 %)" in shown("db", "rebuild", "--all")
    assert "\rindexing: 15 of 15 events (100 %)" in shown("db", "index")
    moved = shown("move", "--to", "new.history.db")
    assert "\rcopying: " in moved
    assert "of 15 events" in moved
    erase = ("history", "erase", "c0", "--reset", "--reason", "asked", "--yes")
    assert "\rerasing: 1 of 1 conversations (100 %)" in shown("--store", "new.history.db", *erase)


def test_completion_of_verbs_and_options(tmp_path: Path) -> None:
    def complete(shell: str, *words: str) -> list[str]:
        given = {"COMP_WORDS": " ".join(("letopis", *words)), "_LETOPIS_COMPLETE": f"{shell}_complete"}
        given["COMP_CWORD"] = words[-1] if shell == "fish" else str(len(words))
        done = daemons.letopis(folder=tmp_path, **given)
        assert done.stderr == ""
        return done.stdout.splitlines()

    assert complete("bash", "history", "s") == ["plain,show", "plain,stats", "plain,search"]
    assert complete("bash", "outbox", "list", "--state", "bl") == ["plain,blocked"]
    assert complete("bash", "--outbox", "x") == ["file,x"]
    assert complete("zsh", "sta")[:3] == ["plain", "status", "Show what is pending, blocked and delivered."]
    assert complete("fish", "sta") == ["plain,status\tShow what is pending, blocked and delivered."]
