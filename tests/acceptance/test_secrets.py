"""Nothing personal and no secret leaves by the side doors: logs, --json, metrics, alerts, errors, files for others."""

import asyncio
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click
import psutil
import pytest

from letopis.ops.cli.interface.output import open_output
from letopis.outbox import History
from letopis.outbox.file.limits import DiskReserve
from letopis.store.database.urls import normalise_url
from letopis.store.errors import ConfigurationError, without_credentials
from letopis.store.model.messages import Message
from tests.proof.security import planted
from tests.support.daemons import DaemonProcess, ask, until
from tests.support.fix_command import Done, append_to, every_command
from tests.support.platforms import posix_only
from tests.support.servers.store_pool import migrate
from tests.support.sqlite_rows import rows
from tests.support.store_changes import run_there
from tests.support.values.secrets import BODY, ESC, HOSTILE, NAME, OTHER, PASSWORD, RTL, SECRETS, TOKEN, leaks
from tests.support.webhook import serve


def test_the_search_finds_what_it_looks_for() -> None:
    assert leaks(f"a {PASSWORD} b {ESC}[31m") == [PASSWORD, "'\\x1b'"]
    assert leaks("nothing") == []


def test_no_command_shows_a_password_wherever_it_comes_from(tmp_path: Path) -> None:
    """Nor does what an error is chained to, which --debug shows; each URL in ``unit/store/database/test_urls.py``."""
    names = ["the key of a certificate", "a slash in it", "a port that is none", "no kind at all", "one slash"]

    runs, found = planted.commands(tmp_path, names)

    assert runs == len(names) * 16
    assert found == []


