"""`letopis db` and `letopis move`: what they compare, repair, copy and say, and their exit codes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import orjson
import pytest

from letopis.ops.cli.interface.exit_codes import Exit
from letopis.outbox import History
from letopis.store import ConversationStarted, ConversationStore, Message, MessageRedacted
from letopis.store.database.store_identity import LogState
from letopis.store.database.urls import normalise_url
from letopis.store.ops.move.mover import move
from letopis.store.testing.outbox import Outbox
from tests.support.fix_command import talk
from tests.support.fix_disk import HOG, fill
from tests.support.moves import identity, states
from tests.support.peers import refused_port
from tests.support.relays import until
from tests.support.sqlite_rows import change, rows


@pytest.fixture
def history(elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "history.db"
    monkeypatch.setenv("LETOPIS_STORE", str(path))

    async def fill() -> None:
        async with ConversationStore.open(path) as store:
            outbox = Outbox()
            for name in ("a", "b"):
                started = ConversationStarted(owner_id="42", title="secret")
                outbox.append(name, started, Message.user("secret", id=f"{name}-1"))
            await outbox.deliver(store)
            outbox.append("a", MessageRedacted(message_id="a-1"))
            await outbox.deliver(store)

    anyio.run(fill)
    return path


def test_an_anchor_is_written_or_printed_and_confirmed(history: Path, letopis: Any) -> None:
    code, out, err = letopis("db", "anchor", "--out", "one.json")
    assert (code, out) == (0, "")
    assert "anchored 5 events" in err
    assert Path("one.json").stat().st_mode & 0o777 == (0o600 if os.name == "posix" else 0o666)
    assert b"secret" not in Path("one.json").read_bytes()
    printed = json.loads(letopis("db", "anchor").out)
    assert printed.keys() == json.loads(Path("one.json").read_bytes()).keys()
    [partition] = printed["partitions"]
    assert (partition["partition"], partition["position"]) == (0, 5)

    code, out, err = letopis("db", "verify", "--anchor", "one.json")
    assert (code, out) == (0, "partition 0: unchanged up to position 5\n")
    assert "no problems found" in err


def test_verify_says_how_each_partition_compares(history: Path, letopis: Any) -> None:
    letopis("db", "anchor", "--out", "one.json")

    async def go_on() -> None:
        async with ConversationStore.open(history) as store:
            outbox = Outbox("another")
            outbox.append("b", MessageRedacted(message_id="b-1"))
            await outbox.deliver(store)

    anyio.run(go_on)
    code, out, _ = letopis("db", "verify", "--anchor", "one.json", "--json")
    said = json.loads(out)
    assert (code, said["sound"], said["count"]) == (0, True, 0)
    compared = {"partition": 0, "position": 5, "head": 6, "unchanged": True, "redacted": 1}
    assert said["anchor"]["partitions"] == [compared]
    told = letopis("db", "verify", "--anchor", "one.json").out
    assert told == "partition 0: unchanged up to position 5, but for 1 redacted since\n"

    change(history, "UPDATE letopis_events SET recorded_at = 0 WHERE position = 4")
    assert letopis("db", "verify").code == 0
    code, out, err = letopis("db", "verify", "--anchor", "one.json")
    assert (code, out) == (1, "partition 0 of the log: events 1 to 5 are not those of the anchor\n")
    assert "1 problem found" in err
    code, out, _ = letopis("db", "verify", "--anchor", "one.json", "--json")
    said = json.loads(out)
    assert (code, said["sound"], said["anchor"]["partitions"][0]["unchanged"]) == (1, False, False)


def test_what_is_no_anchor_of_this_store_is_refused(history: Path, letopis: Any) -> None:
    document = json.loads(letopis("db", "anchor").out)
    [partition] = document["partitions"]
    given = [
        ({**document, "letopis_anchor": 2}, "has a format other than 1"),
        ({**document, "store_id": str(UUID(int=0))}, f"is of history store {UUID(int=0)}"),
        *(
            ({**document, **change}, "is incomplete or was changed")
            for change in (
                *({"store_id": "mine"}, {"made_at": "yesterday"}, {"partitions": [{**partition, "position": -1}]}),
            )
        ),
        *((other, "is JSON, but not an anchor") for other in ([], {})),
    ]
    for number, (written, _) in enumerate(given):
        Path(f"{number}.json").write_bytes(orjson.dumps(written))
    Path("junk").write_bytes(b"\xff\0")
    Path("folder").mkdir()
    told = {f"{number}.json": says for number, (_, says) in enumerate(given)}
    told |= {"junk": "is not JSON", "folder": "cannot be read: ", "none.json": "cannot be read: No such file"}
    for path, says in told.items():
        code, out, _ = letopis("db", "verify", "--anchor", path, "--json")
        found = json.loads(out)
        assert (code, found["sound"], found["count"]) == (1, False, 1), says
        assert f"the anchor {says}" in found["problems"][0]


def test_a_wrong_one_is_found_and_mended(history: Path, letopis: Any) -> None:
    change(history, "UPDATE letopis_conversations SET title = 'forged' WHERE conversation_id = 'b'")

    code, out, err = letopis("db", "rebuild", "--check")
    assert (code, out) == (1, "b: title\n")
    assert "1 differ from the log" in err
    assert "secret" not in out + err
    assert "forged" not in out + err

    code, out, err = letopis("db", "rebuild", "--conversation", "b", "--json")
    assert code == 0
    assert json.loads(out) == {
        "conversations": 1,
        "events": 2,
        "differing": 1,
        "written": 1,
        "differences": [{"conversation_id": "b", "count": 1, "names": ["title"]}],
    }
    assert letopis("db", "rebuild", "--check") == (0, "", "2 conversations with 5 events checked, 0 changed\n")
    assert letopis("db", "rebuild") == (0, "", "0 conversations with 0 events rebuilt, 0 changed\n")
    assert letopis("db", "rebuild", "--all")[2] == "2 conversations with 5 events rebuilt, 0 changed\n"


def test_what_the_log_does_not_have_cannot_be_mended(history: Path, letopis: Any) -> None:
    change(history, "UPDATE letopis_conversations SET rules = 1 WHERE conversation_id <> 'b'")
    assert letopis("db", "rebuild", "--json").err == "1 conversations with 3 events rebuilt, 0 changed\n"
    change(history, "DELETE FROM letopis_events WHERE conversation_id = 'b'")

    code, out, err = letopis("db", "rebuild", "--all")

    assert (code, out) == (1, "b: events missing\n")
    assert "cannot be rebuilt from the log: restore the database" in err


def test_the_index_is_brought_up_to_the_log(history: Path, letopis: Any) -> None:
    code, out, _ = letopis("db", "index", "--json")
    assert (code, json.loads(out)) == (0, {"events": 5})
    assert letopis("db", "index") == (0, "", "0 events indexed\n")
    assert rows(history, "SELECT count(*) FROM letopis_search WHERE document <> ''") == [(1,)]


SECRET = "hunter2"


async def test_an_idle_relay_finds_out_that_the_history_was_moved_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is pending, so no delivery is refused: the comparison at intervals asks."""
    monkeypatch.setattr("letopis.outbox.relay.reconcile.RECONCILE_INTERVAL_SECONDS", 0.2)
    async with History(tmp_path / "bot.outbox.db") as history:
        receipt = await history.append("chat", Message.user("hi"))
        assert await receipt.saved(timeout=60)
        await move(f"sqlite:///{tmp_path}/bot.history.db", f"sqlite:///{tmp_path}/new.db")

        async def found_out() -> bool:
            return "new.db" in (await history.status()).verdict

        await until(found_out, patience=60)
        found = await history.status()

    assert found.wrong_store and not found.healthy


