"""letopis history erase and retain, and tag, on a real outbox and a real store."""

import asyncio
import json
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
def test_a_reset_leaves_the_id_usable(letopis: Any) -> None:
    code, out, error = letopis("history", "erase", "a1", "--reset", "--reason", "asked", "--wait", "--yes")

    assert (code, out) == (0, "a1\n")
    assert "the history store holds none of the content any more" in error
    assert "every outbox has carried it out" in error.splitlines()[-1]
    assert not holds(f"{SECRET} a1")
    talk("again", conversation="a1", owner=None, deliver=False)
    assert "again" in letopis("history", "show", "a1")[1]


@pytest.mark.usefixtures("said")
def test_without_waiting_the_relay_delivers_it(letopis: Any) -> None:
    code, _, error = letopis("history", "erase", "a1", "--reset", "--reason", "asked", "--yes")

    assert code == 0
    assert "`letopis relay --once` does it now" in error
    assert "outbox bot.outbox.db" in error.splitlines()[-1]
    assert "has erasures to carry out" in error.splitlines()[-1]
    assert holds(f"{SECRET} a1")
    assert letopis("relay", "--once")[0] == 0
    assert not holds(f"{SECRET} a1")


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
    async def put() -> None:
        async with History("bot.outbox.db") as history:
            await history.records(conversation="a1").put(("notes",), "key", f"{SECRET} note")
            assert await history.drained(30)

    asyncio.run(put())
    for path in Path().glob("bot.history.db*"):
        shutil.copy(path, f"backup-{path.name}")
    arguments = ("history", "erase", "a1", f"--{how}", "--reason", "asked", "--wait", "--yes")

    assert letopis(*arguments, "--receipt", "r.json")[0] == 0

    document = json.loads(Path("r.json").read_bytes())
    told = {name: document["erasure"][name] for name in ("kind", "subject", "how", "number")}
    assert told == {"kind": "conversation", "subject": "a1", "how": how, "number": 1}
    assert (document["conversations"], document["messages"]) == (["a1"], {})
    assert document["events"] > 0 and len(document["records"]) == 1
    assert SECRET not in Path("r.json").read_text(encoding="utf-8")
    assert letopis("db", "verify", "--receipt", "r.json")[0] == 0
    code, out, _ = letopis("--store", "backup-bot.history.db", "db", "verify", "--receipt", "r.json", "--json")
    assert code == 1
    assert "the store holds 1 of the records of the receipt" in json.loads(out)["problems"]
    # A repetition makes one too: of the same erasure where the conversation has ended.
    assert letopis(*arguments, "--receipt", "again.json")[0] == 0
    again = json.loads(Path("again.json").read_bytes())
    assert again["erasure"]["number"] == (1 if how == "delete" else 2)
    assert letopis("db", "verify", "--receipt", "again.json")[0] == 0
    if how == "reset":
        talk("again", conversation="a1", owner=None, deliver=False)
        asyncio.run(put())
        assert letopis("db", "verify", "--receipt", "r.json")[0] == 0


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

    refused = [
        letopis("history", "erase", *what, "--reset", "--reason", "asked", "--yes")
        for what in (["--owner", "42"], ["a1"], ["b1"], ["--owner", "7"])
    ]

    assert [code for code, _, _ in refused] == [1, 1, 1, 1]
    assert all("is on hold" in error and "case 1" in error for _, _, error in refused)
    assert letopis("relay", "--once")[0] == 0
    assert all(holds(f"{SECRET} {chat}") for chat in ("a1", "a2", "b1", "record"))
    assert "case 17" in letopis("history", "show", "a1")[2]
    held = json.loads(letopis("history", "hold", "--json")[1])["holds"]
    assert [(hold["kind"], hold["subject"], hold["by"]) for hold in held] == [
        ("conversation", "b1", None),
        ("owner", "42", "legal"),
    ]
    assert [hold["subject"] for hold in json.loads(letopis("status", "--json")[1])["holds"]] == ["b1", "42"]
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
    assert [behind["name"] for behind in json.loads(letopis("status", "--json")[1])["unacknowledged"]] == [
        "other.outbox.db"
    ]
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
    assert [letopis("db", "verify", "--receipt", name)[0] for name in ("bot.outbox.db", "none.json")] == [1, 1]
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
    for _ in range(2):
        code, out, err = letopis("history", "retain", "--dry-run", "--json")
        told = json.loads(out)
        assert code == 0 and told["dry_run"]
        assert told["rules"] == {
            "default": {"conversations": 1, "messages": 2},
            "owner 7": {"conversations": 1, "messages": 2},
        }
        assert {one["conversation_id"]: one["messages"] for one in told["conversations"]} == {"old": 2, "seven": 2}
        assert all(one["oldest_kept"] is not None for one in told["conversations"])
        assert "would leave" in err and holds("old-t0ken") and texts("old")[0] == "old-t0ken 1"
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

    async def use(*, fill: bool) -> list[int]:
        from letopis.adapters.langgraph import LetopisSaver
        from tests.support.langgraph_turns import config, put

        async with History("bot.outbox.db", watch=False) as history:
            for thread in ("a", "b") if fill else ():
                at = config(thread)
                for number in range(5):
                    at = await put(LetopisSaver(history), {"big": f"{number} {'w' * 200}"}, at, version=number)
                    await LetopisSaver(history).aput_writes(at, [("big", "w" * 200)], "task")
            if fill:
                await history.append("b", Message.user("hello"), owner="7")
            assert await history.drained(30)
            return [len([one async for one in LetopisSaver(history).alist(config(name))]) for name in ("a", "b")]

    assert asyncio.run(use(fill=True)) == [5, 5]
    rules = "[retention.content]\ncheckpoints_last = 2\n[[retention.content.rules]]\nowner = '7'\nmax_messages = 9"
    Path("letopis.toml").write_text(rules, encoding="utf-8")
    code, out, err = letopis("history", "retain", "--dry-run", "--json")
    shown = json.loads(out)["checkpoints"]
    assert code == 0 and "would delete 3 checkpoints" in err
    assert shown == [
        {"conversation_id": "a", "namespace": ["langgraph", "checkpoints", "="], "rule": "default", "checkpoints": 3}
    ]
    assert "CHECKPOINTS" in letopis("history", "retain", "--dry-run")[1]
    assert asyncio.run(use(fill=False)) == [5, 5]
    code, out, err = letopis("history", "retain", "--yes", "--wait", "--json")
    done = json.loads(out)
    assert code == 0 and done["checkpoints"] == shown and done["pending"] == 0 and "deleted 3 checkpoints" in err
    assert asyncio.run(use(fill=False)) == [2, 5]
    assert letopis("history", "retain", "--dry-run")[0] == 3
    Path("letopis.toml").write_text(rules.replace("last = 2", "last = 1"), encoding="utf-8")
    assert letopis("relay", "--once")[0] == 0
    assert asyncio.run(use(fill=False)) == [1, 5]
    assert "1 checkpoints deleted" in letopis("status")[1]
    assert letopis("db", "verify")[0] == 0