def test_a_daemon_in_trouble_says_nothing_of_what_was_said(
    elsewhere: None,
    letopis: Callable[..., Done],
    tmp_path: Path,
    fresh_postgresql_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store whose errors quote the message, a password in the URL, a token in the channel, an id that forges."""
    asyncio.run(_refusing(fresh_postgresql_url))
    url = normalise_url(fresh_postgresql_url)
    dsn = url.set(drivername="postgresql", password=url.password or PASSWORD).render_as_string(hide_password=False)
    path = _outbox(tmp_path, HOSTILE, "c1", owner=f"owner{RTL}")
    Path("letopis.toml").write_text("[relay]\nattempts = 0\n")
    words = ("--listen", "0", "--log-format", "text", "--log-level", "DEBUG", "--debug")
    with serve() as site:
        environment = {"LETOPIS_STORE": dsn, "LETOPIS_ALERTS": f"http://{site.url}/hook/{TOKEN}"}
        environment["LETOPIS_ALERTS_PRIVATE"] = "1"
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with DaemonProcess(*words, folder=tmp_path, **environment) as daemon:
            until(lambda: site.asked, "an alert")
            blocked = "SELECT count(*) FROM letopis_outbox_lanes WHERE state = 'blocked'"
            until(lambda: rows(path, blocked) == [(1,)], "blocked")
            port = psutil.Process(daemon.pid).net_connections(kind="inet")
            listening = next(one.laddr.port for one in port if one.status == psutil.CONN_LISTEN)
            answers = "".join(ask(listening, place)[1] for place in ("/metrics", "/healthz/ready", "/healthz/live"))
            verbs = ("status", "outbox list", "doctor", "alerts test")
            plain = {verb: letopis(*verb.split()) for verb in (*verbs, "outbox show --state blocked", "healthcheck")}
            as_json = {verb: letopis(*verb.split(), "--json") for verb in verbs}
            daemon.end()
    log = "\n".join(daemon.lines)

    # What was to be seen was seen.
    assert "is blocked at event" in log
    assert "letopis_relay_blocked_total 1.0" in answers
    assert any("1 conversation is stuck" in one for _, _, one in site.asked)
    assert "poison" in plain["outbox list"].out
    # And nothing else.
    assert leaks(log + answers) == []
    for verb, done in plain.items():
        assert leaks(done.out + done.err) == [], verb
    for verb, done in as_json.items():
        # An id is data there: it comes back unchanged, and JSON keeps it from forging a line.
        assert leaks(done.err) == [], verb
        assert [secret for secret in SECRETS if secret in done.out] == [], verb
        json.loads(done.out)
    for _, _, alert in site.asked:
        assert leaks(alert) == []
        value = json.loads(alert)
        assert [secret for secret in SECRETS if secret in json.dumps(value)] == []
        assert leaks(value["title"] + value["message"].replace("\n", " ")) == []


def _outbox(folder: Path, *conversations: str, owner: str | None = None) -> Path:
    path = folder / "bot.outbox.db"
    for conversation in conversations:
        message = Message.user(BODY, id=f"m-{conversation}", name=NAME, metadata={"token": OTHER})
        asyncio.run(append_to(path, conversation, message, owner=owner))
    return path


async def _refusing(url: str) -> None:
    await migrate(url)
    await run_there(
        url,
        "CREATE FUNCTION quote_and_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused: %',"
        " NEW USING ERRCODE = 'check_violation', DETAIL = NEW::text, HINT = NEW::text; END $$",
        "CREATE TRIGGER quote BEFORE INSERT ON letopis_events FOR EACH ROW"
        " WHEN (NEW.conversation_id LIKE 'poison%' AND NEW.type = 'message.appended')"
        " EXECUTE FUNCTION quote_and_refuse()",
    )


def test_the_test_itself_plants_what_it_looks_for(tmp_path: Path) -> None:
    """Or finding nothing would mean nothing."""
    path = _outbox(tmp_path, HOSTILE)
    held = "".join(str(row) for row in rows(path, "SELECT data FROM letopis_outbox_events"))

    assert [word for word in (BODY, NAME, OTHER) if word not in held] == []


# A URL that was put into the wrong variable or option.

MISPLACED: Final = "s3cr3tpass"
URLS: Final = (
    f"postgresql://bot:{MISPLACED}@db.example/history",
    f"postgresql://bot:a'b {MISPLACED}@db.example/history",
    f"mysql://bot@db.example/history?password={MISPLACED}",
    f"tgram://{MISPLACED}/12345",
    f"https://hooks.example/{MISPLACED}",
)
VARIABLES: Final = (
    *("LETOPIS_ALERTS", "LETOPIS_ALERTS_FILE", "LETOPIS_ALERTS_PRIVATE", "LETOPIS_CONFIG", "LETOPIS_LANGUAGE"),
    *("LETOPIS_LISTEN", "LETOPIS_LOG_FORMAT", "LETOPIS_LOG_LEVEL", "LETOPIS_OUTBOX", "LETOPIS_STOP_TIMEOUT"),
    *("LETOPIS_STORE_FILE", "STATE_DIRECTORY"),
)
VERBS: Final = (["relay", "--once"], ["status"], ["alerts", "test"], ["doctor"])


@pytest.fixture
def quiet(elsewhere: None, letopis: Callable[..., Done]) -> Callable[..., None]:
    """Return a function that runs the command and requires that it does not quote the secret."""

    def call(*words: str) -> None:
        done = letopis(*words)
        assert MISPLACED not in done.out + done.err, words

    return call


@pytest.mark.parametrize("variable", VARIABLES)
def test_no_variable_is_quoted(variable: str, quiet: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    for url in URLS:
        monkeypatch.setenv(variable, url)
        for verb in VERBS:
            quiet(*verb)


@pytest.mark.parametrize("url", URLS[1:3])
def test_no_option_is_quoted(url: str, quiet: Callable[..., None]) -> None:
    tried = [
        (*path, parameter.opts[0])
        for path, command in every_command()
        if not isinstance(command, click.Group) and path not in (("demo",), ("init",))
        for parameter in command.get_params(click.Context(command))
        if isinstance(parameter, click.Option) and not parameter.is_flag and parameter.name != "store"
    ]
    assert len(tried) > 40
    for words in tried:
        quiet(*words, url)


@pytest.mark.parametrize("key", ["outbox", "store_file", "daemon.log_level", "daemon.listen", "alerts.language"])
def test_no_value_of_the_file_is_quoted(key: str, quiet: Callable[..., None]) -> None:
    table, _, name = key.rpartition(".")
    for url in URLS:
        Path("letopis.toml").write_text((f"[{table}]\n" if table else "") + f'{name} = "{url}"\n')
        for verb in VERBS:
            quiet(*verb)


def test_what_is_left_of_a_text() -> None:
    texts = {
        one: one
        for one in (
            "accepted are postgresql://user@host/database, sqlite:///history.db",
            "a web address starts with https://; plain http must be allowed",
            "no file 'C:/bots/bot.outbox.db'",
            "sqlite:////tmp/x.db cannot be read",
        )
    }
    texts["no file 'postgresql:/u:p@h/db': write one"] = "no file '<a URL, not shown here>': write one"
    texts["password=x is wrong"] = "password=*** is wrong"
    for text, shown in texts.items():
        assert (without_credentials(text), str(ConfigurationError(text))) == (shown, shown)


# Files: their owner's alone, whatever lies in the way, and never written through a link.

no_windows = posix_only("Windows has no file modes, no such links and no SIGKILL")


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(getattr(request, "param", 0))
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {one.name: oct(stat.S_IMODE(one.stat().st_mode)) for one in folder.iterdir()}


@no_windows
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777], indirect=True)
@pytest.mark.usefixtures("umask")
async def test_a_link_to_nothing_becomes_a_private_outbox_and_store(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    target.chmod(0o700)
    for name in ("bot.outbox.db", "history.db"):
        (tmp_path / name).symlink_to(target / name)
    async with History(tmp_path / "bot.outbox.db", store=tmp_path / "history.db") as history:
        receipt = await history.append("chat-1", Message.user("secret"))
        assert await receipt.saved(60)
        DiskReserve(tmp_path / "bot.outbox.db", watermark=None, reserve=4096).restore()
        found = {**modes(target), **modes(tmp_path)}
    del found["target"]
    assert {"bot.outbox.db-wal", "history.db", "history.db-wal"} <= set(found)
    assert {found[name] for name in found if name.endswith((".db", "-wal", "-shm"))} == {"0o600"}
    assert not any(int(mode, 8) & 0o177 for mode in found.values()), found


@no_windows
@pytest.mark.usefixtures("umask")
def test_nothing_is_exported_through_what_was_planted(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out.jsonl.part").symlink_to(victim)
    with open_output(str(tmp_path / "out.jsonl"), force=False) as stream:
        stream.write(b"secret")
    assert victim.read_text() == "mine"
    assert (tmp_path / "out.jsonl.part").is_symlink()
    (tmp_path / "other.jsonl.part").touch(mode=0o666)
    with open_output(str(tmp_path / "other.jsonl"), force=False) as stream:
        stream.write(b"secret")
    found = modes(tmp_path)
    assert (found["out.jsonl"], found["other.jsonl"]) == ("0o600", "0o600")
    assert len(found) == 5  # no part of ours is left


@no_windows
def test_a_killed_export_leaves_nothing_that_a_later_one_does_not_remove(tmp_path: Path) -> None:
    """Under any name in the folder; what a living export writes, and what is nobody's, stays."""
    code = (
        "import sys, time\nfrom letopis.ops.cli.interface.output import open_output\n"
        "with open_output(sys.argv[1], force=False) as stream:\n"
        "    stream.write(b'secret'); stream.flush(); print('writing', flush=True); time.sleep(600)"
    )
    export = [sys.executable, "-c", code, str(tmp_path / "monday.jsonl")]
    with subprocess.Popen(export, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        killed.kill()
    (tmp_path / ".mine.part").touch()
    assert len(list(tmp_path.iterdir())) == 2

    with open_output(str(tmp_path / "living.jsonl"), force=False) as living:
        living.write(b"one")
        with open_output(str(tmp_path / "tuesday.jsonl"), force=False) as stream:
            stream.write(b"two")

    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {
        ".mine.part": b"",
        "living.jsonl": b"one",
        "tuesday.jsonl": b"two",
    }