@pytest.fixture
def bot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bot's folder, with a history in the default store."""
    monkeypatch.chdir(tmp_path)
    talk(*"01234", conversation="chat")
    return tmp_path


def test_a_full_disk_of_the_target_is_named_and_temporary(bot: Path, small_disk: Path, letopis: Any) -> None:
    target = small_disk / "new.db"
    fill(small_disk)

    code, _, err = letopis("move", "--to", str(target))

    assert code == Exit.LATER
    assert f"the history store sqlite:///{target}, the target of the move: the disk of the history store is full" in err
    (small_disk / HOG).unlink()
    assert letopis("move", "--to", str(target))[0] == Exit.OK


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_store_that_does_not_answer_is_named_with_its_role(bot: Path, role: str, letopis: Any) -> None:
    away = f"postgresql://bot:{SECRET}@127.0.0.1:{anyio.run(refused_port)}/history"
    words = ["--store", away, "move", "--to", "new.db"] if role == "source" else ["move", "--to", away]

    code, _, err = letopis(*words)

    assert code == Exit.LATER and SECRET not in err
    assert "the history store postgresql" in err and f"/history, the {role} of the move: " in err


def test_it_moves_and_says_what_to_do_next(bot: Path, letopis: Any) -> None:
    code, out, err = letopis("move", "--to", "new.db", "--json")

    assert code == Exit.OK
    assert "copying" not in err, "progress is for terminals"
    assert "store= in Python, LETOPIS_STORE, or store in letopis.toml" in err
    assert f"{bot}/bot.history.db takes no deliveries any more" in err
    told = json.loads(out)
    assert (told["events"], told["messages"], told["conversations"], told["owners"]) == (6, 5, 1, 1)
    assert told["already"] is False and 0 < told["paused_seconds"] <= told["seconds"]
    # The setting still names the old store.
    code, out, _ = letopis("status", "--check")
    assert code == Exit.FAILED
    assert "the history was moved away from this store" in out and "new.db" in out
    assert "Everything is in the history store" not in out
    # Again is no mistake.
    code, out, err = letopis("move", "--to", "sqlite:///new.db", "--json")
    assert code == Exit.OK and json.loads(out)["already"] and "nothing to do" in err
    assert letopis("--store", "new.db", "db", "verify")[0] == Exit.OK
    # The old store stays readable.
    assert letopis("db", "verify")[0] == Exit.OK
    assert letopis("db", "check")[0] == Exit.OK
    assert letopis("db", "rebuild", "--check")[0] == Exit.OK


