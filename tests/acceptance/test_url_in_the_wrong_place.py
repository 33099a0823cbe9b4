"""A URL that was put into the wrong variable or option is never quoted: it holds a password."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import pytest

from letopis.outbox.cli import cli as command
from letopis.outbox.cli.interface.exit_codes import run
from letopis.store.errors import ConfigurationError, without_credentials

SECRET: Final = "s3cr3tpass"
URLS: Final = (
    f"postgresql://bot:{SECRET}@db.example/history",
    f"postgresql://bot:a'b {SECRET}@db.example/history",
    f"mysql://bot@db.example/history?password={SECRET}",
    f"tgram://{SECRET}/12345",
    f"https://hooks.example/{SECRET}",
)
VARIABLES: Final = (
    "LETOPIS_ALERTS",
    "LETOPIS_ALERTS_FILE",
    "LETOPIS_ALERTS_PRIVATE",
    "LETOPIS_CONFIG",
    "LETOPIS_LANGUAGE",
    "LETOPIS_LISTEN",
    "LETOPIS_LOG_FORMAT",
    "LETOPIS_LOG_LEVEL",
    "LETOPIS_OUTBOX",
    "LETOPIS_STOP_TIMEOUT",
    "LETOPIS_STORE_FILE",
    "STATE_DIRECTORY",
)
VERBS: Final = (["relay", "--once"], ["status"], ["alerts", "test"], ["doctor"])


def options() -> list[tuple[str, str]]:
    """Every option of every verb that takes a value."""
    found: dict[tuple[str, str], None] = {}

    def walk(one: click.Command, path: list[str]) -> None:
        context = click.Context(one)
        if isinstance(one, click.Group):
            for name in one.list_commands(context):
                child = one.get_command(context, name)
                assert child is not None
                walk(child, [*path, name])
            return
        for parameter in one.get_params(context):
            if isinstance(parameter, click.Option) and not parameter.is_flag and parameter.name != "store":
                found[" ".join(path), parameter.opts[0]] = None

    walk(command, [])
    return list(found)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("url", URLS)
def test_no_variable_is_quoted(
    variable: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, url)
    for verb in VERBS:
        run(command, verb)
        told = capfd.readouterr()
        assert SECRET not in told.out + told.err, verb


@pytest.mark.parametrize("url", URLS)
def test_no_option_is_quoted(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tried = options()
    assert len(tried) > 40
    for path, option in tried:
        if path in ("demo", "init"):
            continue
        run(command, [*path.split(), option, url])
        told = capfd.readouterr()
        assert SECRET not in told.out + told.err, (path, option)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("key", ["outbox", "store_file", "daemon.log_level", "daemon.listen", "alerts.language"])
def test_no_value_of_the_file_is_quoted(
    key: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table, _, name = key.rpartition(".")
    (tmp_path / "letopis.toml").write_text((f"[{table}]\n" if table else "") + f'{name} = "{url}"\n')
    for verb in VERBS:
        run(command, verb)
        told = capfd.readouterr()
        assert SECRET not in told.out + told.err, verb


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
