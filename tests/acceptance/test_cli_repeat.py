"""letopis history erase where the store refuses, and where it was restored from before an erasure."""

import asyncio
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any, Final

import pytest

from letopis.outbox import History
from tests.support.fix_command import talk

pytestmark = pytest.mark.usefixtures("elsewhere")

SECRET: Final = "the capybara sings at noon"
ERASE: Final = ("history", "erase", "--owner", "42", "--delete", "--reason", "asked", "--yes")


def refuse(condition: str) -> None:
    with sqlite3.connect("bot.history.db") as store:
        store.execute(
            f"CREATE TRIGGER refusing BEFORE INSERT ON letopis_events WHEN {condition}"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    store.close()


def say(*, pending: bool) -> None:
    talk(f"{SECRET} 1", conversation="a1", owner="42", deliver=True)
    talk(f"{SECRET} 1", conversation="a2", owner="42", deliver=True)
    if pending:
        talk(f"{SECRET} 2", conversation="a1", owner="42", deliver=False)


async def block() -> None:
    async with History("bot.outbox.db") as history:
        assert not await history.drained(30)
        assert (await history.status()).lanes["blocked"] == 1


@pytest.mark.parametrize("wait", [(), ("--wait", "--timeout", "20")])
def test_an_erasure_that_the_store_refuses_says_what_is_left_to_do(letopis: Any, wait: Any) -> None:
    talk("of another", conversation="b1", owner="7")
    say(pending=True)
    refuse("NEW.conversation_id = 'a1'")
    if not wait:
        asyncio.run(block())
    code, _, error = letopis(*ERASE, *wait)
    assert code == 1
    assert "2 conversations being erased" in error
    assert "the relay" not in error and "none of the content" not in error
    assert "1 conversation blocked: nothing more of it is delivered" in error.splitlines()[-1]
    assert "`letopis outbox list`" in error.splitlines()[-1]
    # What another conversation waits for is not its business.
    assert letopis("history", "erase", "b1", "--reset", "--reason", "asked", "--yes", "--wait").code == 0


def test_what_a_restored_store_has_forgotten_is_told_and_repeated(letopis: Any) -> None:
    say(pending=False)
    shutil.copy("bot.history.db", "backup.db")
    assert letopis(*ERASE, "--wait").code == 0
    assert letopis("history", "erase", "--repeat").code == 3
    Path("bot.history.db").unlink()
    shutil.copy("backup.db", "bot.history.db")
    assert letopis("history", "hold", "a2", "--reason", "case 17").code == 0
    letopis("relay", "--once")
    told = json.loads(letopis("status", "--json").out)
    assert [(erasure["number"], erasure["subject"]) for erasure in told["missing_erasures"]] == [(1, "42")]
    assert "restored from before erasure 1" in letopis("status").out
    assert "restored from before erasure 1" in letopis("doctor").out
    code, _, error = letopis("history", "erase", "--repeat", "--wait", "--yes")
    assert code == 0
    assert "erasure 1 of owner 42 (delete)" in error
    assert "on hold: conversation a2: case 17" in error and "not erased: conversation 'a2' is on hold" in error
    assert letopis("history", "hold", "a2", "--release").code == 0
    assert letopis("history", "erase", "--repeat", "--wait", "--yes").code == 0
    assert json.loads(letopis("status", "--json").out)["missing_erasures"] == []
    assert not any(SECRET.encode() in path.read_bytes() for path in Path().glob("bot.*.db*"))
    for wrong in (["--reset"], ["--reason", "why"], ["--owner", "42"], ["--receipt", "r.json", "--wait"]):
        assert letopis("history", "erase", "--repeat", *wrong).code == 2