def test_a_move_is_given_up(bot: Path, letopis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("letopis.store.ops.move.mover.commit_handover", interrupted)
        assert letopis("move", "--to", "new.db")[0] == 130
    assert anyio.run(states, "bot.history.db") == {LogState.CLOSING}
    code, out, err = letopis("move", "--cancel", "--json")
    assert code == Exit.OK and json.loads(out) == {"cancelled": True, "target": f"sqlite:///{bot}/new.db"}
    assert "takes deliveries again" in err
    assert anyio.run(states, "bot.history.db") == {LogState.OPEN}


def test_the_target_comes_from_the_environment_too(bot: Path, letopis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETOPIS_MOVE_TO", "new.db")
    monkeypatch.setenv("LETOPIS_MOVE_TO_FILE", "secret")
    code, _, err = letopis("move")
    assert code == Exit.CONFIGURATION and "both set" in err
    monkeypatch.delenv("LETOPIS_MOVE_TO")
    (bot / "secret").write_text("sqlite:///new.db\n")
    assert letopis("move")[0] == Exit.OK
    assert anyio.run(states, "new.db") == {LogState.OPEN}


def test_no_password_is_shown_or_kept(bot: Path, letopis: Any, new_store_url: Callable[[str], str]) -> None:
    url = normalise_url(new_store_url("postgresql")).set(password=SECRET)  # which asks for none
    code, out, err = letopis("move", "--to", url.render_as_string(hide_password=False), "--json")
    assert code == Exit.OK and SECRET not in out + err
    moved_to = anyio.run(identity, "bot.history.db")[1]
    assert moved_to == json.loads(out)["target"]
    assert "@" not in moved_to and SECRET not in moved_to and str(url.database) in moved_to
