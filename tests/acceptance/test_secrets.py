"""Nothing personal and no secret leaves by the side doors: logs, --json, metrics, health, alerts, errors, spans."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click
import psutil
import pytest

from letopis.store.database.engines import create_store_engine
from letopis.store.database.urls import normalise_url
from letopis.store.errors import ConfigurationError, LetopisError, without_credentials
from letopis.store.model.messages import Message
from tests.proof.security import planted
from tests.support.daemons import DaemonProcess, ask, letopis, until
from tests.support.fix_command import Done, append_to, every_command
from tests.support.servers.store_pool import migrate
from tests.support.sqlite_rows import rows
from tests.support.store_changes import run_there
from tests.support.values.secrets import BODY, DSNS, ESC, HOSTILE, NAME, OTHER, PASSWORD, RTL, SECRETS, TOKEN, leaks
from tests.support.webhook import Site, serve


def test_the_search_finds_what_it_looks_for() -> None:
    assert leaks(f"a {PASSWORD} b {ESC}[31m") == [PASSWORD, "'\\x1b'"]
    assert leaks("nothing") == []


@pytest.mark.parametrize("dsn", DSNS.values(), ids=DSNS)
def test_no_error_of_a_url_shows_its_secrets(dsn: str) -> None:
    """Not its text, its repr, nor anything that it is chained to."""
    try:
        engine = create_store_engine(normalise_url(dsn))
    except LetopisError as error:
        chain: list[BaseException] = []
        link: BaseException | None = error
        while link is not None:
            chain.append(link)
            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
        shown = "".join(f"{one} {one!r} {getattr(one, '__notes__', '')}" for one in chain)
    else:
        shown = f"{engine!r} {engine.url}"

    assert leaks(shown) == []


def test_no_command_shows_a_password_wherever_it_comes_from(tmp_path: Path) -> None:
    names = ["the key of a certificate", "a slash in it", "a port that is none", "no kind at all", "one slash"]

    runs, found = planted.commands(tmp_path, names)

    assert runs == len(names) * 16
    assert found == []


@pytest.fixture
def site() -> Iterator[Site]:
    """A webhook of the operators'."""
    with serve() as found:
        yield found


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_daemon_in_trouble_says_nothing_of_what_was_said(
    tmp_path: Path, fresh_postgresql_url: str, site: Site, log_format: str
) -> None:
    """A store whose errors quote the message, a password in the URL, a token in the channel, an id that forges."""
    hook = f"http://{site.url}/hook/{TOKEN}"
    asyncio.run(_refusing(fresh_postgresql_url))
    url = normalise_url(fresh_postgresql_url)
    dsn = url.set(drivername="postgresql", password=url.password or PASSWORD).render_as_string(hide_password=False)
    path = _outbox(tmp_path, HOSTILE, "c1", owner=f"owner{RTL}")
    (tmp_path / "letopis.toml").write_text("[relay]\nattempts = 0\n")
    environment = {"LETOPIS_STORE": dsn, "LETOPIS_ALERTS": hook, "LETOPIS_ALERTS_PRIVATE": "1"}
    words = ("--listen", "0", "--log-format", log_format, "--log-level", "DEBUG", "--debug")
    with DaemonProcess(*words, folder=tmp_path, **environment) as daemon:
        until(lambda: site.asked, "an alert")
        until(
            lambda: rows(path, "SELECT count(*) FROM letopis_outbox_lanes WHERE state = 'blocked'") == [(1,)], "blocked"
        )
        port = psutil.Process(daemon.pid).net_connections(kind="inet")
        listening = next(one.laddr.port for one in port if one.status == psutil.CONN_LISTEN)
        answers = "".join(ask(listening, place)[1] for place in ("/metrics", "/healthz/ready", "/healthz/live"))
        told = [
            letopis(*verb, folder=tmp_path, **environment)
            for verb in (
                *(("status",), ("status", "--json"), ("outbox", "list"), ("outbox", "list", "--json")),
                *(("outbox", "show", "--state", "blocked"), ("doctor",), ("doctor", "--json")),
                *(("alerts", "test"), ("alerts", "test", "--json"), ("healthcheck",)),
            )
        ]
        daemon.end()
    log = "\n".join(daemon.lines)
    plain = [one for one in told if "--json" not in one.args]
    as_json = [one for one in told if "--json" in one.args]

    # What was to be seen was seen.
    assert "is blocked at event" in log
    assert "letopis_relay_blocked_total 1.0" in answers
    assert any("1 conversation is stuck" in one for _, _, one in site.asked)
    assert "poison" in plain[1].stdout
    # And nothing else.
    assert leaks(log + answers) == []
    for one in plain:
        assert leaks(one.stdout + one.stderr) == [], one.args
    for one in as_json:
        # An id is data there: it comes back unchanged, and JSON keeps it from forging a line.
        assert leaks(one.stderr) == [], one.args
        assert [secret for secret in SECRETS if secret in one.stdout] == [], one.args
        json.loads(one.stdout)
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
@pytest.mark.parametrize("url", URLS)
def test_no_variable_is_quoted(
    variable: str, url: str, quiet: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, url)
    for verb in VERBS:
        quiet(*verb)


@pytest.mark.parametrize("url", URLS)
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


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("key", ["outbox", "store_file", "daemon.log_level", "daemon.listen", "alerts.language"])
def test_no_value_of_the_file_is_quoted(key: str, url: str, quiet: Callable[..., None]) -> None:
    table, _, name = key.rpartition(".")
    Path("letopis.toml").write_text((f"[{table}]\n" if table else "") + f'{name} = "{url}"\n')
    for verb in VERBS:
        quiet(*verb)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("accepted are postgresql://user@host/database, sqlite:///history.db", None),
        ("a web address starts with https://; plain http must be allowed", None),
        ("no file '/tmp/bot.outbox.db'", None),
        ("no file 'C:/bots/bot.outbox.db'", None),
        ("sqlite:////tmp/x.db cannot be read", None),
        ("no file 'postgresql:/u:p@h/db': write one", "no file '<a URL, not shown here>': write one"),
        ("password=x is wrong", "password=*** is wrong"),
    ],
)
def test_what_is_left_of_a_text(text: str, shown: str | None) -> None:
    assert without_credentials(text) == (text if shown is None else shown)
    assert str(ConfigurationError(text)) == (text if shown is None else shown)
