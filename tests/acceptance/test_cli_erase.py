"""letopis history erase and retain, and tag, on a real outbox and a real store."""

import asyncio
import json
import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from letopis.outbox import History
from letopis.outbox.relay.relay import Relay
from letopis.store.errors import ConversationGone
from letopis.store.model.events import utc_now
from letopis.store.model.messages import Message
from tests.support.fix_command import talk

pytestmark = pytest.mark.usefixtures("elsewhere")

SECRET: Final = "the capybara sings at noon"


@pytest.fixture
def said(elsewhere: None) -> None:
    """Conversations of two owners, delivered, with a word that is to be gone."""

    async def say() -> None:
        async with History("bot.outbox.db") as history:
            for name, owner in (("a1", "42"), ("a2", "42"), ("b1", "7")):
                await history.append(name, Message.user(f"{SECRET} {name}"), owner=owner)
            await history.records(owner="42").put(("profile",), "likes", {"said": f"{SECRET} record"})
            assert await history.drained(30)

    asyncio.run(say())


def holds(word: str) -> bool:
    return any(word.encode() in path.read_bytes() for path in Path().glob("bot.*.db*"))


@pytest.mark.usefixtures("said")
def test_everything_of_an_owner_is_erased_from_both_files(letopis: Any) -> None:
    assert holds(f"{SECRET} a1")

    code, out, _ = letopis(
        *("history", "erase", "--owner", "42", "--delete", "--reason", "asked", "--wait", "--yes", "--json")
    )

    done = json.loads(out)
    assert code == 0
    assert sorted(done["erased"]) == ["a1", "a2"]
    assert (done["how"], done["owner"], done["pending"], done["store_rows"]) == ("delete", "42", 0, 0)
    assert not any(holds(f"{SECRET} {one}") for one in ("a1", "a2", "record"))
    assert holds(f"{SECRET} b1")
    assert letopis("history", "erase", "--owner", "42", "--delete", "--reason", "again", "--yes")[0] == 3
    with pytest.raises(ConversationGone):
        talk("again", conversation="a1", owner=None, deliver=False)


@pytest.mark.usefixtures("said")
def test_without_waiting_the_relay_delivers_it_and_a_reset_leaves_the_id_usable(letopis: Any) -> None:
    reset = ("history", "erase", "a1", "--reset", "--reason", "asked", "--yes")
    code, _, error = letopis(*reset)

    assert code == 0
    assert "`letopis relay --once` does it now" in error
    assert "outbox bot.outbox.db" in error.splitlines()[-1]
    assert "has erasures to carry out" in error.splitlines()[-1]
    assert holds(f"{SECRET} a1")
    assert letopis("relay", "--once").code == 0
    assert not holds(f"{SECRET} a1")
    talk("again", conversation="a1", owner=None, deliver=False)
    assert "again" in letopis("history", "show", "a1").out
    code, out, error = letopis(*reset, "--wait")
    assert (code, out) == (0, "a1\n")
    assert "the history store holds none of the content any more" in error
    assert "every outbox has carried it out" in error.splitlines()[-1]


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize("what", ["--owner 42 --delete", "a1 --reset --wait --receipt r.json"])
def test_while_the_store_is_away_nothing_is_erased_by_half_or_without_its_receipt(letopis: Any, what: str) -> None:
    """What the outbox does not know would stay, and look erased."""
    Path("bot.history.db").rename("away.db")

    code, _, error = letopis("history", "erase", *what.split(), "--reason", "asked", "--yes")

    assert code == 75
    assert "nothing was erased" in error
    assert not Path("r.json").exists() and not Path("bot.history.db").exists()


