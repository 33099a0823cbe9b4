"""Who may read and who may act: tokens, sessions, and where a form comes from."""

from pathlib import Path

import pytest

from letopis.console.access import (
    MAX_SESSIONS,
    SESSION_SECONDS,
    Gate,
    Session,
    is_form_token,
    is_same_origin,
    parse_tokens,
)
from letopis.console.configuration import read_gate
from letopis.store.errors import ConfigurationError

SECRET = "a-secret-of-sixteen-or-more"
READING = "another-one-to-read-with"
TOKENS = parse_tokens([f"Ann:operator:{SECRET}", f"Ray:reader:{READING}"])


def signed_in(gate: Gate, secret: str = SECRET) -> tuple[str, Session]:
    cookie = gate.sign_in(secret)
    session = gate.session(cookie)
    assert cookie is not None and session is not None
    return cookie, session


def test_a_token_opens_a_session_that_ends() -> None:
    moments = [1_000_000.0]
    gate = Gate(TOKENS, now=lambda: moments[-1])
    (cookie, session), (_, other) = signed_in(gate), signed_in(gate)

    assert (session.name, session.role) == ("Ann", "operator")
    assert signed_in(gate, READING)[1].role == "reader"
    assert is_form_token(session, session.form_token)
    assert not is_form_token(session, "") and not is_form_token(session, other.form_token)
    moments.append(moments[0] + SESSION_SECONDS)
    assert gate.session(cookie) is None


def test_another_secret_or_cookie_opens_none() -> None:
    gate = Gate(TOKENS)
    for wrong in ("", "a", SECRET[:-1], SECRET + " ", SECRET.upper(), "\udcff", "x" * 100_000):
        assert (gate.sign_in(wrong), gate.use_link(wrong)) == (None, None)
    (cookie, _), (own, _) = signed_in(Gate(TOKENS)), signed_in(gate)
    for changed in (cookie, own[:-1], own + "=", "é", "\udcff", "", None):
        gate.end(changed)
        assert gate.session(changed) is None
    assert gate.may_read(own)


def test_a_link_signs_in_once() -> None:
    gate = Gate()
    secret = gate.create_link("ann")
    assert gate.use_link("wrong") is None
    session = gate.session(gate.use_link(secret))
    assert session is not None and (session.name, session.role) == ("ann", "operator")
    assert (gate.use_link(secret), gate.sign_in(secret)) == (None, None)


def test_the_oldest_of_too_many_sessions_of_a_name_ends_and_no_other() -> None:
    gate = Gate(TOKENS)
    other, _ = signed_in(gate, READING)
    first, *_, last = (signed_in(gate)[0] for _ in range(MAX_SESSIONS + 1))
    assert [gate.session(one) is not None for one in (first, last, other)] == [False, True, True]


@pytest.mark.parametrize(
    "wrong",
    [
        *("short", SECRET, f"Ann:{SECRET}", f"Ann:admin:{SECRET}", f":operator:{SECRET}", f"A\x1b:operator:{SECRET}"),
        *(f"{'A' * 81}:operator:{SECRET}", "Ann:operator:short", f"{SECRET}:operator:Ann", f"Bea:reader:{SECRET}"),
    ],
)
def test_a_token_that_is_none_is_refused_and_no_secret_is_kept_or_shown(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="token 2 of the console") as error:
        parse_tokens([f"Ann:operator:{SECRET}", wrong])
    assert SECRET not in str(error.value)
    gate = Gate(TOKENS)
    cookie, session = signed_in(gate)
    kept = repr([vars(gate), session, TOKENS])
    assert not [secret for secret in (SECRET, READING, cookie, session.form_token) if secret in kept]


def test_nobody_can_read_without_tokens_unless_reading_is_open() -> None:
    Gate(TOKENS).require_entrance()
    Gate(open_reading=True).require_entrance()
    assert not Gate(TOKENS).may_read(None)
    assert Gate(TOKENS, open_reading=True).may_read(None)
    with pytest.raises(ConfigurationError, match="open_reading = true"):
        Gate().require_entrance()


def test_tokens_come_from_option_environment_or_file(tmp_path: Path) -> None:
    (tmp_path / "listed").write_text(f"# people\n\nAnn Lee:operator:{SECRET}\n Ray : reader : {READING} \n")
    file, words = str(tmp_path / "listed"), {"LETOPIS_CONSOLE_TOKENS": f"Bea:reader:{SECRET}"}
    table, in_file = {"tokens_file": "listed"}, {"LETOPIS_CONSOLE_TOKENS_FILE": file}

    for name, gate in (
        ("Ann Lee", read_gate(table, tmp_path, environ={})),
        ("Ann Lee", read_gate({}, None, environ=in_file)),
        ("Bea", read_gate(table, tmp_path, environ=words)),
        ("Ann Lee", read_gate({}, None, given=file, environ=words)),
    ):
        assert signed_in(gate)[1].name == name
    for wrong, variables in (({"tokens": ["x"], **table}, {}), ({}, {**in_file, **words})):
        with pytest.raises(ConfigurationError) as error:
            read_gate(wrong, tmp_path, environ=variables)
        assert SECRET not in str(error.value)


def test_what_comes_from_a_page_of_ours() -> None:
    for headers, same in (
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "same-site", "host": "a.example", "origin": "http://a.example"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"host": "a.example:8300", "origin": "http://a.example:8300"}, True),
        ({"host": "a.example", "origin": "https://A.example"}, True),
        ({"host": "a.example", "origin": "http://a.example:81"}, False),
        ({"host": "a.example", "origin": "http://["}, False),
        ({"host": "a.example"}, True),
    ):
        assert is_same_origin(headers) is same, headers
