"""Histories that are opened on first use, in processes that fork, or end without closing."""

import asyncio
import itertools
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from letopis.outbox import History
from tests.support.child import ran
from tests.support.platforms import posix_only


def kept(path: Path) -> list[str]:
    """The messages that a later process finds."""

    async def read() -> list[str]:
        async with History(path, relay=False, watch=False) as history:
            return [one.text for one in await history.messages("c1", last=None)]

    return asyncio.run(read())


ENDINGS = {
    "asyncio.run twice": """
        asyncio.run(say("a"))
        asyncio.run(say("b"))
    """,
    "a loop that is neither closed nor cancelled": """
        loop = asyncio.new_event_loop()
        loop.run_until_complete(say("a"))
        loop.run_until_complete(say("b"))
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
    done = ran(
        sys.executable, "-c", textwrap.dedent(code) + textwrap.dedent(ENDINGS[ending]), tmp_path / "bot.outbox.db"
    )

    assert (done.stdout.split(), done.stderr, done.returncode) == (["a", "b"], "", 0)
    assert kept(tmp_path / "bot.outbox.db") == ["a", "b"]


@posix_only("Windows has no fork")
def test_a_forked_child_neither_inherits_it_nor_disturbs_it(tmp_path: Path) -> None:
    code = """
        import asyncio, os, sys, warnings
        warnings.simplefilter("ignore")
        from letopis.outbox import History
        from letopis.outbox.history.sharing import REGISTRY
        from letopis.store import Message

        # A thread that is inside SQLite or an import at the fork would keep that lock for ever in the child: no relay.
        opened = History(sys.argv[1], own_thread=True, relay=False, watch=False)
        not_opened = History(sys.argv[2])
        asyncio.run(opened.append("c1", Message.user("parent")))
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
    done = ran(sys.executable, "-c", textwrap.dedent(code), tmp_path / "parent.db", tmp_path / "child.db")

    assert done.stdout.splitlines() == ["[]", "Closed True", "Closed True"], done.stderr
    assert (done.stderr, done.returncode) == ("", 0)
    assert kept(tmp_path / "parent.db") == ["parent", "parent again"]
    assert kept(tmp_path / "child.db") == ["child"]


@posix_only("kill -9")
def test_a_bot_on_uvloop_delivers_and_loses_nothing_when_it_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("uvloop", reason="needs uvloop: pip install --group adapters")
    code = """
        import itertools, sys, uvloop
        from letopis import History, Message

        async def talk():
            async with History(sys.argv[1]) as history:
                receipt = await history.append("c1", Message.user("0"))
                print(int(await receipt.saved(timeout=60)), flush=True)
                for number in itertools.count(1):
                    await history.append("c1", Message.user(str(number)))
                    print(number, flush=True)

        uvloop.run(talk())
    """
    path = tmp_path / "bot.outbox.db"
    told = []
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), path], stdout=subprocess.PIPE, text=True
    ) as bot:
        assert bot.stdout is not None
        assert bot.stdout.readline() == "1\n"  # delivered
        told = [line.strip() for line in itertools.islice(bot.stdout, 50)]
        bot.kill()
        told += bot.stdout.read().split()

    there = kept(path)

    assert there[1 : len(told) + 1] == told
    assert there == [str(number) for number in range(len(there))]
