"""The demonstration: its story is true, and it fails if it is not."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from letopis.examples import demo as demo_script
from letopis.examples.demo import STORE, DemoFailed, DemoOutcome, Transcript, check
from letopis.outbox.cli import cli
from letopis.outbox.cli.interface.exit_codes import Exit, run
from letopis.outbox.history.history import History
from letopis.store.model.messages import Message
from tests.support.demo_transcript import PAGES, comparable, play, transcript_of


def test_the_command_tells_its_story_and_ends_well(tmp_path: Path) -> None:
    """In a pipe: no colour and no escape in it, nothing on stderr, and well below half a minute."""
    began = time.monotonic()

    done = play(tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "appended 72, stored 72, in order 72, duplicates 0." in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 120
    assert {comparable(transcript_of(page)) for page in PAGES} == {comparable(done.stdout)}
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - began < 60


def test_what_it_keeps_can_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert run(cli, ["demo", "--keep", "here"]) == 0
    assert run(cli, ["--outbox", "here/bot.outbox.db", "status", "--check"]) in (Exit.OK, Exit.FAILED)
    capsys.readouterr()
    assert run(cli, ["--outbox", "here/bot.outbox.db", "history", "show", "telegram:101"]) == 0

    assert capsys.readouterr().out.count("\n") >= 24
    with closing(sqlite3.connect(tmp_path / "here" / STORE)) as connection:
        assert connection.execute("SELECT count(*) FROM letopis_messages").fetchone() == (72,)


async def test_its_check_finds_what_is_missing_doubled_or_out_of_order(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db") as history:
        for word in ("a", "b", "c"):
            await history.append("c1", Message.user(word))
        assert await history.drained(30)

    async def found(*words: str) -> DemoOutcome:
        return await check(tmp_path, Transcript(lines={"c1": [("user", word) for word in words]}))

    assert (await found("a", "b", "c")).holds
    assert await found("a", "b", "c", "d") == DemoOutcome(appended=4, stored=3, in_order=3, duplicates=0)
    assert not (await found("a", "b", "c", "d")).holds
    assert await found("a", "c", "b") == DemoOutcome(appended=3, stored=3, in_order=1, duplicates=0)
    assert not (await found("a", "c", "b")).holds
    assert not (await found("a", "b")).holds
    assert not DemoOutcome(appended=3, stored=3, in_order=3, duplicates=1).holds


async def test_it_waits_for_a_number_of_polls_however_long_each_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_script, "MAX_POLLS", 10)
    monkeypatch.setattr(demo_script, "POLL_SECONDS", 0.001)
    polls = 0

    async def at_the_tenth() -> bool:
        nonlocal polls
        polls += 1
        await anyio.sleep(0.02)  # a slow machine: all of them together take longer than ten pauses
        return polls == 10

    await demo_script._until(at_the_tenth, "the tenth")
    with pytest.raises(DemoFailed, match="the twentieth"):
        await demo_script._until(at_the_tenth, "the twentieth")
    assert polls == 20
