"""Settings: flag before environment before letopis.toml before default, and errors that name their place."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from letopis import ConfigurationError, ContentRetention, Retention, RetentionRule, RetryPolicy
from letopis.ops.config.settings import Settings, load_settings

SECRET = "hunter2-correct-horse"


def write(folder: Path, text: str, name: str = "letopis.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str | None = None, environ: dict[str, str] | None = None, **options: Any) -> Settings:
    """The settings in a folder, whose file may be written first."""
    if text is not None:
        write(folder, text)
    return load_settings(environ=environ or {}, folder=folder, **options)


def test_each_source_comes_before_the_next(tmp_path: Path) -> None:
    file = str(write(tmp_path, 'outbox = "file.db"\nstore = "postgresql://file/db"'))
    environ = {"LETOPIS_OUTBOX": "variable.db", "LETOPIS_STORE": "postgresql://variable/db"}
    flags = {"outbox": "flag.db", "store": "postgresql://flag/db"}
    for found, outbox, store, sources in (
        (load(tmp_path), tmp_path / "file.db", "postgresql://file/db", (file, file)),
        (load(tmp_path, environ=environ), Path("variable.db"), "postgresql://variable/db", tuple(environ)),
        (load(tmp_path, environ=environ, **flags), Path("flag.db"), "postgresql://flag/db", ("--outbox", "--store")),
    ):
        assert (found.outbox, found.store) == (outbox, store)
        assert (found.outbox_from, found.store_from) == sources


def test_a_variable_that_is_empty_counts_as_not_set_and_then_the_defaults_hold(tmp_path: Path) -> None:
    empty = {"LETOPIS_OUTBOX": "", "LETOPIS_STORE": "", "LETOPIS_STORE_FILE": "", "LETOPIS_CONFIG": ""}
    assert load(tmp_path, environ=empty) == load(tmp_path) == Settings(outbox=Path("bot.outbox.db"))


def test_the_outbox_lies_where_systemd_keeps_state(tmp_path: Path) -> None:
    found = load(tmp_path, environ={"STATE_DIRECTORY": f"{tmp_path}:/elsewhere"})
    assert (found.outbox, found.outbox_from) == (tmp_path / "bot.outbox.db", "STATE_DIRECTORY")


def test_the_configuration_file_may_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, 'outbox = "x.db"', name="other.toml")
    by_flag, by_variable = load(tmp_path, config=str(path)), load(tmp_path, environ={"LETOPIS_CONFIG": str(path)})
    assert (by_flag, by_flag.file) == (by_variable, path)
    with pytest.raises(ConfigurationError, match="there is no configuration file"):
        load(tmp_path, config=str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    "secret", ["s3cr3tpass", "12345:AAHs3cr3tpass", "bot:s3cr3tpass@db/history", "s3cr3tpass" * 40]
)
def test_a_secret_in_the_variable_of_the_file_is_not_quoted(secret: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, environ={"LETOPIS_CONFIG": secret})
    assert "LETOPIS_CONFIG" in str(refused.value) and "s3cr3tpass" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("history.db", "{folder}/history.db"),
        ("sqlite:///history.db", "sqlite:///{folder}/history.db"),
        ("sqlite:////var/lib/history.db", "sqlite:////var/lib/history.db"),
        ("/var/lib/history.db", "/var/lib/history.db"),
        ("postgresql://bot@db/history", "postgresql://bot@db/history"),
        ("bot:secret@db/history", "bot:secret@db/history"),  # left for the URL's own check to refuse
    ],
)
def test_relative_paths_of_the_file_start_at_its_folder(tmp_path: Path, given: str, expected: str) -> None:
    assert load(tmp_path, f'store = "{given}"').store == expected.format(folder=tmp_path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_store_may_be_in_a_file_of_its_own(tmp_path: Path, end: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(f"postgresql://bot:{SECRET}@db/history{end}".encode())
    by_variable = load(tmp_path / "elsewhere", environ={"LETOPIS_STORE_FILE": str(secret)})
    by_file = load(tmp_path, 'store_file = "secret"')
    assert by_variable.store == by_file.store == f"postgresql://bot:{SECRET}@db/history"
    assert (by_variable.store_from, SECRET in repr(by_variable)) == ("LETOPIS_STORE_FILE", False)


WRONG = {
    "no TOML": ("outbox = ", "is not valid TOML (at end of document)"),
    "no TOML, secret": (f'store = "postgresql://bot:{SECRET}@db/h', "is not valid TOML"),
    "a key that is close": ('outbx = "a"', "'outbx' is not known: did you mean 'outbox'?"),
    "a key of another world": (
        "colour = 1",
        "'colour' is not known: known are alerts, console, daemon, outbox, relay, retention, store, store_file",
    ),
    "a number": ("outbox = 7", "outbox must be text in quotes"),
    "no table": ("relay = 7", "relay must be a table"),
    "both stores": (f'store = "postgresql://bot:{SECRET}@db/h"\nstore_file = "x"', "store and store_file are both set"),
    "no secret file": ('store_file = "nowhere"', "of the store's URL cannot be read: No such file or directory"),
    "policy key": ("[relay]\nbaze = 1", "[relay] 'baze' is not known: did you mean 'base'?"),
    "policy true": ("[relay]\nattempts = true", "[relay] attempts must be a whole number"),
    "policy value": ("[relay]\nbase = -1.0", "[relay] base: must be more than 0 seconds"),
    "retention value": ("[retention]\nkeep_last = -1", "[retention] keep_last: must not be negative"),
    "deep lists": (f"outbox = {'[' * 50_000}", "is not valid TOML"),
    "content value": ("[retention.content]\nmax_age_days = 0", "[retention.content] max_age_days: must be more than 0"),
    "content part": ("[retention.content]\nmax_messages = 2.5", "max_messages must be a whole number"),
    "content": ("[retention]\ncontent = 3", "content must be a table"),
    "rules": ("[retention.content]\nrules = [3]", "rules must be a list of tables"),
    "rule for all": ("[[retention.content.rules]]\nmax_messages = 3", "rules: must each name an owner or a tag"),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_an_error_that_names_its_place(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    assert expected in str(caught.value)
    assert "letopis.toml" in str(caught.value) or "nowhere" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("held", [b"\n", b"a\nb", b"\xff", b"x" * 70_000], ids=["blank", "two", "bytes", "long"])
def test_a_secret_that_cannot_be_a_url_is_an_error(tmp_path: Path, held: bytes) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(held)
    with pytest.raises(ConfigurationError, match="the store's URL"):
        load(tmp_path, environ={"LETOPIS_STORE_FILE": str(secret)})
    (tmp_path / "letopis.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="is not UTF-8"):
        load(tmp_path)


def test_two_variables_for_one_store_are_an_error(tmp_path: Path) -> None:
    environ = {"LETOPIS_STORE": f"postgresql://bot:{SECRET}@db/h", "LETOPIS_STORE_FILE": "/run/secret"}
    with pytest.raises(ConfigurationError, match="both set") as caught:
        load(tmp_path, environ=environ)
    assert SECRET not in str(caught.value)
    assert load(tmp_path, environ=environ, store="a.db").store == "a.db"


def test_what_the_relay_does_comes_from_the_file(tmp_path: Path) -> None:
    text = (
        '[relay]\nbase = 2\ncap = 30.5\njitter = "none"\nattempts = 5\n'
        "[retention]\nkeep_last = 3\nkeep_hours = 0.5\n[retention.content]\nmax_age_days = 365\nmax_messages = 9\n"
        '[[retention.content.rules]]\ntag = "legal"\n[[retention.content.rules]]\nowner = "42"\nmax_age_days = 0.5\n'
    )
    rules = (RetentionRule(tag="legal"), RetentionRule(owner="42", max_age_days=0.5))
    content = ContentRetention(max_age_days=365, max_messages=9, rules=rules)

    found = load(tmp_path, text)
    assert found.policy == RetryPolicy(base=2, cap=30.5, jitter="none", attempts=5)
    assert found.retention == Retention(keep_last=3, keep_for=timedelta(minutes=30), content=content)
