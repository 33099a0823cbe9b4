"""`letopis move` reports its progress, the next step and why it refuses, and exits with the right code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from letopis.outbox import History
from letopis.outbox.cli.interface.exit_codes import Exit
from letopis.store import Message
from letopis.store.database.store_identity import LogState
from letopis.store.relocation.mover import move
from tests.support.fix_command import talk
from tests.support.fix_disk import HOG, fill
from tests.support.moves import identity, states
from tests.support.peers import refused_port
from tests.support.relays import until

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


def test_it_is_given_up(bot: Path, letopis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("letopis.store.relocation.mover.commit_handover", interrupted)
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


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_no_password_is_shown_or_kept(bot: Path, kind: str, letopis: Any, new_store_url: object) -> None:
    from letopis.store.database.urls import normalise_url

    url = normalise_url(new_store_url(kind))  # type: ignore[operator]
    # The servers of the tests ask for none.
    with_password = url.set(password=SECRET) if kind == "postgresql" else url
    code, out, err = letopis("move", "--to", with_password.render_as_string(hide_password=False), "--json")
    assert code == Exit.OK and SECRET not in out + err
    moved_to = anyio.run(identity, "bot.history.db")[1]
    assert moved_to == json.loads(out)["target"]
    assert "@" not in moved_to and SECRET not in moved_to and str(url.database) in moved_to
