"""Who may read and who may act: tokens, sessions, and where a request comes from."""

from __future__ import annotations

import pytest

from letopis.console.access import FAILURE_WINDOW_SECONDS, MAX_FAILURES, SESSION_SECONDS, Gate, is_local, is_same_origin
from letopis.store.errors import ConfigurationError

TOKEN = "a token of sixteen or more"


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


def test_the_token_opens_a_session_that_ends() -> None:
    clock = Hand()
    gate = Gate(TOKEN, now=clock)
    cookie = gate.sign_in(TOKEN, "  Ann \n of\x00 Oslo ")
    session = gate.session(cookie)

    assert session is not None
    assert session.name == "Ann of Oslo"
    assert gate.is_form_token(session, gate.form_token(session))
    assert not gate.is_form_token(session, "")
    clock.at += SESSION_SECONDS + 1
    assert gate.session(cookie) is None


@pytest.mark.parametrize("wrong", ["", "a", TOKEN[:-1], TOKEN + " ", TOKEN.upper(), "\udcff", "x" * 100_000])
def test_another_token_opens_none(wrong: str) -> None:
    assert Gate(TOKEN).sign_in(wrong, "") is None


def test_without_a_token_nobody_gets_in() -> None:
    gate = Gate(None)

    assert gate.closed
    assert gate.sign_in("", "") is None
    assert gate.session("W10=.") is None


def test_a_cookie_that_was_changed_or_is_of_another_process_is_none() -> None:
    gate, other = Gate(TOKEN), Gate(TOKEN)
    cookie = gate.sign_in(TOKEN, "Ann")
    assert cookie is not None
    body, _, signature = cookie.rpartition(".")

    for changed in (f"{body}A.{signature}", f"{body}.{signature[:-1]}0", body, f".{signature}", "é.é", "", None):
        if changed != cookie:
            assert gate.session(changed) is None
    assert other.session(cookie) is None


def test_the_form_token_is_of_one_session() -> None:
    gate = Gate(TOKEN)
    one, two = (gate.session(gate.sign_in(TOKEN, "Ann")) for _ in range(2))
    assert one is not None
    assert two is not None

    assert not gate.is_form_token(one, gate.form_token(two))


def test_many_wrong_tokens_close_the_gate_for_a_while() -> None:
    clock = Hand()
    gate = Gate(TOKEN, now=clock)
    for _ in range(MAX_FAILURES):
        assert not gate.throttled
        gate.sign_in("wrong", "")

    assert gate.throttled
    clock.at += FAILURE_WINDOW_SECONDS + 1
    assert not gate.throttled


def test_a_short_token_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 16"):
        Gate("short")


@pytest.mark.parametrize(
    ("client", "headers", "local"),
    [
        ("127.0.0.1", {"host": "127.0.0.1:8300"}, True),
        ("127.0.0.1", {"host": "localhost"}, True),
        ("::1", {"host": "[::1]:8300"}, True),
        ("127.0.0.1", {"host": "evil.example:8300"}, False),  # its name may resolve to this machine
        ("127.0.0.1", {"host": "127.0.0.1.evil.example"}, False),
        ("127.0.0.1", {"host": "localhost.evil.example"}, False),
        ("127.0.0.1", {}, False),
        ("127.0.0.1", {"host": "]["}, False),
        ("192.0.2.7", {"host": "127.0.0.1"}, False),
        ("127.0.0.1", {"host": "localhost", "x-forwarded-for": "192.0.2.7"}, False),
        (None, {"host": "localhost"}, False),
        ("not an address", {"host": "localhost"}, False),
    ],
)
def test_what_comes_from_this_machine(client: str | None, headers: dict[str, str], local: bool) -> None:
    assert is_local(client, headers) is local


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-site", "host": "a.example"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"host": "a.example:8300", "origin": "http://a.example:8300"}, True),
        ({"host": "a.example", "origin": "https://A.example"}, True),
        ({"host": "a.example", "origin": "http://a.example:81"}, False),
        ({"host": "a.example", "origin": "http://b.example"}, False),
        ({"host": "a.example", "origin": "null"}, False),
        ({"host": "a.example", "origin": "http://["}, False),
        ({"host": "a.example"}, True),
    ],
)
def test_what_comes_from_a_page_of_ours(headers: dict[str, str], same: bool) -> None:
    assert is_same_origin(headers) is same