def test_the_records_of_an_owner_without_conversations_are_erased(letopis: Any) -> None:
    async def put() -> None:
        async with History("other.outbox.db", store="sqlite:///bot.history.db") as history:
            await history.records(owner="42").put(("profile",), "likes", {"said": f"{SECRET} record"})
            assert await history.drained(30)

    asyncio.run(put())
    talk("hello", conversation="b1", owner="7")
    arguments = ("history", "erase", "--owner", "42", "--delete", "--reason", "asked", "--wait", "--yes")

    code, out, error = letopis(*arguments)

    assert (code, out) == (0, "")
    assert "all records of the owner" in error
    assert not holds(f"{SECRET} record")
    assert letopis(*arguments)[0] == 3


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize("how", ["reset", "delete"])
def test_a_named_conversation_leaves_a_receipt(letopis: Any, how: str) -> None:
    for path in Path().glob("bot.history.db*"):
        shutil.copy(path, f"backup-{path.name}")
    arguments = ("history", "erase", "a1", f"--{how}", "--reason", "asked", "--wait", "--yes")

    assert letopis(*arguments, "--receipt", "r.json").code == 0

    document = json.loads(Path("r.json").read_bytes())
    told = {name: document["erasure"][name] for name in ("kind", "subject", "how", "number")}
    assert told == {"kind": "conversation", "subject": "a1", "how": how, "number": 1}
    assert (document["conversations"], document["messages"]) == (["a1"], {})
    assert document["events"] > 0
    assert SECRET not in Path("r.json").read_text(encoding="utf-8")
    assert letopis("db", "verify", "--receipt", "r.json").code == 0
    assert letopis("--store", "backup-bot.history.db", "db", "verify", "--receipt", "r.json").code == 1
    # A repetition makes one too: of the same erasure where the conversation has ended.
    assert letopis(*arguments, "--receipt", "again.json").code == 0
    again = json.loads(Path("again.json").read_bytes())
    assert again["erasure"]["number"] == (1 if how == "delete" else 2)
    assert letopis("db", "verify", "--receipt", "again.json").code == 0


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize("reached", ["appended", "delivered", "carried out in part"])
def test_an_erasure_that_was_interrupted_is_completed_by_a_repetition(reached: str, letopis: Any) -> None:
    """The first run is killed after it has appended, or while the history store erases a long conversation."""

    async def begin() -> None:
        async with History("bot.outbox.db", relay=False) as history:
            if reached == "carried out in part":
                for start in range(0, 3_000, 500):
                    await history.append("a1", *(Message.user(f"{SECRET} {start + n}") for n in range(500)))
            for name in ("a1", "a2"):
                await history.chat(name).delete(reason="asked")
            if reached != "appended":
                await history.records(owner="42").erase()
                await Relay(history.outbox, history.store).drain_once()

    asyncio.run(begin())
    arguments = ("history", "erase", "--owner", "42", "--delete", "--reason", "asked", "--wait", "--yes")
    code, out, error = letopis(*arguments)

    if reached == "delivered":
        assert code == 3
        assert "no erasure pending" in error
    else:
        assert (code, out) == (0, "")
        assert "the history store holds none of the content any more" in error
    assert not any(holds(f"{SECRET} {one}") for one in ("a1", "a2", "record", "2999"))
    assert letopis(*arguments)[0] == 3


@pytest.mark.usefixtures("said")
def test_what_is_on_hold_is_not_erased(letopis: Any) -> None:
    assert letopis("history", "hold", "--owner", "42", "--reason", "case 17", "--by", "legal")[0] == 0
    assert letopis("history", "hold", "b1", "--reason", "case 18")[0] == 0

    for what in (["--owner", "42"], ["a1"], ["b1"], ["--owner", "7"]):
        code, _, error = letopis("history", "erase", *what, "--reset", "--reason", "asked", "--yes")
        assert (code, "is on hold" in error, "case 1" in error) == (1, True, True)
    assert letopis("relay", "--once")[0] == 0
    assert all(holds(f"{SECRET} {chat}") for chat in ("a1", "a2", "b1", "record"))
    assert "case 17" in letopis("history", "show", "a1")[2]
    held = [(hold["subject"], hold["by"]) for hold in json.loads(letopis("history", "hold", "--json").out)["holds"]]
    assert held == [("b1", None), ("42", "legal")]
    assert letopis("history", "hold", "--owner", "42", "--release")[0] == 0
    assert letopis("history", "hold", "--owner", "42", "--release")[0] == 3
    assert letopis("history", "erase", "--owner", "42", "--reset", "--reason", "asked", "--wait", "--yes")[0] == 0
    assert not holds(f"{SECRET} a1")


@pytest.mark.usefixtures("said")
def test_an_outbox_that_has_not_carried_out_an_erasure_is_named(letopis: Any) -> None:
    talk(f"{SECRET} other", conversation="a1", owner=None, path="other.outbox.db", store="bot.history.db")
    code, _, error = letopis("history", "erase", "--owner", "42", "--reset", "--reason", "asked", "--wait", "--yes")

    assert code == 0
    assert "outbox other.outbox.db" in error
    assert letopis("relay", "--once")[0] == 0
    assert "not carried out in other.outbox.db" in letopis("status")[1]
    assert "have not carried out the erasures" in letopis("doctor")[1]
    assert letopis("--outbox", "other.outbox.db", "--store", "bot.history.db", "relay", "--once")[0] == 0
    assert not any(SECRET.encode() in path.read_bytes() for path in Path().glob("other.outbox.db*"))
    assert "every outbox has carried out" in letopis("doctor")[1]


# A person.

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
def group(elsewhere: None) -> None:
    asyncio.run(say(3))


