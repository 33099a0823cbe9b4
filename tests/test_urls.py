"""A URL is taken as people write it, or refused with a sentence that helps and holds no secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import URL, make_url

from letopis.store.errors import ConfigurationError
from letopis.store.urls import normalise_url, safe_url

SECRET = "s3cr3t-Wörd"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("postgresql://u@h/db", "postgresql+asyncpg://u@h/db"),
        ("postgres://u@h:5433/db", "postgresql+asyncpg://u@h:5433/db"),
        ("  postgresql://u@h/db\n", "postgresql+asyncpg://u@h/db"),
        ("postgresql+asyncpg://u@h/db", "postgresql+asyncpg://u@h/db"),
        ("postgresql+psycopg2://u@h/db", "postgresql+asyncpg://u@h/db"),
        ("mysql://u@h/db", "mariadb+asyncmy://u@h/db"),
        ("mariadb://u@h/db", "mariadb+asyncmy://u@h/db"),
        ("mysql+aiomysql://u@h/db?charset=utf8mb4", "mariadb+asyncmy://u@h/db"),
        ("mysql+pymysql://u@h/db?charset=utf8", "mariadb+asyncmy://u@h/db"),
        ("postgresql://u@h/db?sslmode=REQUIRE", "postgresql+asyncpg://u@h/db?ssl=require"),
        ("postgresql://u@h/db?ssl=require&sslmode=require", "postgresql+asyncpg://u@h/db?ssl=require"),
        ("postgresql:///db?host=/run/postgresql", "postgresql+asyncpg:///db?host=/run/postgresql"),
        ("postgresql:///db?host=a:1&host=b:2", "postgresql+asyncpg:///db?host=a:1&host=b:2"),
        ("postgresql://h/db?channel_binding=prefer&gssencmode=disable", "postgresql+asyncpg://h/db"),
        ("postgresql://h/db?client_encoding=UTF8", "postgresql+asyncpg://h/db"),
        ("postgresql://h/db?pgbouncer=1", "postgresql+asyncpg://h/db?pgbouncer=true"),
        ("postgresql://h/?user=u&password=p&dbname=db", "postgresql+asyncpg://u:p@h/db"),
        ("mariadb://h/db?ssl-mode=VERIFY_IDENTITY", "mariadb+asyncmy://h/db?ssl=verify-full"),
        ("mariadb://h/db?ssl=true", "mariadb+asyncmy://h/db?ssl=require"),
        ("mariadb:///db?socket=/run/mysqld.sock", "mariadb+asyncmy:///db?unix_socket=/run/mysqld.sock"),
    ],
)
def test_a_server_url(written: str, read: str) -> None:
    found = normalise_url(written)

    assert found == make_url(read)
    assert normalise_url(found) == found


@pytest.mark.parametrize(
    "written",
    ["sqlite:///history.db", "sqlite+aiosqlite:///history.db", "history.db", "./history.db", Path("history.db")],
)
def test_an_sqlite_file_gets_an_absolute_path(
    written: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a later change of the working folder does not open another file."""
    monkeypatch.chdir(tmp_path)

    found = normalise_url(written)

    assert found == URL.create("sqlite+aiosqlite", database=str(tmp_path / "history.db"))
    assert normalise_url(found) == found


