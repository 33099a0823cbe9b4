"""A URL that was put into the wrong variable or option is never quoted: it holds a password."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
import pytest

from letopis.store.errors import ConfigurationError, without_credentials
from tests.support.fix_command import Done, every_command

SECRET: Final = "s3cr3tpass"
URLS: Final = (
    f"postgresql://bot:{SECRET}@db.example/history",
    f"postgresql://bot:a'b {SECRET}@db.example/history",
    f"mysql://bot@db.example/history?password={SECRET}",
    f"tgram://{SECRET}/12345",
    f"https://hooks.example/{SECRET}",
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
        assert SECRET not in done.out + done.err, words

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
