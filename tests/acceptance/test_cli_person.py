"""Hand a person their data, erase them, and check the receipt: the commands, on a real outbox and a real store."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from letopis.outbox import History
from letopis.store.model.messages import Message

pytestmark = pytest.mark.usefixtures("elsewhere")

ANN, BEN = "ann", "ben"
ANNS, BENS = "gheldrimmer", "quenwhistle"
ERASE: Final = ("history", "erase", "--person", ANN, "--delete", "--reason", "asked", "--by", "dpo", "--wait", "--yes")


async def say(count: int) -> None:
    async with History("bot.outbox.db") as history:
        for author, words in ((ANN, ANNS), (BEN, BENS)):
            said = [Message.user(f"{words} {number}", author=author) for number in range(count)]
            await history.append("group", *said, owner="group")
            await history.append(author, Message.user(f"{words} alone"), Message.assistant("<b>noted</b>", id=author))
            await history.chat(author).activate(owner=author)
        await history.chat(ANN).sent(ANN, platform_ids={"telegram": 4711}, sent_as="file")
        await history.records(owner=ANN).put(("profile",), "likes", {"said": f"{ANNS} <i>record</i>"})
        assert await history.drained(60)


@pytest.fixture
def said(elsewhere: None) -> None:
    asyncio.run(say(3))


def holds(word: str) -> bool:
    return any(word.encode() in path.read_bytes() for path in Path().glob("*.db*"))


@pytest.mark.usefixtures("said")
def test_a_person_is_handed_their_data_then_erased_with_a_receipt(letopis: Any) -> None:
    code, _, err = letopis(
        *("history", "export", "jsonl", "--person", ANN, "--deliveries", "--page", "ann.html", "ann.jsonl")
    )
    assert code == 0
    assert "5 messages of 2 conversations and 1 record exported" in err
    lines = [json.loads(line) for line in Path("ann.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["content"] for line in lines if line.get("conversation_id") == "group"] == [
        f"{ANNS} {number}" for number in range(3)
    ]
    assert {"state": "sent", "platform_ids": {"telegram": 4711}, "sent_as": "file"} in [
        line.get("delivery") for line in lines
    ]
    page = Path("ann.html").read_text(encoding="utf-8")
    assert page.count(ANNS) == 5 and "sent (sent_as: file" in page.replace(
        "platform_ids: {&quot;telegram&quot;: 4711}, ", ""
    )
    assert "&lt;b&gt;noted" in page and "<b>" not in page and "<i>" not in page
    for content in (page, Path("ann.jsonl").read_text(encoding="utf-8")):
        assert BENS not in content and BEN not in content

    code, out, err = letopis(*ERASE, "--receipt", "ann.receipt.json", "--json")
    done = json.loads(out)
    assert code == 0, err
    assert (sorted(done["erased"]), done["person"], done["held"]) == ([ANN, "group"], ANN, [])
    assert not holds(ANNS) and holds(BENS)
    receipt = Path("ann.receipt.json").read_bytes()
    assert ANNS.encode() not in receipt and b"noted" not in receipt
    erasure = json.loads(receipt)["erasure"]
    assert (erasure["kind"], erasure["subject"], erasure["requested_by"]) == ("person", ANN, "dpo")

    code, out, err = letopis("db", "verify", "--receipt", "ann.receipt.json")
    assert (code, out) == (0, "outbox bot.outbox.db: had acknowledged\n")
    assert "no problems found" in err
    assert letopis("db", "verify")[0] == 0
    assert letopis("outbox", "verify")[0] == 0
    assert letopis(*ERASE)[0] == 3
    # The receipt is made again, of the erasure that was recorded.
    assert letopis(*ERASE, "--receipt", "again.json")[0] == 0
    assert letopis("db", "verify", "--receipt", "again.json")[0] == 0
    assert json.loads(Path("again.json").read_bytes())["erasure"] == erasure
    assert letopis("history", "export", "jsonl", "--person", ANN, "none.jsonl")[0] == 3


@pytest.mark.usefixtures("said")
def test_a_receipt_is_refused_when_it_was_altered_or_the_content_is_back(letopis: Any) -> None:
    for path in Path().glob("bot.history.db*"):
        shutil.copy(path, f"backup-{path.name}")
    assert letopis(*ERASE, "--receipt", "r.json")[0] == 0
    altered = Path("r.json").read_text(encoding="utf-8").replace('"asked"', '"asker"')
    Path("altered.json").write_text(altered, encoding="utf-8")

    code, out, _ = letopis("db", "verify", "--receipt", "altered.json")
    assert code == 1
    assert "the receipt was altered: its digest is not that of the rest" in out
    code, out, _ = letopis("--store", "backup-bot.history.db", "db", "verify", "--receipt", "r.json", "--json")
    told = json.loads(out)
    assert code == 1 and not told["sound"]
    assert "the store does not know erasure 1: it is older than the receipt, as a backup is" in told["problems"]
    assert any("holds content, in conversation 'group'" in problem for problem in told["problems"])
    assert ANNS not in out
    assert letopis("db", "verify", "--receipt", "bot.outbox.db")[0] == 1
    assert letopis("db", "verify", "--receipt", "none.json")[0] == 1


def count(path: str, query: str) -> int:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return int(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("bot.history.db", "SELECT count(*) FROM letopis_erasures"),
        ("bot.outbox.db", "SELECT count(*) FROM letopis_outbox_events WHERE type = 'message.redacted'"),
        ("bot.history.db", "SELECT count(*) FROM letopis_events WHERE type = 'message.redacted'"),
    ],
)
def test_a_kill_while_erasing_is_completed_by_a_repetition(path: str, query: str, letopis: Any) -> None:
    asyncio.run(say(1_500))
    words = [sys.executable, "-m", "letopis.outbox.cli", *ERASE, "--receipt", "r.json"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not count(path, query):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not Path("r.json").exists()

    code, _, err = letopis(*ERASE, "--receipt", "r.json")
    assert code == 0, err
    assert letopis("db", "verify", "--receipt", "r.json")[0] == 0
    assert letopis("db", "verify")[0] == 0
    document = json.loads(Path("r.json").read_bytes())
    assert len(document["messages"]["group"]) == 1_500 and document["conversations"] == [ANN]
    assert not holds(ANNS) and holds(f"{BENS} 1499")
