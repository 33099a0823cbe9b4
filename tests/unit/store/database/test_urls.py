"""A URL is accepted as users write it, or refused with a sentence that helps and holds no secret."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import URL, make_url

from letopis.store.database.hosts import HostAddress
from letopis.store.database.urls import hosts_of, normalise_url, safe_url
from letopis.store.errors import ConfigurationError
from tests.support.platforms import posix_only

SECRET = "s3cr3t-Wörd"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("postgresql://u@h/db", "postgresql+asyncpg://u@h/db"),
        ("postgres://u@h:5433/db", "postgresql+asyncpg://u@h:5433/db"),
        ("  postgresql://u@h/db\n", "postgresql+asyncpg://u@h/db"),
        ("postgresql+psycopg2://u@h/db", "postgresql+asyncpg://u@h/db"),
        ("mysql://u@h/db", "mariadb+asyncmy://u@h/db"),
        ("mysql+aiomysql://u@h/db?charset=utf8mb4", "mariadb+asyncmy://u@h/db"),
        ("postgresql://u@h/db?sslmode=REQUIRE", "postgresql+asyncpg://u@h/db?ssl=require"),
        ("postgresql:///db?host=/run/postgresql", "postgresql+asyncpg:///db?host=/run/postgresql"),
        ("postgresql://u@a,b:2/db", "postgresql+asyncpg://u@/db?host=a:5432&host=b:2"),
        ("postgresql://u@a,b/db?port=7", "postgresql+asyncpg://u@/db?host=a:7&host=b:7"),
        ("postgresql:///db?host=a&host=b", "postgresql+asyncpg:///db?host=a:5432&host=b:5432"),
        ("postgresql://u:p,w@[::1]:5,[fe80::1]/db", "postgresql+asyncpg://u:p,w@/db?host=[::1]:5&host=[fe80::1]:5432"),
        ("postgresql://%2Frun%2Fpg,b/db", "postgresql+asyncpg:///db?host=/run/pg:5432&host=b:5432"),
        ("postgresql://localhost:6432/db?host=/run/pg", "postgresql+asyncpg:///db?host=/run/pg&port=6432"),
        ("postgresql://a,a/db", "postgresql+asyncpg://a/db"),
        ("mysql://u@a,b:3307/db", "mariadb+asyncmy://u@/db?host=a:3306&host=b:3307"),
        (
            "mariadb://a,b/db?target_session_attrs=Standby&load_balance_hosts=random",
            "mariadb+asyncmy:///db?host=a:3306&host=b:3306&target_session_attrs=standby&load_balance_hosts=random",
        ),
        ("postgresql://h/db?channel_binding=prefer&gssencmode=disable", "postgresql+asyncpg://h/db"),
        ("postgresql://h/db?client_encoding=UTF8", "postgresql+asyncpg://h/db"),
        ("postgresql://h/db?pgbouncer=1", "postgresql+asyncpg://h/db?pgbouncer=true"),
        ("postgresql://h/?user=u&password=p&dbname=db", "postgresql+asyncpg://u:p@h/db"),
        ("mariadb://h/db?ssl-mode=VERIFY_IDENTITY", "mariadb+asyncmy://h/db?ssl=verify-full"),
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


@posix_only("Windows finds the home folder in another way")
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
        (f"oracle://u:{SECRET}@h/db", "'oracle' is not a supported kind"),
        ("://h/db", "cannot be read"),
        ("postgresql://h:port/db", "cannot be read"),
        ("postgresql://a,,b/db", "a host of the URL cannot be parsed"),
        ("postgresql://a,b:65536/db", "not a number from 1 to 65535"),
        ("postgresql://a,b/db?port=1,2,3", "3 ports for 2 hosts"),
        ("postgresql://a:1,b/db?port=2", "port of a host twice"),
        ("postgresql://a,b/db?load_balance_hosts=yes", "one of disable, random"),
        (f"postgresql://u:p@{SECRET},w@h/db", "cannot be read"),
        ("mariadb:///db?host=/run/s", "unix_socket"),
        ("mariadb://a,b/db?socket=/run/s", "a unix_socket and several hosts"),
        (f"postgresql://u:{SECRET}@h:54x32/db", "cannot be read"),
        ("sqlite:history.db", "//"),
        (f"u:{SECRET}@h/db", "begins with a server"),
        ("postgresql://u@h", "names no database"),
        ("sqlite://history.db", "three slashes"),
        ("sqlite:///history.db?mode=ro", "no options"),
        ("sqlite:///file:history.db", "plain path"),
        ("a\0b.db", "NUL"),
        ("postgresql://h/db?sslmode=maybe", "one of disable, allow"),
        ("postgresql://h/db?sslmode=require&ssl=disable", "'ssl' twice"),
        ("postgresql://h/db?channel_binding=require", "'channel_binding' is not supported"),
        *((f"postgresql://h/db?connect_timeout={wrong}", "number of seconds") for wrong in ("soon", "0", "nan")),
        ("postgresql://h/db?connections=0", "1 to 1,024"),
        ("postgresql://h/db?prepared_statement_cache_size=-1", "whole number"),
        ("postgresql://h/db?pgbouncer=maybe", "true or false"),
        ("postgresql://h/db?client_encoding=latin1", "only be UTF-8"),
        (f"postgresql://u:{SECRET}@h/db?password={SECRET}", "password twice"),
        ("mariadb://h/db?local_infile=1", "'local_infile' is not known"),
    ],
)
def test_what_cannot_be_used_is_explained_without_the_secret(written: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        normalise_url(written)
    assert caught.value.__cause__ is None
    assert SECRET not in f"{caught.value} {caught.value.__context__}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p%40ss@h:5432/db", "postgresql://u:***@h:5432/db"),
        ("postgresql://h/db?password=hush&sslmode=require", "postgresql://h/db?password=***&sslmode=require"),
        ("mysql://h/db?PASSWD=hush&passwd=hush", "mysql://h/db?PASSWD=***&passwd=***"),
        ("postgresql://u:hush@a:1,b/db?password=hush", "postgresql://u:***@a:1,b:5432/db?password=***"),
        ("postgresql:///db?host=a&host=[::1]:2&passfile=x", "postgresql://a:5432,[::1]:2/db?passfile=x"),
        ("postgresql://u:hush@a,b:x/db", "<unreadable URL>"),
        ("sqlite:///history.db", "sqlite:///history.db"),
        (Path("history.db"), "sqlite:///history.db"),
        ("postgresql://u:hush@h:54x32/db", "<unreadable URL>"),
        ("u:hush@h/db", "<unreadable URL>"),
    ],
)
def test_a_url_is_shown_without_secrets(url: str | Path, shown: str) -> None:
    assert safe_url(url) == shown
    if isinstance(url, str) and "," not in shown and shown[0] != "<":
        assert safe_url(make_url(url)) == shown


@given(
    rest=st.text(), place=st.sampled_from(["url", "password", "sslpassword", "passwd", "aws_secret_key", "auth_token"])
)
def test_no_password_is_ever_shown(rest: str, place: str) -> None:
    password = f"hush{rest}"
    url = URL.create("postgresql", username="u", host="h", database="db")
    url = url.set(password=password) if place == "url" else url.update_query_dict({place: password})
    shown = safe_url(url)
    assert shown == safe_url(url.render_as_string(hide_password=False))
    assert "***" in shown and "hush" not in shown


@given(st.text())
def test_any_text_is_read_or_refused_in_our_words(text: str) -> None:
    try:
        found = normalise_url(text)
    except ConfigurationError:
        assert isinstance(safe_url(text), str)
    else:
        assert normalise_url(found) == found


_NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}(\.[a-z]{2,3})?", fullmatch=True)
_HOSTS = st.one_of(_NAMES, st.ip_addresses().map(str))
_PLACES = st.builds(HostAddress, _HOSTS, st.none() | st.integers(1, 65_535))


@given(
    addresses=st.lists(_PLACES, min_size=1, max_size=4, unique_by=lambda one: one[0]),
    password=st.text(min_size=8, alphabet="hush,;!$*()"),
    kind=st.sampled_from(["postgresql", "mariadb"]),
)
def test_every_spelling_of_several_hosts_is_read_alike(addresses: list[HostAddress], password: str, kind: str) -> None:
    default = 5432 if kind == "postgresql" else 3306
    full = tuple(HostAddress(one.host, one.port or default) for one in addresses)
    ports = ",".join(str(one.port) for one in full)
    for written in (
        f"{kind}://u:{password}@{','.join(map(str, addresses))}/db",
        f"{kind}://u:{password}@/db?host={','.join(map(str, full))}",
        f"{kind}://u:{password}@/db?{'&'.join(f'host={one}' for one in full)}",
        f"{kind}://u:{password}@/db?host={','.join(one.host for one in full)}&port={ports}",
    ):
        found = normalise_url(written)

        assert hosts_of(written) == hosts_of(found) == full
        assert found.password == password
        assert normalise_url(found.render_as_string(hide_password=False)) == found
        shown = safe_url(written)
        assert "***" in shown and password not in shown
        assert hosts_of(shown) == full


def test_a_path_that_is_not_utf_8_is_shown() -> None:
    assert safe_url("/data/a\udc80.db").endswith("/data/a%5Cudc80.db")