@pytest.mark.skipif(os.name == "nt", reason="the home folder is found in another way")
@pytest.mark.parametrize("written", ["~/history.db", "sqlite:///~/history.db"])
def test_the_home_folder(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")

    assert normalise_url(written).database == "/home/somebody/history.db"


@pytest.mark.parametrize("name", ["a b?c#d%20e.db", "история.db", "a@b.db", "x:y.db"])
def test_a_path_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    assert normalise_url(tmp_path / name).database == str(tmp_path / name)


def test_memory_is_refused_unless_it_is_asked_for() -> None:
    for written in (":memory:", "sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ConfigurationError, match="keeps nothing"):
            normalise_url(written)

        assert normalise_url(written, allow_memory=True).database == ":memory:"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("mongodb://h/db", "'mongodb' is no kind"),
        (f"oracle://u:{SECRET}@h/db", "'oracle' is no kind"),
        ("://h/db", "cannot be read"),
        ("postgresql://h:port/db", "cannot be read"),
        (f"postgresql://u:{SECRET}@h:54x32/db", "cannot be read"),
        ("sqlite:history.db", "//"),
        ("postgresql:h/db", "//"),
        ("localhost:5432/db", "begins with a server"),
        (f"u:{SECRET}@h/db", "begins with a server"),
        ("postgresql://u@h", "names no database"),
        (f"mariadb://u:{SECRET}@h/", "names no database"),
        ("sqlite://history.db", "three slashes"),
        ("sqlite:///history.db?mode=ro", "no options"),
        ("sqlite:///file:history.db", "plain path"),
        ("a\0b.db", "NUL"),
        ("postgresql://h/db?sslmode=maybe", "one of disable, allow"),
        ("postgresql://h/db?sslmode=require&ssl=disable", "'ssl' twice"),
        ("postgresql://h/db?application_name=a&application_name=b", "'application_name' twice"),
        ("postgresql://h/db?target_session_attrs=standby", "one of any, primary, read-write"),
        ("postgresql://h/db?channel_binding=require", "'channel_binding' is not supported"),
        ("postgresql://h/db?keepalives=1", "'keepalives' is not known"),
        ("postgresql://h/db?connect_timeout=soon", "number of seconds"),
        ("postgresql://h/db?connect_timeout=0", "number of seconds"),
        ("postgresql://h/db?connect_timeout=nan", "number of seconds"),
        ("postgresql://h/db?prepared_statement_cache_size=-1", "whole number"),
        ("postgresql://h/db?pgbouncer=maybe", "true or false"),
        ("postgresql://h/db?client_encoding=latin1", "only be UTF-8"),
        (f"postgresql://u:{SECRET}@h/db?password={SECRET}", "password twice"),
        ("mariadb://h/db?charset=latin1", "only be UTF-8"),
        ("mariadb://h/db?local_infile=1", "'local_infile' is not known"),
        ("mariadb://h/db?ssl=prefer", "one of disable"),
    ],
)
def test_what_cannot_be_used_is_explained_without_the_secret(written: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        normalise_url(written)

    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or SECRET not in str(caught.value.__context__)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p%40ss@h:5432/db", "postgresql://u:***@h:5432/db"),
        ("postgresql+asyncpg://u@h/db", "postgresql://u@h/db"),
        ("postgresql://h/db?password=hush&sslmode=require", "postgresql://h/db?password=***&sslmode=require"),
        ("postgresql://h/db?sslpassword=hush", "postgresql://h/db?sslpassword=***"),
        ("mysql://h/db?PASSWD=hush&passwd=hush", "mysql://h/db?PASSWD=***&passwd=***"),
        ("sqlite:///history.db", "sqlite:///history.db"),
        (Path("history.db"), "sqlite:///history.db"),
        ("postgresql://u:hush@h:54x32/db", "<unreadable URL>"),
        ("u:hush@h/db", "<unreadable URL>"),
    ],
)
def test_a_url_is_shown_without_secrets(url: str | Path, shown: str) -> None:
    assert safe_url(url) == shown
    assert safe_url(make_url(url) if isinstance(url, str) and shown[0] != "<" else url) == shown


@given(
    rest=st.text(),
    place=st.sampled_from(["url", "password", "sslpassword", "passwd", "aws_secret_key", "auth_token"]),
)
def test_no_password_is_ever_shown(rest: str, place: str) -> None:
    password = f"hush{rest}"
    url = URL.create("postgresql", username="u", host="h", database="db")
    url = url.set(password=password) if place == "url" else url.update_query_dict({place: password})

    for form in (url, url.render_as_string(hide_password=False)):
        assert safe_url(form) == safe_url(url)
        assert "***" in safe_url(form)
        assert "hush" not in safe_url(form)


@given(st.text())
def test_any_text_is_read_or_refused_in_our_words(text: str) -> None:
    try:
        found = normalise_url(text)
    except ConfigurationError:
        assert isinstance(safe_url(text), str)
    else:
        assert normalise_url(found) == found