@pytest.mark.usefixtures("group")
def test_a_person_is_handed_their_data_then_erased_with_a_receipt(letopis: Any) -> None:
    export = ("history", "export", "jsonl", "--person", ANN)
    code, _, err = letopis(*export, "--deliveries", "--page", "ann.html", "ann.jsonl")
    assert (code, "5 messages of 2 conversations and 1 record exported" in err) == (0, True)
    given, page = (Path(name).read_text(encoding="utf-8") for name in ("ann.jsonl", "ann.html"))
    deliveries = [json.loads(line).get("delivery") for line in given.splitlines()]
    assert {"state": "sent", "platform_ids": {"telegram": 4711}, "sent_as": "file"} in deliveries
    assert page.count(ANNS) == given.count(ANNS) == 5
    assert "&lt;b&gt;noted" in page and "<b>" not in page and "<i>" not in page
    assert BENS not in given + page and BEN not in given + page

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
    assert code == 0 and re.fullmatch(r"outbox bot\.outbox\.db \(\w{8}\): had acknowledged\n", out)
    assert "on the word of the receipt alone" in err
    assert (letopis("db", "verify").code, letopis("outbox", "verify").code, letopis(*ERASE).code) == (0, 0, 3)
    # The receipt is made again, of the erasure that was recorded.
    assert letopis(*ERASE, "--receipt", "again.json").code == 0
    assert json.loads(Path("again.json").read_bytes())["erasure"] == erasure
    assert letopis(*export, "none.jsonl").code == 3
    assert [letopis("db", "verify", "--receipt", name).code for name in ("bot.outbox.db", "none.json")] == [1, 1]
    code, _, err = letopis(*(BEN if word == ANN else word for word in ERASE))
    assert code == 0 and "1 conversation erased, and all records of the owner; of 1 other conversation, what the" in err


# Retention.

RULES = """
[retention.content]
max_age_days = 30
[[retention.content.rules]]
owner = "7"
max_messages = 1
"""


def say_ago(name: str, *texts: str, owner: str, days_ago: float) -> None:
    talk(*texts, conversation=name, owner=owner, now=lambda: utc_now() - timedelta(days=days_ago))


def texts(name: str) -> list[str]:
    async def read() -> list[str]:
        async with History("bot.outbox.db", relay=False, watch=False) as history:
            return [message.text for message in await history.messages(name)]

    return asyncio.run(read())


def test_what_is_due_leaves_both_files_and_the_rest_stays(letopis: Any) -> None:
    say_ago("old", "old-t0ken 1", "old-t0ken 2", owner="42", days_ago=40)
    say_ago("pinned", "pin-kept", owner="42", days_ago=40)
    say_ago("old", "young 1", owner="42", days_ago=1)
    say_ago("seven", "first-t0ken", "second-t0ken", "third", owner="7", days_ago=1)
    assert letopis("history", "tag", "pinned", "--add", "pinned")[0] == 0
    Path("letopis.toml").write_text(RULES, encoding="utf-8")
    code, out, err = letopis("history", "retain", "--dry-run", "--json")
    told = json.loads(out)
    assert code == 0 and told["dry_run"]
    assert told["rules"] == {key: {"conversations": 1, "messages": 2} for key in ("default", "owner 7")}
    assert {one["conversation_id"]: one["messages"] for one in told["conversations"]} == {"old": 2, "seven": 2}
    assert "would leave" in err and holds("old-t0ken")
    code, out, _ = letopis("history", "retain", "--yes", "--wait", "--json")

    done = json.loads(out)
    assert code == 0 and not done["dry_run"] and done["pending"] == 0
    assert done["conversations"] == told["conversations"]
    assert texts("old") == ["", "", "young 1"]
    assert texts("seven") == ["", "", "third"]
    assert texts("pinned") == ["pin-kept"]
    assert not holds("old-t0ken") and not holds("first-t0ken") and holds("third")
    assert letopis("history", "retain", "--dry-run")[0] == 3
    assert letopis("db", "verify")[0] == 0


def test_due_checkpoints_are_shown_and_then_deleted(letopis: Any) -> None:
    pytest.importorskip("langgraph.checkpoint.base", reason="needs langgraph: pip install --group adapters")
    from letopis.adapters.langgraph import LetopisSaver
    from tests.support.bots.langgraph import config, put

    async def use(*, fill: bool) -> int:
        async with History("bot.outbox.db", watch=False) as history:
            at, saver = config("a"), LetopisSaver(history)
            for number in range(5 if fill else 0):
                at = await put(saver, {"big": f"{number} {'w' * 200}"}, at, version=number)
            assert await history.drained(30)
            return len([one async for one in saver.alist(config("a"))])

    assert asyncio.run(use(fill=True)) == 5
    Path("letopis.toml").write_text("[retention.content]\ncheckpoints_last = 2\n", encoding="utf-8")
    code, out, err = letopis("history", "retain", "--dry-run", "--json")
    shown = json.loads(out)["checkpoints"]
    assert (code, "would delete 3 checkpoints" in err) == (0, True)
    assert shown == [
        {"conversation_id": "a", "namespace": ["langgraph", "checkpoints", "="], "rule": "default", "checkpoints": 3}
    ]
    assert "CHECKPOINTS" in letopis("history", "retain", "--dry-run").out
    code, out, err = letopis("history", "retain", "--yes", "--wait", "--json")
    assert (code, json.loads(out)["checkpoints"], "deleted 3 checkpoints" in err) == (0, shown, True)
    assert asyncio.run(use(fill=False)) == 2
