"""Histories that are opened on first use, in processes that fork, end without closing, or are killed."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest

from letopis.outbox import History
from tests.campaigns.invariants import Ack, check
from tests.support.platforms import posix_only

LIMIT = 60.0


def program(code: str, *given: object) -> subprocess.Popen[str]:
    """Run a program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kept(path: Path) -> list[str]:
    """The messages that a later process finds."""

    async def read() -> list[str]:
        async with History(path, relay=False, watch=False) as history:
            return [one.text for one in await history.messages("c1", last=None)]

    return asyncio.run(read())


ENDINGS = {
    "asyncio.run": """
        async def main():
            await say("a")
            await say("b")
        asyncio.run(main())
    """,
    "asyncio.run twice": """
        asyncio.run(say("a"))
        asyncio.run(say("b"))
    """,
    "a loop that is neither closed nor cancelled": """
        loop = asyncio.new_event_loop()
        loop.run_until_complete(say("a"))
        loop.run_until_complete(say("b"))
    """,
    "a closed loop": """
        loop = asyncio.new_event_loop()
        loop.run_until_complete(say("a"))
        loop.run_until_complete(say("b"))
        loop.close()
    """,
    "a thread of its own": """
        history = History(sys.argv[1], own_thread=True)
        asyncio.run(say("a"))
        asyncio.run(say("b"))
    """,
    "a loop in a daemon thread": """
        import threading
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        for text in "ab":
            asyncio.run_coroutine_threadsafe(say(text), loop).result()
    """,
    "the synchronous API": """
        blocking = BlockingHistory(sys.argv[1])
        for text in "ab":
            blocking.append("c1", Message.user(text))
            print(text, flush=True)
    """,
    "an exception": """
        async def main():
            await say("a")
            await say("b")
            sys.exit(0)
        asyncio.run(main())
    """,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_that_ends_without_closing_loses_nothing_and_says_nothing(tmp_path: Path, ending: str) -> None:
    code = """
        import asyncio, sys
        from letopis.outbox import BlockingHistory, History
        from letopis.store import Message

        history = History(sys.argv[1])

        async def say(text):
            await history.append("c1", Message.user(text))
            print(text, flush=True)
    """
    process = program(textwrap.dedent(code) + textwrap.dedent(ENDINGS[ending]), tmp_path / "bot.outbox.db")

    out, err = process.communicate(timeout=LIMIT)

    assert (out.split(), err, process.returncode) == (["a", "b"], "", 0)
    assert kept(tmp_path / "bot.outbox.db") == ["a", "b"]


@posix_only("kill -9")
@pytest.mark.parametrize("options", ["", ", own_thread=True"])
def test_a_process_that_is_killed_loses_nothing_that_was_acknowledged(tmp_path: Path, options: str) -> None:
    code = f"""
        import asyncio, os, sys, threading
        from letopis.outbox import History
        from letopis.store import Message

        history = History(sys.argv[1]{options})

        async def talk(name):
            for number in range(100000):
                await history.append("c1", Message.user(f"{{name}} {{number}}"))
                os.write(1, f"{{name}} {{number}}\\n".encode())  # whole: two threads write

        for name in "ab":
            threading.Thread(target=lambda name=name: asyncio.run(talk(name))).start()
    """
    process = program(code, tmp_path / "bot.outbox.db")
    assert process.stdout is not None
    heard = [process.stdout.readline() for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=LIMIT)
    heard += [line for line in out.splitlines(keepends=True) if line.endswith("\n")]

    found = kept(tmp_path / "bot.outbox.db")

    assert err == ""
    assert {one.strip() for one in heard} <= set(found)
    for name in "ab":
        numbers = [int(one.split()[1]) for one in found if one.startswith(name)]
        assert numbers == list(range(len(numbers)))


@posix_only("Windows has no fork")
def test_a_forked_child_neither_inherits_it_nor_disturbs_it(tmp_path: Path) -> None:
    code = """
        import asyncio, os, sys, warnings
        warnings.simplefilter("ignore")
        from letopis.outbox import History
        from letopis.outbox.history.sharing import REGISTRY
        from letopis.store import Message

        opened = History(sys.argv[1], own_thread=True)
        not_opened = History(sys.argv[2])
        asyncio.run(opened.append("c1", Message.user("parent")))
        # A thread that imports something at the fork would keep Python's import lock for ever in the child.
        assert asyncio.run(opened.drained(timeout=30))
        child = os.fork()
        if child == 0:
            print(REGISTRY.outboxes, flush=True)
            for use in (lambda: opened.append("c1", Message.user("x")), lambda: opened.messages("c1")):
                try:
                    asyncio.run(asyncio.wait_for(use(), 10))
                except Exception as error:
                    print(type(error).__name__, "fork" in str(error), flush=True)
            asyncio.run(opened.close())
            asyncio.run(not_opened.append("c1", Message.user("child")))
            os._exit(0)
        os.waitpid(child, 0)

        async def end():
            await opened.append("c1", Message.user("parent again"))
            await opened.close()

        asyncio.run(end())
    """
    process = program(code, tmp_path / "parent.db", tmp_path / "child.db")
    out, err = process.communicate(timeout=LIMIT)

    assert out.splitlines() == ["[]", "Closed True", "Closed True"], err
    assert (err, process.returncode) == ("", 0)
    assert kept(tmp_path / "parent.db") == ["parent", "parent again"]
    assert kept(tmp_path / "child.db") == ["child"]


# --- On uvloop ---


KILLS: Final = 10
BOT: Final = """
import asyncio, sys
import uvloop
from letopis import History, Message

async def main(outbox, store):
    print(type(asyncio.get_running_loop()).__module__, flush=True)
    async with History(outbox, store=store) as history:
        number = 0
        while True:
            number += 1
            receipt = await history.append(f"chat-{number % 3}", Message.user(str(number)), owner="owner")
            print(f"chat-{number % 3}", *receipt.event_ids, flush=True)

uvloop.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
def test_what_a_killed_bot_acknowledged_is_there_once(tmp_path: Path) -> None:
    outbox, store = tmp_path / "bot.outbox.db", f"sqlite:///{(tmp_path / 'history.db').as_posix()}"
    pytest.importorskip("uvloop", reason="needs uvloop: pip install --group adapters")
    chance = random.Random(20261129)
    acks: list[Ack] = []
    for _ in range(KILLS):
        words = [sys.executable, "-c", BOT, str(outbox), store]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as bot:
            assert bot.stdout is not None
            assert bot.stdout.readline() == "uvloop\n"
            lines = [bot.stdout.readline() for _ in range(chance.randrange(1, 40))]
            bot.kill()
            lines += bot.stdout.readlines()
        whole = [line.split() for line in lines if line.endswith("\n")]
        acks += [Ack(name, UUID(event_id)) for name, *event_ids in whole for event_id in event_ids]

    async def delivered() -> bool:
        async with History(outbox, store=store) as history:
            return await history.drained(30)

    assert asyncio.run(delivered())
    verdict = asyncio.run(check([outbox], store, acknowledged=acks, drained=True))
    assert len(acks) > KILLS
    assert verdict.ok, str(verdict)
